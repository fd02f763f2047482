"""LayerNorm's core, c/√(Σc²/d + ε), and the norm of an embedding: 6 rounds, 16 bytes an element.

The variance's inverse root comes from a table with a quadratic in each interval, read in one
round: it replaces the Newton steps that would start from a plain table, at the same accuracy.
The affine part belongs to the next linear layer.
"""

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from secure.smpc import _tables
from secure.smpc._items import NormScale
from secure.smpc._party import Party, Share, Step


@dataclass(frozen=True)
class NormParameters:
    """Public parameters of one normalisation.

    Attributes:
        width: Number of features d.
        centred: Whether the mean is taken out (LayerNorm) or not (length of an embedding).
        square_bits: Fraction bits of c when it is squared.
        scale_bits: Bits kept of 1/√v, relative to the largest value of the table.
        table: `rsqrt` of the sum of squares.
        gains: Where the tokens' variances lie far apart (a class token beside patches): token t
            is multiplied by 2^gains[t] beforehand, which the norm takes out again. Else empty.
    """

    width: int
    centred: bool
    square_bits: int
    scale_bits: int
    table: _tables.Table
    gains: tuple[int, ...] = ()

    @property
    def output_bits(self) -> int:
        """Fraction bits of the result."""
        return self.square_bits + self.scale_bits - self.table.scale_bits


def width_bits(width: int) -> int:
    """Return ⌈log2 width⌉."""
    return (width - 1).bit_length()


def _centre(party: Party, x: Share, p: NormParameters) -> Step[Share]:
    """Bring d·x − Σx, divided by the power of two next to d, to `square_bits`.

    Multiplying by d instead of dividing keeps the mean exact; the leftover factor
    d/2^⌈log2 d⌉ scales c and √Σc² alike.
    """
    if not p.centred:
        return party.rescale(x, p.square_bits)
    centred = x.value * p.width - x.value.sum(-1, keepdim=True)
    if p.gains:
        centred = centred << torch.tensor(p.gains, device=centred.device).unsqueeze(-1)
    return party.rescale(Share(centred, x.bits + width_bits(p.width)), p.square_bits)


def normalise(
    party: Party, x: Share, p: NormParameters, keep_bits: int | None
) -> tuple[Share, Share]:
    """Normalise over the last axis.

    Args:
        party: This party.
        x: Shape `(..., width)`; may come untruncated from a product.
        p: Public parameters.
        keep_bits: Where given, x is also brought to these bits, in the first round.

    Returns:
        The result with `p.output_bits`, and x (truncated where `keep_bits` says so).
    """
    steps = [_centre(party, x, p)]
    if keep_bits is not None and keep_bits < x.bits:
        steps.append(party.rescale(x, keep_bits))
    done = party.run(*steps)
    c, kept = done[0].value, done[-1] if len(done) > 1 else x

    held = party.take(NormScale(tuple(c.shape)))
    (e,) = party.run(party.opening(c, held["a"]))
    squares = 2 * (e * held["a"]).sum(-1, keepdim=True) + held["squares"]
    squares = squares + party.public((e * e).sum(-1, keepdim=True), squares)

    y = _inverse_root(party, squares.squeeze(-1), p).unsqueeze(-1)
    (d,) = party.run(party.opening(y, held["b"]))
    value = held["ab"] + e * (held["b"] + party.public(d, y)) + held["a"] * d
    return Share(value, p.output_bits), kept


def _inverse_root(party: Party, squares: Tensor, p: NormParameters) -> Tensor:
    """Return 1/√(Σc²/d + ε) with `scale_bits` relative to the table's largest: three rounds."""
    node_drop = 2 * p.square_bits - (p.table.index_bits - p.table.top_bits)
    index, fine = party.run(
        party.truncation(squares, node_drop),
        party.truncation(squares, node_drop - _tables.LOW_BITS),
    )
    low = fine - (index << _tables.LOW_BITS)
    # A gain scales the variance by its square, and must scale epsilon along.
    tables = [replace(p.table, offset=p.table.offset * 4.0**gain) for gain in p.gains]
    (y,) = party.run(party.interpolation(index, low, tables or [p.table]))
    (y,) = party.run(party.truncation(y, _tables.VALUE_BITS - p.scale_bits))
    return y
