"""One party of the computation: openings, truncation, products, series and tables.

Every protocol is a `Step`: what to open, and what to make of the opened values. Steps that don't
depend on each other run in one round. All that a party ever sends is a share of a value minus a
mask that is uniform over the value's whole modulus, used once and unknown to the other party.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

import torch
from torch import Tensor

from secure.errors import ParameterError
from secure.smpc import _ring, _tables, _wire
from secure.smpc._channel import Channel, CountingChannel
from secure.smpc._items import (
    Interpolation,
    Item,
    Lookup,
    Product,
    Tensors,
    Truncation,
    Waves,
    Weighted,
)
from secure.smpc._material import CLIENT, SERVER, Material, fold_masked_weight
from secure.smpc._series import PRECISION_BITS, Series
from secure.smpc._tables import ANGLE_BITS

T = TypeVar("T")
_OFFSET = 1 << 62


@dataclass(frozen=True)
class Share:
    """One party's share of a real tensor.

    Attributes:
        value: int64, any shape; the two parties' values add up to the fixed-point number.
        bits: Its fraction bits.
    """

    value: Tensor
    bits: int

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape of the tensor."""
        return tuple(self.value.shape)

    def map(self, change: Callable[[Tensor], Tensor]) -> "Share":
        """Apply a local, linear change of shape."""
        return Share(change(self.value), self.bits)


@dataclass(frozen=True)
class Step(Generic[T]):
    """What to open (share, modulus bits) and how to go on with the opened values."""

    openings: list[tuple[Tensor, int]]
    finish: Callable[[list[Tensor]], T]


