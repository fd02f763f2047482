"""Correlated randomness: what the dealer hands out, one class a kind.

An item is a list of tensors. Three kinds of tensor:

- *mask*: uniform; each party draws its own share from its own key, so neither knows the mask;
- *client mask*: uniform; the client draws it whole from its key, the server has nothing of it;
- *derived*: a function of the masks; the client's share is drawn from its key, the server's share
  is the function minus that: the only tensor that the dealer must send.

So the client's material is a 32-byte key, the server's a key and the derived shares. Each share
that a party holds is uniform on its own and independent of the other party's masks.
"""

import math
from dataclasses import dataclass
from functools import cached_property
from typing import NamedTuple

import torch
from torch import Tensor

from secure.smpc import _ring

Shape = tuple[int, ...]
Tensors = dict[str, Tensor]


class Piece(NamedTuple):
    """One tensor of an item: its name, shape, modulus 2^bits, and `mask`, `client` or `derived`."""

    name: str
    shape: Shape
    bits: int = 64
    kind: str = "mask"


def derived(name: str, shape: Shape) -> Piece:
    """Build a derived piece over the whole ring."""
    return Piece(name, shape, 64, "derived")


@dataclass(frozen=True)
class Item:
    """Base of every kind of correlated randomness. Used for one protocol run, then gone."""

    @property
    def pieces(self) -> tuple[Piece, ...]:
        """List the tensors in the order in which they are drawn."""
        raise TypeError(f"{type(self).__name__} is abstract")

    def derive(self, masks: Tensors, weights: Tensors) -> Tensors:
        """Compute the derived tensors from the whole masks (`weights`: the weight masks)."""
        raise TypeError(f"{type(self).__name__} is abstract")

    @cached_property
    def dealt_bytes(self) -> int:
        """Bytes that the dealer sends to the server for this item (the client's come by key)."""
        return sum(8 * math.prod(p.shape) for p in self.pieces if p.kind == "derived")


@dataclass(frozen=True)
class Truncation(Item):
    """Mask r, its upper part r ≫ shift and its top bit, for a truncation that can't fail."""

    shape: Shape
    shift: int

    @property
    def pieces(self) -> tuple[Piece, ...]:
        """Mask r; derived high, top."""
        return Piece("r", self.shape), derived("high", self.shape), derived("top", self.shape)

    def derive(self, masks: Tensors, weights: Tensors) -> Tensors:
        """Compute high = r ≫ shift and top = msb(r)."""
        r = masks["r"]
        return {"high": _ring.shift_right(r, self.shift), "top": _ring.shift_right(r, 63)}


@dataclass(frozen=True)
class Weighted(Item):
    """A fresh client mask A and shares of A·B, B the lasting mask of one weight matrix.

    `diagonal` is for a weight that multiplies feature by feature.
    """

    rows: Shape
    inputs: int
    outputs: int
    weight: str
    diagonal: bool = False

    @property
    def pieces(self) -> tuple[Piece, ...]:
        """Client mask a; derived c = a·B."""
        return (
            Piece("a", (*self.rows, self.inputs), 64, "client"),
            derived("c", (*self.rows, self.outputs)),
        )

    def derive(self, masks: Tensors, weights: Tensors) -> Tensors:
        """Compute c = a·B (or a∘B)."""
        mask = weights[self.weight]
        if self.diagonal:
            return {"c": masks["a"] * mask}
        return {"c": _ring.matmul(masks["a"], mask)}


@dataclass(frozen=True)
class MatrixProduct(Item):
    """Beaver triple of a batched matrix product."""

    left: Shape
    right: Shape

    @property
    def pieces(self) -> tuple[Piece, ...]:
        """Masks a, b; derived c = a·b."""
        product = (*self.left[:-1], self.right[-1])
        return Piece("a", self.left), Piece("b", self.right), derived("c", product)

    def derive(self, masks: Tensors, weights: Tensors) -> Tensors:
        """Compute c = a·b."""
        return {"c": _ring.matmul(masks["a"], masks["b"])}


@dataclass(frozen=True)
class Product(Item):
    """Beaver triple of a broadcast elementwise product."""

    left: Shape
    right: Shape

    @property
    def pieces(self) -> tuple[Piece, ...]:
        """Masks a, b; derived ab."""
        shape = tuple(torch.broadcast_shapes(self.left, self.right))
        return Piece("a", self.left), Piece("b", self.right), derived("ab", shape)

    def derive(self, masks: Tensors, weights: Tensors) -> Tensors:
        """Compute ab."""
        return {"ab": masks["a"] * masks["b"]}


