"""Where the LoRA factors of each layer lie in an adapter's vector. NumPy only."""

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from fedvlm.errors import ConfigError

Layout = tuple[tuple[str, tuple[int, ...]], ...]
"""Name and shape of each parameter in a vector's order: `FlatView.layout`."""
A, B = ".lora_A.", ".lora_B."


@dataclass(frozen=True)
class Layer:
    """One layer's factors: its weight changes by s·B·A.

    Attributes:
        name: The module that both belong to.
        inputs: k, columns of A.
        outputs: d, rows of B.
        rank: r, rows of A and columns of B.
        a_start: Where A (r×k, by rows) begins in the vector.
        b_start: Where B (d×r, by rows) begins.
    """

    name: str
    inputs: int
    outputs: int
    rank: int
    a_start: int
    b_start: int

    def factors(self, vector: NDArray) -> tuple[NDArray, NDArray]:
        """Return B of shape (d, r) and A of shape (r, k), as views of the vector."""
        a = vector[self.a_start : self.a_start + self.rank * self.inputs]
        b = vector[self.b_start : self.b_start + self.outputs * self.rank]
        return b.reshape(self.outputs, self.rank), a.reshape(self.rank, self.inputs)


def layers_of(layout: Layout) -> tuple[Layer, ...]:
    """Pair the factors of each layer.

    Raises:
        ConfigError: A parameter is no LoRA factor, or one of a pair is missing or doesn't fit.
    """
    found: dict[str, dict[str, tuple[int, tuple[int, ...]]]] = {}
    start = 0
    for name, shape in layout:
        kind = A if A in name else B if B in name else None
        if kind is None or len(shape) != 2:
            raise ConfigError(f"{name} of shape {shape} is no LoRA factor of a linear layer")
        found.setdefault(name.partition(kind)[0], {})[kind] = (start, shape)
        start += math.prod(shape)
    layers = []
    for name, pair in found.items():
        if len(pair) != 2 or pair[A][1][0] != pair[B][1][1]:
            raise ConfigError(f"{name} has no pair of LoRA factors A (r×k) and B (d×r) that train")
        (a_start, (rank, inputs)), (b_start, (outputs, _)) = pair[A], pair[B]
        layers.append(Layer(name, inputs, outputs, rank, a_start, b_start))
    return tuple(layers)


def size_of(layout: Layout) -> int:
    """Return P, the length of the vector."""
    return sum(math.prod(shape) for _, shape in layout)


def places(layout: Layout, factor: str) -> NDArray[np.bool_]:
    """Mark the coordinates of one factor.

    Args:
        layout: Name and shape of each parameter.
        factor: "A" or "B".

    Returns:
        Shape (P,), bool.
    """
    kind = {"A": A, "B": B}[factor]
    return np.concatenate([np.full(math.prod(shape), kind in name) for name, shape in layout])
