"""A program's fixed-point arithmetic in one process: what two parties would compute, unshared.

The protocols' own code runs, with one party that holds every value whole and whose masks are zero:
the same truncations, tables, series and sums modulo 2^64, so that a range that is too narrow or a
number with too few bits shows here as it would between two parties. Only the rounding differs: a
truncation rounds to the nearest here and up or down at random there.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from secure.errors import ParameterError
from secure.smpc import _ring, _tables
from secure.smpc._channel import CountingChannel
from secure.smpc._execute import Executor, Owner
from secure.smpc._items import Item, Tensors, Waves
from secure.smpc._material import SERVER, Material
from secure.smpc._party import Party, Share, Step
from secure.smpc.program import Program


class WholeParty(Party):
    """The one party of a run without secrets: takes every mask as zero and sends nothing."""

    def __init__(self, weights: Mapping[str, Any]) -> None:
        super().__init__(SERVER, CountingChannel(), Material(SERVER, bytes(32), [], bytes), weights)

    def take(self, item: Item) -> Tensors:
        """Return the item for masks of zero: harmonics of angle 0, and zeros."""
        held = {piece.name: torch.zeros(()).long().expand(piece.shape) for piece in item.pieces}
        if isinstance(item, Waves):
            held["cos"] = torch.tensor(1 << item.precision).expand(held["cos"].shape)
        return held

    def open_all(self, openings: list[tuple[Tensor, int]]) -> list[Tensor]:
        """Return the values, each modulo its own 2^bits."""
        return [_ring.low_bits(value, bits) for value, bits in openings]

    def reveal(self, share: Share) -> Tensor | None:
        """Return the value in float64."""
        return _ring.decode(share.value, share.bits)

    def truncation(self, value: Tensor, shift: int) -> Step[Tensor]:
        """Divide by 2^shift, rounding to the nearest; the sum wraps round as between two."""
        if not 1 <= shift <= 61:
            raise ParameterError(f"a truncation drops 1 to 61 bits, got {shift}")
        lifted = value + (1 << 62) + (1 << (shift - 1))
        rounded = _ring.shift_right(lifted, shift) - (1 << (62 - shift))
        return Step([], lambda opened: rounded)

    def lookup(self, index: Tensor, tables: Tensor, bits: int) -> Step[Tensor]:
        """Read public tables at an index, modulo their size."""
        found = tables[:, _ring.low_bits(index, bits)]
        return Step([], lambda opened: found)

    def interpolation(
        self, index: Tensor, low: Tensor, tables: Sequence[_tables.Table]
    ) -> Step[Tensor]:
        """Evaluate a table's quadratics."""
        places = _ring.low_bits(index, tables[0].index_bits).unsqueeze(-1)
        stacked = torch.stack([_tables.quadratics(table) for table in tables], dim=1)
        rows = stacked.expand(3, places.shape[-2], -1)
        t0, t1, t2 = (
            row.expand(*places.shape[:-1], -1).gather(-1, places).squeeze(-1) for row in rows
        )
        value = t0 + low * (t1 + low * t2)
        return Step([], lambda opened: value)

    def weighted(
        self, share: Share, name: str, outputs: int, weight_bits: int, diagonal: bool = False
    ) -> Share:
        """Multiply by a weight of the owner's."""
        weight = self._weights[name]
        product = share.value * weight if diagonal else weight.rmatmul(share.value)
        return Share(product, share.bits + weight_bits)


def evaluate(program: Program, owner: Owner, raw: Mapping[str, Tensor]) -> Tensor:
    """Return a program's output as two parties would compute it, but for the last bits.

    Args:
        program: The program.
        owner: The server's secrets.
        raw: Raw inputs by field, each of shape `(batch, ...)`.

    Returns:
        float64, shape `(batch, *program.output_shape)`.
    """
    size = len(raw[program.inputs[0].field])
    executor = Executor(program, WholeParty(owner.ready), owner, size)
    result = executor.run(executor.inputs(raw))
    return _ring.decode(result.value, result.bits)