class Party:
    """A party with its link and its material.

    Args:
        role: 0 for the server (owner of the weights), 1 for the client.
        channel: Link to the other party.
        material: Correlated randomness of this inference.
        weights: On the server, `SmallMatrix` or diagonal int64 tensors by name; on the client,
            the masked weights D.
    """

    #: Whether this party only counts, on shapes.
    counts_only = False

    def __init__(
        self, role: int, channel: Channel, material: Material, weights: Mapping[str, Any]
    ) -> None:
        if role not in (SERVER, CLIENT):
            raise ParameterError(f"a role is 0 (server) or 1 (client), got {role}")
        self.role = role
        self.channel = channel
        self._material = material
        self._weights = weights

    @property
    def is_server(self) -> bool:
        """Whether this party holds the weights."""
        return self.role == SERVER

    # -- what leaves this party --------------------------------------------------------------

    def take(self, item: Item) -> Tensors:
        """Hand out the next correlated randomness, which must be this item."""
        return self._material.take(item)

    def open_all(self, openings: list[tuple[Tensor, int]]) -> list[Tensor]:
        """Exchange shares and add them up, each modulo its own 2^bits. One round."""
        mine = [(_ring.low_bits(value, bits), bits) for value, bits in openings]
        expected = [(tuple(value.shape), bits) for value, bits in mine]
        got = self.channel.exchange(_wire.pack(mine), _wire.body_bytes(expected))
        theirs = _wire.unpack(got, expected)
        return [
            _ring.low_bits(value + other, bits)
            for (value, bits), other in zip(mine, theirs, strict=True)
        ]

    def _to_server(self, value: Tensor) -> Tensor | None:
        """Send from the client to the server. One round, one way."""
        expected = [(tuple(value.shape), 64)]
        if self.role == CLIENT:
            self.channel.send(_wire.pack([(value, 64)]))
            return None
        return _wire.unpack(self.channel.receive(_wire.body_bytes(expected)), expected)[0]

    def reveal(self, share: Share) -> Tensor | None:
        """Reveal a value to the client alone: float64 there, None on the server. One round."""
        expected = [(share.shape, 64)]
        if self.is_server:
            self.channel.send(_wire.pack([(share.value, 64)]))
            return None
        got = _wire.unpack(self.channel.receive(_wire.body_bytes(expected)), expected)[0]
        return _ring.decode(share.value + got, share.bits)

    # -- steps -------------------------------------------------------------------------------

    def run(self, *steps: Step[Any]) -> list[Any]:
        """Run independent steps in one round (none, where nothing is opened)."""
        openings = [opening for step in steps for opening in step.openings]
        opened = self.open_all(openings) if openings else []
        results, at = [], 0
        for step in steps:
            count = len(step.openings)
            results.append(step.finish(opened[at : at + count]))
            at += count
        return results

    def public(self, value: Tensor | int, like: Tensor) -> Tensor:
        """Return this party's share of a public value: all of it on the server."""
        return torch.zeros_like(like) + value if self.is_server else torch.zeros_like(like)

    def opening(self, value: Tensor, mask: Tensor) -> Step[Tensor]:
        """Open value − mask."""
        return Step([(value - mask, 64)], lambda opened: opened[0])

    def truncation(self, value: Tensor, shift: int) -> Step[Tensor]:
        """Divide by 2^shift, rounding up or down at random in proportion: never more than 1 off.

        Escudero, Ghosh, Keller, Rachuri and Scholl, "Improved primitives for MPC over mixed
        arithmetic-binary circuits" (2020), over Z/2^64 with the dealer's bits.

        Args:
            value: A share of an integer under 2^62 in magnitude.
            shift: 1 to 61.
        """
        if not 1 <= shift <= 61:
            raise ParameterError(f"a truncation drops 1 to 61 bits, got {shift}")
        held = self.take(Truncation(tuple(value.shape), shift))
        masked = value + held["r"] + self.public(_OFFSET, value)

        def finish(opened: list[Tensor]) -> Tensor:
            # value + 2^62 has no top bit, so the sum with r wrapped round just where r has the
            # top bit and the sum has not.
            total = opened[0]
            unwrapped = 1 - _ring.shift_right(total, 63)
            wrap = (unwrapped << (64 - shift)) * held["top"]
            known = _ring.shift_right(total, shift) - (1 << (62 - shift))
            return self.public(known, value) - held["high"] + wrap

        return Step([(masked, 64)], finish)

    def rescale(self, share: Share, bits: int) -> Step[Share]:
        """Bring a share to other fraction bits; opens nothing where that only adds bits."""
        if bits >= share.bits:
            moved = Share(share.value << (bits - share.bits), bits)
            return Step([], lambda opened: moved)
        step = self.truncation(share.value, share.bits - bits)
        return Step(step.openings, lambda opened: Share(step.finish(opened), bits))

    def product(self, left: Tensor, right: Tensor) -> Step[Tensor]:
        """Multiply two shared tensors elementwise with broadcasting (bits add up)."""
        held = self.take(Product(tuple(left.shape), tuple(right.shape)))
        a, b = held["a"], held["b"]

        def finish(opened: list[Tensor]) -> Tensor:
            e, d = opened
            return held["ab"] + e * (b + self.public(d, b)) + a * d

        return Step([(left - a, 64), (right - b, 64)], finish)

    def series(self, share: Share, series: Series) -> Step[Share]:
        """Evaluate a trigonometric series: one round, three bytes a value.

        Args:
            share: Real values; its bits at least those of the angle.
            series: Right within its radius; beyond it the result is bounded and wrong.

        Returns:
            Step to a share with twice the precision bits of the series.
        """
        precision = PRECISION_BITS[series.function]
        angle_bits = ANGLE_BITS - series.period_bits
        if share.bits < angle_bits:
            share = Share(share.value << (angle_bits - share.bits), angle_bits)
        # Cutting the low bits of a residue is safe: a carry lost is a whole period.
        residue = _ring.low_bits(share.value, share.bits + series.period_bits)
        residue = _ring.shift_right(residue, share.bits - angle_bits)
        held = self.take(Waves(share.shape, ANGLE_BITS, series.harmonics, precision))

        def finish(opened: list[Tensor]) -> Share:
            total = self._sum_waves(opened[0], held, series, precision)
            if series.slope:
                lift = 2 * precision - 1 - share.bits
                if lift < 0:
                    raise ParameterError(
                        f"{series.function} takes up to {2 * precision - 1} bits, got {share.bits}"
                    )
                total += share.value << lift
            return Share(total, 2 * precision)

        return Step([(residue - held["t"], ANGLE_BITS)], finish)

    def _sum_waves(self, delta: Tensor, held: Tensors, series: Series, precision: int) -> Tensor:
        scale = float(1 << precision)
        cos1, sin1 = _tables.rotate(delta, ANGLE_BITS)
        cos_k, sin_k = cos1, sin1
        total = self.public(round(series.cosines[0] * scale * scale), delta)
        for k in range(1, series.harmonics + 1):
            c, s = series.cosines[k] * scale, series.sines[k - 1] * scale
            # cos(k(δ+t)) and sin(k(δ+t)), spread over cos(kt) and sin(kt).
            on_cos = (cos_k * c + sin_k * s).round().to(torch.int64)
            on_sin = (cos_k * s - sin_k * c).round().to(torch.int64)
            total += on_cos * held["cos"][k - 1] + on_sin * held["sin"][k - 1]
            if k < series.harmonics:
                cos_k, sin_k = cos_k * cos1 - sin_k * sin1, sin_k * cos1 + cos_k * sin1
        return total

    def lookup(self, index: Tensor, tables: Tensor, bits: int) -> Step[Tensor]:
        """Read public tables at a shared index.

        Args:
            index: Share of an integer; read modulo 2^bits.
            tables: int64, shape `(m, 2^bits)`.
            bits: Bits of the index.

        Returns:
            Step to a share of shape `(m, *index.shape)`.
        """
        held = self.take(Lookup(tuple(index.shape), bits))

        def finish(opened: list[Tensor]) -> Tensor:
            places = self._places(opened[0], bits)
            return torch.stack([(held["hot"] * table[places]).sum(-1) for table in tables])

        return Step([(index - held["r"], bits)], finish)

    @staticmethod
    def _places(delta: Tensor, bits: int) -> Tensor:
        """Return where each one-hot slot falls in the table: (*shape, 2^bits)."""
        slots = torch.arange(1 << bits, device=delta.device)
        return (delta.unsqueeze(-1) + slots) & ((1 << bits) - 1)

    def interpolation(
        self, index: Tensor, low: Tensor, tables: Sequence[_tables.Table]
    ) -> Step[Tensor]:
        """Evaluate a table's quadratics: one round for look-up and polynomial together.

        Args:
            index: Share of the node, an integer.
            low: Share of (argument − node) in units of the table's step · 2^−LOW_BITS.
            tables: One public table, or one for each place of the last axis (then they differ
                in their offset alone).

        Returns:
            Step to a share with VALUE_BITS − scale_bits fraction bits.
        """
        bits = tables[0].index_bits
        held = self.take(Interpolation(tuple(index.shape), bits))

        def finish(opened: list[Tensor]) -> Tensor:
            delta, e = opened
            places, e = self._places(delta, bits), e.unsqueeze(-1)
            stacked = torch.stack([_tables.quadratics(table) for table in tables], dim=1)
            chosen = stacked.to(places.device).expand(3, places.shape[-2], -1)
            t0, t1, t2 = (row.expand_as(places).gather(-1, places) for row in chosen)
            terms = held["hot"] * (t0 + e * (t1 + e * t2))
            terms += held["hot_a"] * (t1 + 2 * e * t2) + held["hot_aa"] * t2
            return terms.sum(-1)

        return Step([(index - held["r"], bits), (low - held["a"], 64)], finish)

    # -- products with the owner's weights ---------------------------------------------------

    def weighted(
        self, share: Share, name: str, outputs: int, weight_bits: int, diagonal: bool = False
    ) -> Share:
        """Multiply by a weight of the owner's: one round, and only the client sends.

        The client holds D = W − B, opened once a model; each call takes a fresh mask A. The
        client sends E = x₁ − A; the server computes (x₀ + E)·W + C₀, the client A·D + C₁, with
        C₀ + C₁ = A·B.

        Args:
            share: Shape `(..., inputs)`.
            name: Name of the weight.
            outputs: Columns of the weight (inputs, where diagonal).
            weight_bits: Its fraction bits.
            diagonal: Whether it multiplies feature by feature.
        """
        rows, inputs = share.shape[:-1], share.shape[-1]
        item = Weighted(rows, inputs, outputs, name, diagonal)
        held = self.take(item)
        bits = share.bits + weight_bits
        if self.role == CLIENT:
            self._to_server(share.value - held["a"])
            folded = held.get("u")
            if folded is None:
                folded = fold_masked_weight(item, held, self._weights)
            return Share(folded, bits)
        received = self._to_server(share.value)
        if received is None:
            raise ParameterError("the server receives the client's masked input")
        seen = share.value + received
        weight = self._weights[name]
        product = seen * weight if diagonal else weight.rmatmul(seen)
        return Share(product + held["c"], bits)


