"""Attention on shares: softmax by renormalised squaring, started by a series for exp.

For one row of scores x with n valid keys:

1. take out the mean (up to a constant of the row, which softmax ignores) and set u = x/2^k;
2. e^u by a trigonometric series, one round;
3. k times: Q ← (Q/ΣQ)², with 1/(ΣQ)² from a coarse table: its error is the row's alone, and the
   next division takes it out;
4. softmax = Q/ΣQ, with an accurate 1/ΣQ; the division is done after the product with V, which has
   fewer elements to open.

7 + 3k rounds with both matrix products, every truncation included.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from secure.smpc import _ring, _tables
from secure.smpc._items import MatrixProduct, Product, SquareScale
from secure.smpc._party import Party, Share
from secure.smpc._series import PRECISION_BITS, Series

#: Most keys of a row.
MAX_KEYS = 1024
_COARSE_BITS = 4
_MEAN_GAIN_BITS = 2
_SQUARE_GAIN_BITS = 3
#: Q/ΣQ is at most 1, and the coarse table lets (Q/ΣQ)² sum to 1.5 times that: 2·28 + 4 bits.
_MIDDLE_BITS = 28
#: Bits of the accurate table's index where few keys would leave it coarse.
_LEAST_INDEX_BITS = 8


@dataclass(frozen=True)
class SoftmaxParameters:
    """Public parameters of one softmax.

    Attributes:
        keys: Number of keys N.
        causal: Whether query i sees only the keys up to i.
        squarings: k, at least 1.
        series: Series for exp on ±(range of the scores)/2^k.
        top_bits: e^u stays under 2^top_bits.
        centre_bits: Fraction bits of 1/n where the mean is taken out.
        last_bits: Fraction bits of the last Q, before the product with V.
        inverse_bits: Fraction bits of 1/ΣQ.
        padding: What a padded key's score is lowered by; 0 where there's no padding.
    """

    keys: int
    causal: bool
    squarings: int
    series: Series
    top_bits: int
    centre_bits: int
    last_bits: int
    inverse_bits: int
    padding: int = 0

    @property
    def key_bits(self) -> int:
        """⌈log2 keys⌉, at least 1."""
        return max(1, (self.keys - 1).bit_length())

    @property
    def peak_bits(self) -> int:
        """e^u is at most 2^peak_bits times its row's mean, which is at least 1 and e^u's n-th."""
        return min(self.top_bits, self.key_bits)


def _valid_counts(p: SoftmaxParameters, queries: int) -> Tensor:
    """Return the number of keys that each query sees: `(queries, 1)`."""
    if p.causal:
        return torch.arange(1, queries + 1).unsqueeze(-1)
    return torch.full((queries, 1), p.keys)


def _ratio(numerator: int, counts: Tensor, bits: int) -> Tensor:
    """Return round(numerator · 2^bits / counts), in integers."""
    return (2 * (numerator << bits) + counts) // (2 * counts)


def _mask(p: SoftmaxParameters, queries: int) -> Tensor | None:
    return torch.ones(queries, p.keys, dtype=torch.int64).tril() if p.causal else None


def exponentials(party: Party, scores: Share, p: SoftmaxParameters) -> tuple[Tensor, Tensor, int]:
    """Steps 1 and 2: e^u/2^top_bits and the table index of its row mean.

    Args:
        party: This party.
        scores: Shape `(..., queries, keys)`.
        p: Public parameters.

    Returns:
        Q of `first_bits(p)` bits, the index share, and those bits.
    """
    queries, device = scores.shape[-2], scores.value.device
    counts = _valid_counts(p, queries).to(device)
    mask = _mask(p, queries)
    valid = scores.value if mask is None else scores.value * mask.to(device)
    # The series reads its argument modulo its period, so these products may leave the ring: what
    # must be small is only how far 1/n is off, times the row's sum.
    mean = valid.sum(-1, keepdim=True) * _ratio(1, counts, p.centre_bits)
    centred = (scores.value << p.centre_bits) - mean
    u = Share(centred, scores.bits + p.centre_bits + p.squarings)
    (power,) = party.run(party.series(u, p.series))
    raw = power.value if mask is None else power.value * mask.to(device)
    raw_bits = 2 * PRECISION_BITS["exp"] + p.top_bits
    gain = _ratio(1 << p.key_bits, counts, _MEAN_GAIN_BITS)
    total = raw.sum(-1, keepdim=True) * gain
    total_bits = raw_bits + p.key_bits + _MEAN_GAIN_BITS
    bits = first_bits(p)
    q, index = party.run(
        party.truncation(raw, raw_bits - bits),
        party.truncation(total, total_bits - (mean_table(p).index_bits - 1)),
    )
    return q, index, bits


def first_bits(p: SoftmaxParameters) -> int:
    """Return the fraction bits of Q before the first squaring: what the ring leaves.

    With m its row's mean, Σ(Q/m)² is at most n · 2^peak_bits, and up to an eighth more for the
    coarse 1/m²; scaled by 2^key_bits/n and the fraction bits it must stay under 2^62.
    """
    fixed = p.key_bits + p.peak_bits + _COARSE_BITS + _SQUARE_GAIN_BITS
    return min(_MIDDLE_BITS, (_ring.LIMIT_BITS - fixed) // 2)


def mean_table(p: SoftmaxParameters) -> _tables.Table:
    """Return the coarse 1/m² for the row mean m of e^u/2^top_bits."""
    return _tables.Table(
        "inverse_square", 1, p.top_bits + 4, 2.0 ** -(p.top_bits + 1), 2 * p.top_bits + 2
    )


def sum_table(p: SoftmaxParameters, kind: str) -> _tables.Table:
    """Return the coarse 1/s² or the accurate 1/s for the sum s of squares, in [1/2N, 2)."""
    coarse = kind == "inverse_square"
    floor_bits = p.key_bits + 1
    index_bits = p.key_bits + 4 if coarse else max(p.key_bits + 4, _LEAST_INDEX_BITS)
    return _tables.Table(kind, 1, index_bits, 2.0**-floor_bits, (1 + coarse) * floor_bits)


def _square_and_scale(party: Party, q: Tensor, index: Tensor, table: _tables.Table) -> Tensor:
    """Return q²·w with w = table[index]: two rounds, q opened once."""
    held = party.take(SquareScale(tuple(q.shape)))
    a, b = held["a"], held["b"]
    coarse = _tables.constants(table, _COARSE_BITS).to(q.device)
    e, w = party.run(
        party.opening(q, a), party.lookup(index, coarse.unsqueeze(0), table.index_bits)
    )
    (d,) = party.run(party.opening(w[0], b))
    squares = held["aa"] + 2 * e * a
    scaled = held["aab"] + 2 * e * held["ab"] + e * e * (b + party.public(d, b))
    return scaled + squares * d


def softmax_numerators(
    party: Party, scores: Share, p: SoftmaxParameters
) -> tuple[Share, Tensor, Tensor]:
    """Steps 1 to 3.

    Returns:
        Q, and the index and the finer argument of ΣQ for `sum_table(p, "inverse")`.
    """
    q, index, bits = exponentials(party, scores, p)
    counts = _valid_counts(p, scores.shape[-2]).to(q.device)
    raw = _square_and_scale(party, q, index, mean_table(p))
    # (q/m)² sums to n · 2^peak_bits at most: bring that to 1 for every number n of valid keys.
    raw = raw * _ratio(1 << p.key_bits, counts, _SQUARE_GAIN_BITS)
    raw_bits = 2 * bits + _COARSE_BITS + p.key_bits + p.peak_bits + _SQUARE_GAIN_BITS
    coarse = sum_table(p, "inverse_square")
    for _ in range(p.squarings - 1):
        q, index = party.run(
            party.truncation(raw, raw_bits - _MIDDLE_BITS),
            party.truncation(raw.sum(-1, keepdim=True), raw_bits - (coarse.index_bits - 1)),
        )
        raw = _square_and_scale(party, q, index, coarse)
        raw_bits = 2 * _MIDDLE_BITS + _COARSE_BITS
    total = raw.sum(-1, keepdim=True)
    node_drop = raw_bits - (sum_table(p, "inverse").index_bits - 1)
    q, index, fine = party.run(
        party.truncation(raw, raw_bits - p.last_bits),
        party.truncation(total, node_drop),
        party.truncation(total, node_drop - _tables.LOW_BITS),
    )
    return Share(q, p.last_bits), index, fine - (index << _tables.LOW_BITS)


def attend(
    party: Party,
    q: Share,
    k: Share,
    v: Share,
    p: SoftmaxParameters,
    mask: Tensor | None = None,
    bias: Callable[[Tensor, int], Tensor] | None = None,
) -> Share:
    """Return softmax(q·kᵀ + bias)·v.

    Args:
        party: This party.
        q: Shape `(..., queries, d)`, already scaled by 1/√d.
        k: Shape `(..., keys, d)`.
        v: Shape `(..., keys, d)`.
        p: Public parameters.
        mask: Share of 0 for a key and −1 for padding, broadcast to `(..., queries, keys)`: secret,
            and free, as the scores are lowered by a public multiple of it.
        bias: Returns this party's share of what is added to the scores, for scores like these
            and their fraction bits.

    Returns:
        Shape `(..., queries, d)`, with the bits of v.
    """
    kt = k.value.transpose(-1, -2)
    scores_item = MatrixProduct(q.shape, tuple(kt.shape))
    mix_item = MatrixProduct((*q.shape[:-1], p.keys), v.shape)
    held, mix = party.take(scores_item), party.take(mix_item)
    e, f, v_open = party.run(
        party.opening(q.value, held["a"]),
        party.opening(kt, held["b"]),
        party.opening(v.value, mix["b"]),
    )
    scores = Share(matrix_product(party, held, e, f), q.bits + k.bits)
    if bias is not None:
        scores = Share(scores.value + bias(scores.value, scores.bits), scores.bits)
    if mask is not None:
        scores = Share(scores.value + mask * (p.padding << scores.bits), scores.bits)
    numerators, index, low = softmax_numerators(party, scores, p)

    table = sum_table(p, "inverse")
    e, inverse = party.run(
        party.opening(numerators.value, mix["a"]), party.interpolation(index, low, [table])
    )
    context = matrix_product(party, mix, e, v_open)
    context_bits = numerators.bits + v.bits
    scale = party.take(Product(tuple(context.shape), tuple(inverse.shape)))
    drop = _tables.VALUE_BITS - table.scale_bits - p.inverse_bits
    inverse, e = party.run(party.truncation(inverse, drop), party.opening(context, scale["a"]))
    (d,) = party.run(party.opening(inverse, scale["b"]))
    result = scale["ab"] + e * (scale["b"] + party.public(d, inverse)) + scale["a"] * d
    (result,) = party.run(party.truncation(result, context_bits + p.inverse_bits - v.bits))
    return Share(result, v.bits)


def matrix_product(party: Party, held: dict[str, Tensor], e: Tensor, f: Tensor) -> Tensor:
    """Finish a Beaver product: c + e·(b + f) + a·f, as one product of stacked matrices."""
    right = held["b"] + party.public(f, held["b"])
    return held["c"] + _ring.matmul(
        torch.cat([e, held["a"]], dim=-1), torch.cat([right, f.expand_as(right)], dim=-2)
    )
