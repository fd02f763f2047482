"""What may be told of a decrypted value to someone who is not the key's owner."""

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from secure.errors import ParameterError
from secure.he._arguments import real, whole
from secure.he.errors import ReleaseError
from secure.random import SecureRandom

# Noise is a float64 in steps of 2^-50 of its deviation: 2^40 of them make a step of the grid.
_MOST_STEPS = 1024


@dataclass(frozen=True)
class ReleasePolicy:
    """Noise, rounding and a limit on the number of values that leave the owner.

    A CKKS decryption carries the noise of the ciphertext, and that noise is a linear function
    of the secret key: Li and Micciancio, "On the Security of Homomorphic Encryption on
    Approximate Numbers", Eurocrypt 2021 (ePrint 2020/1533), recovered keys from decryptions,
    SEAL's among them. Whoever sees decryptions must therefore see them behind noise that
    drowns it: Li, Micciancio, Schultz and Sorrell, "Securing Approximate Homomorphic Encryption
    Using Differential Privacy", Crypto 2022 (ePrint 2022/816).

    Args:
        bits: Fractional bits that are kept, 0 to 40.
        sigma: Standard deviation of the Gaussian noise that is added before rounding: 1 to 1,024
            steps of 2^-bits. Rounding alone proves nothing, and finer steps would show the grain
            of a float64 instead of noise.
        max_queries: Values (decrypted results) that one key releases in its life.
        error: Largest error of a decrypted entry that the noise was chosen for.
        entries: Most entries of one result that it was chosen for.

    Guarantees:
        With an error of at most `error` in each decrypted entry, `max_queries` released results
        leave an attacker a statistical advantage of at most `advantage` over the game in which
        results come without ciphertext noise (Pinsker on Gaussians of shifted mean).
        `HEClient.release` refuses a result of more entries, and parameters under which a
        layer of unit rows may err by more; for rows of norm g, `error` must be g times
        `HEParams.predicted_error()`, which only who knows the layer can see to.

    Raises:
        ParameterError: A value is out of its range, or the advantage is 1 or more: no protection.
    """

    bits: int
    sigma: float
    max_queries: int
    error: float
    entries: int

    def __post_init__(self) -> None:
        if not 0 <= whole(self.bits, "bits") <= 40:
            raise ParameterError(f"bits must be in [0, 40], got {self.bits}")
        step = 2.0**-self.bits
        if not step <= real(self.sigma, "sigma") <= _MOST_STEPS * step:
            raise ParameterError(
                f"sigma must be 1 to {_MOST_STEPS} times 2^-bits = {step:g}, got {self.sigma}"
            )
        if not 1 <= whole(self.max_queries, "max_queries") <= 1 << 40:
            raise ParameterError(f"max_queries must be in [1, 2^40], got {self.max_queries}")
        if not (real(self.error, "error") > 0 and whole(self.entries, "entries") > 0):
            raise ParameterError(
                f"error and entries must be positive, got {self.error} and {self.entries}"
            )
        if not self.advantage < 1:
            raise ParameterError(
                f"sigma {self.sigma:g} hides nothing of errors up to {self.error:g} in "
                f"{self.max_queries} results of {self.entries} entries: use for_advantage()"
            )

    @property
    def advantage(self) -> float:
        """Statistical advantage of an attacker who sees every result: `sqrt(k n) e / (2 sigma)`."""
        return math.sqrt(self.max_queries * self.entries) * self.error / (2 * self.sigma)

    def require(self, entries: int, error: float) -> None:
        """Refuse a result that this policy was not made for.

        Args:
            entries: Entries of the result.
            error: Error of an entry, of a layer of unit rows, under its parameters.

        Raises:
            ReleaseError: It has more entries, or may err by more.
        """
        if entries > self.entries:
            raise ReleaseError(
                f"the policy was made for {self.entries} entries, this result has {entries}: "
                "make one with for_advantage(entries=...)"
            )
        if error > self.error:
            raise ReleaseError(
                f"the policy was made for errors up to {self.error:.1e}, these parameters allow "
                f"{error:.1e}: make one with for_advantage(error=...)"
            )

    @classmethod
    def for_advantage(
        cls, error: float, entries: int, max_queries: int, advantage: float
    ) -> "ReleasePolicy":
        """Choose sigma and bits for an advantage.

        Args:
            error: Largest error of a decrypted entry, `HEParams.predicted_error()` times the
                largest norm of a weight row.
            entries: Entries of one result.
            max_queries: Results that will be released.
            advantage: Statistical advantage allowed in total, in (0, 1).

        Example:
            >>> policy = ReleasePolicy.for_advantage(1e-9, entries=10, max_queries=100,
            ...                                      advantage=2**-10)
            >>> policy.sigma < 1e-4
            True
        """
        if not (real(error, "error") > 0 and 0 < real(advantage, "advantage") < 1):
            raise ParameterError("error must be positive, advantage in (0, 1)")
        if min(whole(entries, "entries"), whole(max_queries, "max_queries")) < 1:
            raise ParameterError("entries and max_queries must be at least 1")
        sigma = error * math.sqrt(max_queries * entries) / (2 * advantage)
        if sigma > _MOST_STEPS:
            raise ParameterError(
                f"noise of {sigma:.1e} would be needed: choose parameters with a smaller error"
            )
        bits = min(max(math.ceil(-math.log2(sigma)), 0), 40)
        return cls(bits, max(sigma, 2.0**-bits), max_queries, error, entries)

    def apply(self, values: NDArray[np.float64], rng: SecureRandom) -> NDArray[np.float64]:
        """Return `values` with noise, rounded: same shape."""
        noisy = values + self.sigma * gaussian(rng, values.size).reshape(values.shape)
        return np.round(noisy * 2.0**self.bits) * 2.0**-self.bits


def gaussian(rng: SecureRandom, count: int) -> NDArray[np.float64]:
    """Return `count` standard normal values by the Box-Muller transform, from secret bits."""
    half = -(-count // 2)
    radius = np.sqrt(-2.0 * np.log1p(-rng.uniform(half)))
    angle = 2.0 * np.pi * rng.uniform(half)
    return np.concatenate([radius * np.cos(angle), radius * np.sin(angle)])[:count]
