"""Sums of products B·A from two sums of short vectors, which any protection can carry.

    Y = Σ w B(AΩ),   Q = orth(Y),   Z = Σ w QᵀB·A,   Σ w B·A ≈ Q·Z

(Halko, Martinsson and Tropp 2011, algorithm 4.1, with each pass a sum.) Ω is k×w and public. The
result is exact where w is at least the rank of the sum, which is at most K·r.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from fedvlm.federation.rules.layers import Layer
from fedvlm.federation.rules.protocol import Vector
from fedvlm.seeds import ExperimentSeed


@dataclass(frozen=True)
class Sketch:
    """Sketches of all layers as one vector.

    Attributes:
        layers: Where the factors lie.
        width: w; a layer's is at most its smaller side.
        seed: The experiment's seed, public.
    """

    layers: tuple[Layer, ...]
    width: int
    seed: int

    def width_of(self, layer: Layer) -> int:
        """Return a layer's width."""
        return min(self.width, layer.inputs, layer.outputs)

    @property
    def first(self) -> int:
        """Length of the first sum: d·w a layer."""
        return sum(layer.outputs * self.width_of(layer) for layer in self.layers)

    @property
    def second(self) -> int:
        """Length of the second sum: w·k a layer."""
        return sum(layer.inputs * self.width_of(layer) for layer in self.layers)

    def columns(self, adapter: Vector, number: int) -> Vector:
        """Return B(AΩ) for each layer: what a client adds to the first sum."""
        parts = []
        for place, layer in enumerate(self.layers):
            b, a = layer.factors(adapter)
            shape = (layer.inputs, self.width_of(layer))
            omega = ExperimentSeed(self.seed).numpy("sketch", number, place).standard_normal(shape)
            parts.append((b @ (a @ omega.astype(np.float32))).reshape(-1))
        return np.concatenate(parts).astype(np.float32)

    def basis(self, mean: Vector) -> Vector:
        """Return orthonormal columns that span those of the mean, layer by layer."""
        parts = []
        for layer, y in zip(self.layers, self._split(mean, "outputs"), strict=True):
            q, _ = np.linalg.qr(y.reshape(layer.outputs, -1).astype(np.float64))
            parts.append(q.reshape(-1))
        return np.concatenate(parts).astype(np.float32)

    def coordinates(self, adapter: Vector, basis: Vector) -> Vector:
        """Return QᵀB·A for each layer: what a client adds to the second sum."""
        parts = []
        for layer, q in zip(self.layers, self._split(basis, "outputs"), strict=True):
            b, a = layer.factors(adapter)
            parts.append(((q.reshape(layer.outputs, -1).T @ b) @ a).reshape(-1))
        return np.concatenate(parts).astype(np.float32)

    def products(self, basis: Vector, mean: Vector) -> list[tuple[NDArray, NDArray]]:
        """Return Q (d×w) and Z (w×k) for each layer, float64."""
        bases, sums = self._split(basis, "outputs"), self._split(mean, "inputs")
        return [
            (
                q.reshape(layer.outputs, -1).astype(np.float64),
                z.reshape(-1, layer.inputs).astype(np.float64),
            )
            for layer, q, z in zip(self.layers, bases, sums, strict=True)
        ]

    def _split(self, vector: Vector, side: str) -> list[Vector]:
        sizes = [getattr(layer, side) * self.width_of(layer) for layer in self.layers]
        return np.split(vector, np.cumsum(sizes)[:-1])


def truncated(left: NDArray, right: NDArray, rank: int) -> tuple[NDArray, NDArray]:
    """Return the best factors of a rank for a product of two factors (Eckart and Young 1936).

    Args:
        left: Shape (d, m).
        right: Shape (m, k).
        rank: r, at least 1.

    Returns:
        U·S of shape (d, r) and Vᵀ of shape (r, k), with orthonormal rows; zeros where the product
        has no more directions. Signs are set so that the same product gives the same factors.
    """
    q, upper = np.linalg.qr(left)
    u, s, v = np.linalg.svd(upper @ right, full_matrices=False)
    most = min(rank, len(s))
    b, a = (q @ u[:, :most]) * s[:most], v[:most]
    signs = np.where(a[np.arange(most), np.abs(a).argmax(axis=1)] < 0, -1.0, 1.0)
    outputs, inputs = left.shape[0], right.shape[1]
    b_full, a_full = np.zeros((outputs, rank)), np.zeros((rank, inputs))
    b_full[:, :most], a_full[:most] = b * signs, a * signs[:, None]
    return b_full, a_full