class CountingParty(Party):
    """Runs the same code on shapes alone: counts rounds and bytes, and lists the items."""

    counts_only = True

    def __init__(self, role: int, weights: Mapping[str, Any]) -> None:
        self.count = CountingChannel()
        self.items: list[Item] = []
        super().__init__(role, self.count, Material(CLIENT, bytes(32), []), weights)

    def take(self, item: Item) -> Tensors:
        """List the item and hand out shapes."""
        self.items.append(item)
        return {
            piece.name: torch.empty(piece.shape, dtype=torch.int64, device="meta")
            for piece in item.pieces
        }

    def open_all(self, openings: list[tuple[Tensor, int]]) -> list[Tensor]:
        """Count one exchange."""
        length = _wire.body_bytes([(tuple(value.shape), bits) for value, bits in openings])
        self.count.count(length, length)
        return [torch.empty_like(value) for value, _ in openings]

    def _to_server(self, value: Tensor) -> Tensor | None:
        length = _wire.body_bytes([(tuple(value.shape), 64)])
        self.count.count(
            length if self.role == CLIENT else None, length if self.is_server else None
        )
        return torch.empty_like(value)

    def reveal(self, share: Share) -> Tensor | None:
        """Count one frame from the server to the client."""
        length = _wire.body_bytes([(share.shape, 64)])
        self.count.count(length if self.is_server else None, None if self.is_server else length)
        return None if self.is_server else torch.empty(share.shape, device="meta")
