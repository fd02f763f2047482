"""Plaintexts from their coefficients, in integers of any length.

SEAL's encoder goes through float64: from 2^53 on it leaves the low bits of a coefficient zero, and
writes rounding errors where a periodic vector has no coefficient at all. Where a layer's weights
must not show in those bits, plaintexts are made here.
"""

from typing import Any

import numpy as np
from numpy.typing import NDArray

from secure.he._seal import engine
from secure.he.params import HEParams
from secure.random import SecureRandom

_INT64 = 2.0**62


def encode_periodic(
    params: HEParams,
    values: NDArray,
    scale: float,
    level: int,
    dither: SecureRandom | None = None,
) -> Any:
    """Encode values that repeat in the slots, so that every slot repeats them exactly.

    A polynomial in X^(N / 2P) has slots of period P, whatever its coefficients are rounded to.

    Args:
        params: Encryption parameters.
        values: One period, shape `(P,)`, P a power of two and at most the number of slots.
        scale: Scale of the plaintext.
        level: Level of what it meets.
        dither: Rounds coefficients up or down at random, by their distance.

    Returns:
        SEAL's plaintext; it may be zero.
    """
    degree = params.poly_modulus_degree
    if len(values) == 1:
        # The slots' roots have two values of X^(N / 2): a period of two holds what one can't.
        values = np.repeat(values, 2)
    rounded = _coefficients(values, scale, dither)
    period = len(rounded)
    if np.abs(rounded).max() < _INT64:
        integers: NDArray = rounded.astype(np.int64)
    else:
        integers = np.array([int(each) for each in rounded], dtype=object)
    seal = engine(params)
    primes = seal.primes(level)
    coefficients = np.zeros((len(primes), degree), dtype=np.uint64)
    coefficients[:, :: degree // period] = residues_of(integers, primes)
    return seal.plaintext(seal.to_ntt(coefficients, level), level, scale)


def residues_of(integers: NDArray, primes: list[int]) -> NDArray[np.uint64]:
    """Return integers modulo each prime: shape `(primes, count)`."""
    return np.stack([(integers % prime).astype(np.uint64) for prime in primes])


def _coefficients(
    values: NDArray, scale: float, dither: SecureRandom | None
) -> NDArray[np.float64]:
    """Return the rounded coefficients `(2P,)` of the polynomial with these slots."""
    period = len(values)
    at = np.zeros(4 * period, dtype=np.complex128)
    exponents = [1]
    for _ in range(period - 1):
        exponents.append(exponents[-1] * 3 % (4 * period))
    at[exponents] = values
    exact = np.fft.fft(at).real[: 2 * period] * (scale / period)
    if dither is None:
        return np.rint(exact)
    return np.floor(exact + dither.uniform(2 * period))
