"""How large the noise of encryption, key switching and rounding gets: every constant derived.

A slot is the value of a polynomial of N coefficients at a root of unity. Independent coefficients
of variance v give it a complex standard deviation of sqrt(N v), and sqrt(N v / 2) to its real part.

Tails. A sum of many independent bounded or Gaussian terms is sub-Gaussian: it leaves `TAIL`
standard deviations of its real part with probability at most 2 exp(-TAIL^2 / 2) = 3e-14. Bias of
key switching is one draw a key, not one a result, and gets `KEY_TAIL` (probability 1e-9).
"""

import math
from typing import NamedTuple

TAIL = 8.0
KEY_TAIL = 6.1
ERROR_STD = 3.2
# Encoding and decoding go through float64: two transforms of up to 2^15 points, with a relative
# error of a few units of 2^-53 for each of its 15 stages (Higham, "Accuracy and Stability of
# Numerical Algorithms", 2nd edition, theorem 24.2), relative to the largest value.
FLOAT = 2.0**-46
_ROOT_HALF = math.sqrt(0.5)


class Switching(NamedTuple):
    """What one key switch adds to a slot, in units of the ciphertext's integers.

    Attributes:
        std: Complex standard deviation in any slot.
        bias: Complex standard deviation over keys of what gathers in slot 0.
    """

    std: float
    bias: float


def fresh_std(degree: int) -> float:
    """Return the complex deviation of a slot of a fresh ciphertext: error, and rounded encoding.

    Where coefficients are small the encoding is rounded at random, with a variance of up to 1/4.
    """
    return math.sqrt(degree * (ERROR_STD**2 + 1 / 4))


def rescale_std(degree: int) -> float:
    """Return the complex deviation that dividing by a prime and rounding adds to a slot.

    The rounding of both polynomials has variance 1/12 a coefficient; the second is multiplied by
    a ternary secret, of which two thirds are not zero.
    """
    return math.sqrt(degree * (1 + 2 * degree / 3) / 12)


def switching(degree: int, data_bits: tuple[int, ...], special_bits: int) -> Switching:
    """Return the noise of a key switch.

    Each digit lies in [0, q), not around 0. Its uniform part has variance q^2/12; its mean q/2 is a
    polynomial with N equal coefficients, of size 2N/pi in slot 0, times the error of the key.
    Dividing by the special prime rounds like a rescaling. Cheon, Kim, Kim and Song, "Homomorphic
    Encryption for Arithmetic of Approximate Numbers", Asiacrypt 2017, section 3.
    """
    digits = [2.0 ** (bits - special_bits) for bits in data_bits]
    noise = degree**2 * ERROR_STD**2 * sum(digit**2 for digit in digits) / 12
    std = math.sqrt(noise + rescale_std(degree) ** 2)
    return Switching(std, sum(digits) * degree**1.5 * ERROR_STD / math.pi)


def slot_bound(std: float, bias: float = 0.0) -> float:
    """Bound the real part of noise of a complex deviation, with what gathers in slot 0."""
    return _ROOT_HALF * (TAIL * std + KEY_TAIL * bias)


def rounding(degree: int) -> float:
    """Bound the error that the rounding of encoded weights gives a product with a unit vector.

    Weights are rounded up or down at random, by their distance: an unbiased error that takes two
    neighbouring values, sub-Gaussian with variance 1/4 whatever the weights, and independent from
    coefficient to coefficient. Rounding to the nearest has a third of that variance where weights
    are dense; where they are few, its errors agree, and weights can vanish.
    """
    return TAIL * math.sqrt(degree / 8)


def headroom(largest: float) -> float:
    """Return the bits that the largest mean magnitude of a result's slots takes from the modulus.

    A coefficient is at most the mean magnitude of the slots, has a sign, and must leave room for
    the noise of a result: 2^-6 of its size. SEAL wants the scale itself below half the modulus.
    """
    return max(1.0 + math.log2(max(largest, 2.0**-40) * (1 + 2.0**-6)), 1.001)


def summand_error(degree: int, summands: int = 1) -> float:
    """Bound the noise of an entry of a sum of fresh ciphertexts, in units of their integers."""
    return slot_bound(math.sqrt(summands) * fresh_std(degree))
