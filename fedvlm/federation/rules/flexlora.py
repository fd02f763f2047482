"""FlexLoRA: the mean product, cut back to the rank; sites may have ranks of their own."""

from dataclasses import dataclass, field

import numpy as np

from fedvlm.errors import ConfigError
from fedvlm.federation.rules.layers import Layout, layers_of
from fedvlm.federation.rules.protocol import Vector
from fedvlm.federation.rules.sketch import Sketch, truncated


@dataclass(frozen=True)
class FlexLoRA:
    """Replaces B·A by the nearest product of its rank to Σ w B·A (Bai et al. 2024, equation 3).

    Attributes:
        layout: Name and shape of each parameter.
        width: Width of the sketch.
        seed: The experiment's seed, public.
        ranks: Rank of each site by its number; empty where all have the adapter's.
        scales: LoRA's scale of each site; empty where all have one. Two different ones are
            refused: then Σ w s B·A is no scale times Σ w B·A.

    Guarantees:
        The next B·A is the best approximation of its rank to Σ w B·A where the sketch is as wide
        as that sum's rank; else of what the sketch holds of it. A site of rank r′ gets the r′
        directions of largest singular value, which are the best of its rank.

    Raises:
        ConfigError: The scales differ.
    """

    layout: Layout
    width: int
    seed: int
    ranks: tuple[int, ...] = ()
    scales: tuple[float, ...] = ()
    linear: bool = True
    passes: int = 2
    sketch: Sketch = field(init=False)

    def __post_init__(self) -> None:
        if len(set(self.scales)) > 1:
            raise ConfigError(
                f"sites scale B·A by {', '.join(f'{s:g}' for s in sorted(set(self.scales)))}: "
                "FlexLoRA needs one scale for all ranks; set lora_alpha in proportion to the rank"
            )
        layers = layers_of(self.layout)
        object.__setattr__(self, "sketch", Sketch(layers, self.width, self.seed))

    def start(self, adapter: Vector) -> Vector:
        """Return the adapter: there is no other state."""
        return adapter

    def adapter(self, state: Vector) -> Vector:
        """Return the state: it is the adapter."""
        return state

    def for_site(self, adapter: Vector, number: int) -> Vector:
        """Cut an adapter to a site's rank: rows of A and columns of B beyond it are zero.

        Both are then without gradient, so that the site trains at its rank.

        Args:
            adapter: Shape (P,).
            number: The site's number, from 0.
        """
        if not 0 <= number < len(self.ranks):
            return adapter
        cut = adapter.copy()
        for layer in self.sketch.layers:
            b, a = layer.factors(cut)
            b[:, self.ranks[number] :] = 0
            a[self.ranks[number] :] = 0
        return cut

    def encode(self, adapter: Vector, number: int) -> Vector:
        """Return B(AΩ) for each layer."""
        return self.sketch.columns(adapter, number)

    def rest(self, state: Vector, number: int) -> Vector:
        """Return the adapter: a sketch doesn't tell it."""
        return state

    def receive(self, own: Vector, sent: Vector, rest: Vector, number: int) -> Vector:
        """Return the adapter that came."""
        return rest

    def basis(self, mean: Vector, number: int) -> Vector:
        """Return orthonormal columns for each layer."""
        return self.sketch.basis(mean)

    def project(self, adapter: Vector, basis: Vector) -> Vector:
        """Return QᵀB·A for each layer."""
        return self.sketch.coordinates(adapter, basis)

    def decode(self, mean: Vector, state: Vector, number: int) -> Vector:
        """Return the state: the first sum alone decides nothing."""
        return state

    def finish(self, mean: Vector, coordinates: Vector, basis: Vector, state: Vector) -> Vector:
        """Return the factors of rank r that are nearest to Q·Z."""
        after = state.copy()
        products = self.sketch.products(basis, coordinates)
        for layer, (q, z) in zip(self.sketch.layers, products, strict=True):
            b, a = layer.factors(after)
            b[:], a[:] = truncated(q, z, layer.rank)
        return after.astype(np.float32)
