"""What may be told of a decrypted value to someone who is not the key's owner."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from secure.errors import ParameterError
from secure.random import SecureRandom


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
        sigma: Standard deviation of the Gaussian noise that is added before rounding; at least
            as large as one step, 2^-bits, since rounding alone proves nothing.
        max_queries: Values (decrypted results) that one key releases in its life.

    Guarantees:
        With an error of at most `e` in each decrypted entry, `k` released results leave an
        attacker a statistical advantage of at most `sqrt(k * entries) * e / (2 * sigma)` over
        the game in which results come without ciphertext noise (Pinsker on Gaussians of shifted
        mean). Choose `sigma` for the advantage that you can bear; `for_advantage` does.

    Raises:
        ParameterError: A value is out of its range.
    """

    bits: int
    sigma: float
    max_queries: int

    def __post_init__(self) -> None:
        if not 0 <= self.bits <= 40:
            raise ParameterError(f"bits must be in [0, 40], got {self.bits}")
        if not (np.isfinite(self.sigma) and self.sigma >= 2.0**-self.bits):
            raise ParameterError(
                f"sigma must be at least 2^-bits = {2.0**-self.bits:g}, got {self.sigma}"
            )
        if not 1 <= self.max_queries <= 1 << 40:
            raise ParameterError(f"max_queries must be in [1, 2^40], got {self.max_queries}")

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
        if not (error > 0 and entries > 0 and 0 < advantage < 1):
            raise ParameterError("error and entries must be positive, advantage in (0, 1)")
        sigma = error * np.sqrt(max_queries * entries) / (2 * advantage)
        bits = int(np.clip(np.ceil(-np.log2(sigma)), 0, 40))
        return cls(bits, float(max(sigma, 2.0**-bits)), max_queries)

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
