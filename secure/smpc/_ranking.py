"""Which scores are largest, without showing a score: every pair is compared, ranks are read off.

Comparisons are exact: the carry out of a masked sum is worked out from one-hot digits of the
mask, in a tree.
"""

import torch
from torch import Tensor

from secure.smpc import _ring
from secure.smpc._items import Comparison
from secure.smpc._party import Party, Share

#: Scores are compared with 16 fraction bits, and must be under 2^13 in magnitude.
SCORE_BITS = 16
SCORE_LIMIT_BITS = 13
_RANGE_BITS = 31


def _less_than(party: Party, digits: Tensor, hot: Tensor) -> Tensor:
    """Return shares of [public < shared] from 4-bit digits, lowest first.

    Args:
        party: This party.
        digits: Public digits, shape `(..., m)`.
        hot: Shares of the one-hot digits, shape `(..., m, 16)`.
    """
    values = torch.arange(16, device=digits.device)
    place = digits.unsqueeze(-1)
    less = (hot * (values > place)).sum(-1)
    equal = (hot * (values == place)).sum(-1)
    state = torch.stack([less, equal], dim=-1)
    while state.shape[-2] > 1:
        pairs = state.shape[-2] // 2
        low, high = state[..., 0 : 2 * pairs : 2, :], state[..., 1 : 2 * pairs : 2, :]
        (joined,) = party.run(party.product(high[..., 1:].contiguous(), low.contiguous()))
        merged = joined + torch.cat([high[..., :1], torch.zeros_like(high[..., :1])], dim=-1)
        state = torch.cat([merged, state[..., 2 * pairs :, :]], dim=-2)
    return state[..., 0, 0]


def at_least_zero(party: Party, value: Tensor) -> Tensor:
    """Return shares of [value >= 0] for |value| < 2^30: integers 0 or 1, in five rounds."""
    item = Comparison(tuple(value.shape), _RANGE_BITS)
    held = party.take(item)
    lifted = value + party.public(1 << (_RANGE_BITS - 1), value)
    (total,) = party.open_all([(lifted + held["r"], _RANGE_BITS)])
    rest = _ring.low_bits(total, _RANGE_BITS - 1)
    digits = torch.stack([(rest >> (4 * i)) & 15 for i in range(item.digits)], dim=-1)
    borrow = _less_than(party, digits, held["hot"])
    top = held["top"]
    (both,) = party.run(party.product(top, borrow))
    flip = top + borrow - 2 * both
    public_top = total >> (_RANGE_BITS - 1)
    return flip * (1 - 2 * public_top) + party.public(public_top, flip)


def top_k(party: Party, scores: Share, k: int) -> Tensor:
    """Return shares of the indices of the k largest scores, best first.

    Args:
        party: This party.
        scores: Shape `(batch, n)`, magnitudes under 2^13.
        k: 1 to n.

    Returns:
        int64 shares, shape `(batch, k)`. Equal scores rank by index, the lower first.
    """
    n = scores.shape[-1]
    if n == 1:
        return torch.zeros_like(scores.value)
    if scores.bits != SCORE_BITS:
        (scores,) = party.run(party.rescale(scores, SCORE_BITS))
    first, second = torch.triu_indices(n, n, offset=1, device=scores.value.device)
    wins = at_least_zero(party, scores.value[:, first] - scores.value[:, second])
    # rank = how many beat it: of a pair, the second loses where the first wins.
    losses_of_first = party.public(1, wins) - wins
    rank = torch.zeros_like(scores.value)
    rank = rank.index_add(1, first, losses_of_first).index_add(1, second, wins)
    bits = (n - 1).bit_length()
    places = torch.arange(1 << bits)
    tables = torch.stack([(places == r).to(torch.int64) for r in range(k)])
    (is_rank,) = party.run(party.lookup(rank, tables.to(rank.device), bits))
    names = torch.arange(n, device=rank.device)
    return (is_rank * names).sum(-1).transpose(0, 1).contiguous()
