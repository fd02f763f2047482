"""Sums from which an attribute can be erased: what nodes add up instead of embeddings."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from fedvlm.errors import ConfigError

Floats = NDArray[np.float64]


@dataclass(frozen=True, eq=False)
class Moments:
    """Sums over examples of an embedding z (D) and a one-hot attribute a (K).

    Sums of several nodes are the sums of all their examples, so that they can go through secure
    aggregation or encryption as one vector. They are no small secret: D² numbers tell much of a
    few examples. Under differential privacy they are noised, or taken from public drawings.

    Attributes:
        count: Number of examples.
        z: Shape (D,): Σ z.
        zz: Shape (D, D): Σ z zᵀ.
        za: Shape (D, K): Σ z aᵀ.
        a: Shape (K,): Σ a.
    """

    count: float
    z: Floats
    zz: Floats
    za: Floats
    a: Floats

    @classmethod
    def of(cls, embeddings: ArrayLike, attributes: ArrayLike, values: tuple) -> "Moments":
        """Sum over examples.

        Args:
            embeddings: Shape (N, D).
            attributes: Shape (N,), each one of `values`.
            values: The K values, in an order that all nodes share.

        Raises:
            ConfigError: Embeddings that aren't finite, or an attribute that isn't in `values`.
        """
        z = np.asarray(embeddings, dtype=np.float64)
        given = np.asarray(attributes)
        a = (given[:, None] == np.asarray(values)).astype(np.float64)
        if not np.isfinite(z).all() or not (a.sum(axis=1) == 1).all():
            raise ConfigError("moments need finite embeddings, and attributes among the values")
        return cls(float(len(z)), z.sum(axis=0), z.T @ z, z.T @ a, a.sum(axis=0))

    def __add__(self, other: "Moments") -> "Moments":
        return Moments(
            self.count + other.count,
            self.z + other.z,
            self.zz + other.zz,
            self.za + other.za,
            self.a + other.a,
        )

    def to_vector(self) -> Floats:
        """Return all sums as one vector, the symmetric part once: what a protection sums."""
        upper = self.zz[np.triu_indices(len(self.z))]
        return np.concatenate([[self.count], self.z, upper, self.za.reshape(-1), self.a])

    @classmethod
    def from_vector(cls, vector: ArrayLike, dim: int, values: int) -> "Moments":
        """Read sums back from `to_vector`'s form.

        Args:
            vector: Shape (1 + D + D(D+1)/2 + DK + K,).
            dim: D.
            values: K.

        Raises:
            ConfigError: A vector of another length.
        """
        found = np.asarray(vector, dtype=np.float64)
        sizes = (1, dim, dim * (dim + 1) // 2, dim * values, values)
        if found.shape != (sum(sizes),):
            raise ConfigError(f"moments of {dim} and {values} have {sum(sizes)} numbers")
        count, z, upper, za, a = np.split(found, np.cumsum(sizes)[:-1])
        zz = np.zeros((dim, dim))
        zz[np.triu_indices(dim)] = upper
        zz = zz + np.triu(zz, 1).T
        return cls(float(count[0]), z, zz, za.reshape(dim, values), a)

    @property
    def covariance(self) -> Floats:
        """Shape (D, D)."""
        mean = self.z / self.count
        return self.zz / self.count - np.outer(mean, mean)

    @property
    def cross_covariance(self) -> Floats:
        """Shape (D, K), of the embedding with the attribute."""
        return self.za / self.count - np.outer(self.z, self.a) / self.count**2
