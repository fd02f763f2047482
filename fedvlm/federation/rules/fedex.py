"""FedEx-LoRA: mean factors, and what their product misses goes to the base weights."""

from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from fedvlm.federation.rules.layers import Layout, layers_of, size_of
from fedvlm.federation.rules.protocol import Vector
from fedvlm.federation.rules.sketch import Sketch, truncated


@dataclass(frozen=True)
class FedEx:
    """Averages A and B, and adds s·(Σ w B·A − B̄·Ā) to the base weights (Singhal et al. 2025).

    The correction is kept as factors U (d×w) and V (w×k) a layer, summed up over the rounds.

    Attributes:
        layout: Name and shape of each parameter.
        width: w: width of the sketch, and rank at which the correction is kept.
        seed: The experiment's seed, public.

    Guarantees:
        U·V + B̄·Ā equals what it was before plus Σ w B·A − B·A of the round, exactly (but for
        rounding) while the sketch is as wide as the sum's rank and the correction's rank is at
        most w; beyond that it is the nearest of rank w to what the sketch holds.
    """

    layout: Layout
    width: int
    seed: int
    linear: bool = True
    passes: int = 2
    sketch: Sketch = field(init=False)
    size: int = field(init=False)

    def __post_init__(self) -> None:
        layers = layers_of(self.layout)
        object.__setattr__(self, "sketch", Sketch(layers, self.width, self.seed))
        object.__setattr__(self, "size", size_of(self.layout))

    def start(self, adapter: Vector) -> Vector:
        """Return the adapter with a correction of zero behind it."""
        behind = self.sketch.first + self.sketch.second
        return np.concatenate([adapter, np.zeros(behind, dtype=np.float32)])

    def adapter(self, state: Vector) -> Vector:
        """Return the adapter without the correction."""
        return state[: self.size]

    def corrections(self, state: Vector) -> list[tuple[NDArray, NDArray]]:
        """Return U (d×w) and V (w×k) of each layer, float64."""
        behind = state[self.size :]
        return self.sketch.products(behind[: self.sketch.first], behind[self.sketch.first :])

    def encode(self, adapter: Vector, number: int) -> Vector:
        """Return A and B, and B(AΩ) for each layer behind them."""
        return np.concatenate([adapter, self.sketch.columns(adapter, number)])

    def rest(self, state: Vector, number: int) -> Vector:
        """Return the correction."""
        return state[self.size :]

    def receive(self, own: Vector, sent: Vector, rest: Vector, number: int) -> Vector:
        """Return adapter and correction as they came."""
        return np.concatenate([sent[: self.size], rest])

    def basis(self, mean: Vector, number: int) -> Vector:
        """Return orthonormal columns for each layer."""
        return self.sketch.basis(mean[self.size :])

    def project(self, adapter: Vector, basis: Vector) -> Vector:
        """Return QᵀB·A for each layer."""
        return self.sketch.coordinates(adapter, basis)

    def decode(self, mean: Vector, state: Vector, number: int) -> Vector:
        """Return the state: the first sum alone lacks the product."""
        return state

    def finish(self, mean: Vector, coordinates: Vector, basis: Vector, state: Vector) -> Vector:
        """Return Ā and B̄, and the correction with the round's residual added to it."""
        adapter = np.asarray(mean[: self.size], dtype=np.float32)
        lefts, rights = [], []
        products = self.sketch.products(basis, coordinates)
        before = self.corrections(state)
        for layer, (u, v), (q, z) in zip(self.sketch.layers, before, products, strict=True):
            b, a = (each.astype(np.float64) for each in layer.factors(adapter))
            left, right = truncated(
                np.hstack([u, q, -b]), np.vstack([v, z, a]), self.sketch.width_of(layer)
            )
            lefts.append(left.reshape(-1))
            rights.append(right.reshape(-1))
        return np.concatenate([adapter, *lefts, *rights]).astype(np.float32)