@dataclass(frozen=True)
class NormScale(Item):
    """For Σx² and then x·y by one opening of x: masks a (like x), b (a row), Σa², ab."""

    shape: Shape

    @property
    def pieces(self) -> tuple[Piece, ...]:
        """Masks a, b; derived squares = Σa², ab."""
        row = (*self.shape[:-1], 1)
        return (
            Piece("a", self.shape),
            Piece("b", row),
            derived("squares", row),
            derived("ab", self.shape),
        )

    def derive(self, masks: Tensors, weights: Tensors) -> Tensors:
        """Compute Σa² over the last axis and ab."""
        a = masks["a"]
        return {"squares": (a * a).sum(-1, keepdim=True), "ab": a * masks["b"]}


@dataclass(frozen=True)
class SquareScale(Item):
    """For x²·w by one opening each of x and of the row w: masks a, b and ab, a², a²b."""

    shape: Shape

    @property
    def pieces(self) -> tuple[Piece, ...]:
        """Masks a, b; derived ab, aa, aab."""
        return (
            Piece("a", self.shape),
            Piece("b", (*self.shape[:-1], 1)),
            derived("ab", self.shape),
            derived("aa", self.shape),
            derived("aab", self.shape),
        )

    def derive(self, masks: Tensors, weights: Tensors) -> Tensors:
        """Compute ab, a², a²b."""
        a, b = masks["a"], masks["b"]
        return {"ab": a * b, "aa": a * a, "aab": a * a * b}


@dataclass(frozen=True)
class Waves(Item):
    """A uniform residue t modulo 2^bits and its harmonics cos(kωt), sin(kωt)."""

    shape: Shape
    bits: int
    harmonics: int
    precision: int

    @property
    def pieces(self) -> tuple[Piece, ...]:
        """Mask t modulo 2^bits; derived cos, sin of shape (K, *shape)."""
        waves = (self.harmonics, *self.shape)
        return Piece("t", self.shape, self.bits), derived("cos", waves), derived("sin", waves)

    def derive(self, masks: Tensors, weights: Tensors) -> Tensors:
        """Compute the harmonics of t."""
        angle = masks["t"].to(torch.float64) * (2 * math.pi / 2**self.bits)
        orders = torch.arange(1, self.harmonics + 1, dtype=torch.float64)
        angles = orders.view(-1, *[1] * angle.dim()) * angle
        return {
            "cos": _ring.encode(torch.cos(angles), self.precision),
            "sin": _ring.encode(torch.sin(angles), self.precision),
        }


@dataclass(frozen=True)
class Lookup(Item):
    """A uniform index r modulo 2^bits as a one-hot row: reads any public table at x by x − r."""

    shape: Shape
    bits: int

    @property
    def pieces(self) -> tuple[Piece, ...]:
        """Mask r modulo 2^bits; derived hot of shape (*shape, 2^bits)."""
        return Piece("r", self.shape, self.bits), derived("hot", (*self.shape, 1 << self.bits))

    def derive(self, masks: Tensors, weights: Tensors) -> Tensors:
        """Compute the one-hot row of r."""
        return {"hot": torch.nn.functional.one_hot(masks["r"], 1 << self.bits)}


@dataclass(frozen=True)
class Interpolation(Item):
    """A `Lookup` whose entries are quadratics in a second value, opened minus the mask a."""

    shape: Shape
    bits: int

    @property
    def pieces(self) -> tuple[Piece, ...]:
        """Masks r modulo 2^bits and a; derived hot, hot·a, hot·a²."""
        rows = (*self.shape, 1 << self.bits)
        return (
            Piece("r", self.shape, self.bits),
            Piece("a", self.shape),
            derived("hot", rows),
            derived("hot_a", rows),
            derived("hot_aa", rows),
        )

    def derive(self, masks: Tensors, weights: Tensors) -> Tensors:
        """Compute the one-hot row of r, and that row times a and a²."""
        hot = torch.nn.functional.one_hot(masks["r"], 1 << self.bits)
        a = masks["a"].unsqueeze(-1)
        return {"hot": hot, "hot_a": hot * a, "hot_aa": hot * (a * a)}


@dataclass(frozen=True)
class Comparison(Item):
    """A uniform r modulo 2^bits, its top bit, and the other bits as one-hot digits of 4 bits."""

    shape: Shape
    bits: int

    @property
    def digits(self) -> int:
        """Number of 4-bit digits under the top bit."""
        return -(-(self.bits - 1) // 4)

    @property
    def pieces(self) -> tuple[Piece, ...]:
        """Mask r modulo 2^bits; derived top, hot of shape (*shape, digits, 16)."""
        return (
            Piece("r", self.shape, self.bits),
            derived("top", self.shape),
            derived("hot", (*self.shape, self.digits, 16)),
        )

    def derive(self, masks: Tensors, weights: Tensors) -> Tensors:
        """Compute the top bit and the one-hot digits of the rest, lowest first."""
        r = masks["r"]
        rest = _ring.low_bits(r, self.bits - 1)
        places = [(rest >> (4 * i)) & 15 for i in range(self.digits)]
        hot = torch.nn.functional.one_hot(torch.stack(places, -1), 16)
        return {"top": r >> (self.bits - 1), "hot": hot}
