"""Who masks with whom: a random k-regular graph, and how large it has to be.

Source: J. Bell, K. Bonawitz, A. Gascón, T. Lepoint, M. Raykova, "Secure single-server
aggregation with (poly)logarithmic overhead", CCS 2020. The graph is a Harary graph, a ring in
which each member is joined to the k/2 before and the k/2 after it, under a permutation drawn
from a public hash.

The sizes are exact: hypergeometric tails in integers, so that client and server on different
machines never round to different graphs.
"""

import math
from dataclasses import dataclass
from functools import lru_cache

import numpy as np

from secure.errors import PolicyError
from secure.random import keystream

COMPLETE_UP_TO = 64
STATISTICAL_SECURITY = 40
CORRECTNESS = 20


@dataclass(frozen=True)
class Degree:
    """Size of a neighbourhood.

    Attributes:
        neighbours: k, the members that each member shares secrets and masks with.
        threshold: t, the shares out of k + 1 (the member keeps one) that give a secret back.
    """

    neighbours: int
    threshold: int


def _tail_at_most(
    population: int, marked: int, draws: int, least: int, copies: int, bits: int
) -> bool:
    """Tell whether copies · P[X ≥ least] ≤ 2^-bits for X marked in `draws` without replacement."""
    most = min(marked, draws)
    if least > most:
        return True
    if least <= 0:
        return False
    least = max(least, draws - (population - marked))
    # From one term to the next by a ratio: thousands of binomials of thousands of bits would
    # let terms with many corrupt members cost minutes.
    x, whole = least, math.comb(population, draws)
    term = math.comb(marked, x) * math.comb(population - marked, draws - x)
    ways = 0
    while term:
        ways += term
        if (copies * ways) << bits > whole:
            return False
        x += 1
        if x > most:
            break
        term = term * (marked - x + 1) * (draws - x + 1)
        term //= x * (population - marked - draws + x)
    return True


def _least_rare(population: int, marked: int, draws: int, copies: int, bits: int) -> int:
    """Return the smallest a with copies · P[X ≥ a] ≤ 2^-bits."""
    low, high = 0, min(marked, draws) + 1
    while low < high:
        middle = (low + high) // 2
        if _tail_at_most(population, marked, draws, middle, copies, bits):
            high = middle
        else:
            low = middle + 1
    return low


def _threshold(members: int, corrupt: int, dropped: int, k: int, active: bool) -> int | None:
    """Return the least safe threshold for k neighbours, or None where none is safe."""
    others = members - 1
    rare = _least_rare(others, corrupt, k, members, STATISTICAL_SECURITY)
    if not active:
        # The colluders hold too few shares, and no run of k/2 members, each of them corrupt or
        # gone, cuts the ring.
        cut = _tail_at_most(
            others, min(others, corrupt + dropped), k // 2, k // 2, members, STATISTICAL_SECURITY
        )
        # At least 2, also where nobody is corrupt by assumption: no single member may hold
        # another one's secrets.
        return max(rare, 2) if cut else None
    # Never both kinds of share: 2t > (k + 1) + corrupt. Never a cut, even if the server drops
    # whom it likes: beside a run of k/2 that are gone or corrupt, a member has at most
    # k/2 + 1 + (corrupt in the run) neighbours left, which must be below t.
    never_both = (k + 1 + max(rare - 1, 0)) // 2 + 1
    rare_in_half = _least_rare(others, corrupt, k // 2, members, STATISTICAL_SECURITY)
    return max(never_both, k // 2 + 1 + rare_in_half)


@lru_cache(maxsize=256)
def degree(members: int, corrupt: int, dropped: int, active: bool) -> Degree | None:
    """Return the smallest safe graph, or None where only the complete graph will do.

    Args:
        members: Members in the cohort.
        corrupt: Members that may collude with the server.
        dropped: Members that may drop out for reasons of their own.
        active: Whether the server may lie.

    Returns:
        The least even k, with its threshold, for which

        - a neighbourhood betrays its member with probability at most 2^-40 over all members
          (statistical security σ = 40), and
        - honest dropouts stop the round with probability at most 2^-20 (correctness η = 20).

    Guarantees:
        The probability is over the permutation. Who may have another graph drawn, a server by
        omitting members or a member that works with it by signing other keys, and tries 2^g of
        them, lowers σ by g. Each try costs a scrypt of 32 MiB: `_binding.graph_seed`.
    """
    others = members - 1

    def sized(k: int) -> Degree | None:
        # Cheap necessary condition first: too few honest neighbours to reach any threshold.
        threshold = _threshold(members, corrupt, dropped, k, active)
        if threshold is None or threshold > k:
            return None
        # A dropped member's secret comes back from its neighbours alone, without itself.
        if _tail_at_most(others, dropped, k, k + 1 - threshold, members, CORRECTNESS):
            return Degree(k, threshold)
        return None

    # Double up to a safe one and halve, which costs little also where all are large; the tails
    # jump with k, so that a few smaller ones may be safe too: look at the last quarter in turn.
    low, high = 0, 2
    while high < others and sized(high) is None:
        low, high = high, 2 * high
    if high >= others:
        high = others - 1 if others % 2 else others - 2
        if high <= low or sized(high) is None:
            return None
    while high - low > 2:
        middle = (low + high) // 4 * 2
        low, high = (middle, high) if sized(middle) is None else (low, middle)
    start = max(2, high * 3 // 8 * 2)
    return next(found for k in range(start, high + 1, 2) if (found := sized(k)) is not None)


def _order(members: tuple[int, ...], seed: bytes) -> list[int]:
    """Permute the members by the keystream of a public seed; ties of 64-bit keys by id."""
    keys = keystream(seed, len(members))
    return [members[index] for index in np.lexsort((np.array(members), keys))]


@lru_cache(maxsize=16)
def neighbourhoods(
    members: tuple[int, ...], neighbours: int, seed: bytes
) -> dict[int, tuple[int, ...]]:
    """Draw the graph.

    Args:
        members: Ids, ascending.
        neighbours: k: even, or `len(members) - 1` for the complete graph.
        seed: 32 public bytes that follow from all signed key bundles; the complete graph has none.

    Returns:
        Neighbours by member, ascending; symmetric and without loops. Not to be changed.

    Raises:
        PolicyError: k does not fit the members.

    Example:
        >>> neighbourhoods((1, 5, 9), 2, bytes(32))
        {1: (5, 9), 5: (1, 9), 9: (1, 5)}
    """
    count = len(members)
    if neighbours == count - 1:
        return {member: tuple(x for x in members if x != member) for member in members}
    if neighbours % 2 or not 0 < neighbours < count - 1:
        raise PolicyError(f"{count} members can't have {neighbours} neighbours each")
    ring = _order(members, seed)
    around = [*range(-(neighbours // 2), 0), *range(1, neighbours // 2 + 1)]
    drawn = {
        member: tuple(sorted(ring[(place + step) % count] for step in around))
        for place, member in enumerate(ring)
    }
    return {member: drawn[member] for member in members}
