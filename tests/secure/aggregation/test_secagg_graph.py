"""The sparse graph: its sizes against an independent tail, its shape, its cuts."""

import numpy as np
import pytest
from scipy import stats

from secure.aggregation import Policy, degree, plan
from secure.aggregation._graph import _order, neighbourhoods
from secure.errors import PolicyError

SIZES = [
    (100, 0.1, False),
    (100, 0.1, True),
    (100, 0.2, True),
    (300, 0.1, False),
    (300, 0.1, True),
    (300, 0.2, True),
    (1000, 0.1, False),
    (1000, 0.1, True),
    (1000, 0.2, True),
]
EXPECTED = [
    *((32, 11), (44, 34), (64, 54)),
    *((40, 22), (96, 72), (136, 108)),
    *((46, 26), (134, 99), (202, 157)),
]


@pytest.mark.parametrize(("case", "expected"), list(zip(SIZES, EXPECTED, strict=True)))
def test_the_sizes_meet_every_condition(case, expected):
    """Oracle: scipy's hypergeometric tails, in place of the exact integers of the code."""
    members, fraction, active = case
    corrupt, dropped = int(fraction * members), members // 10
    chosen = degree(members, corrupt, dropped, active)
    assert chosen is not None
    assert (chosen.neighbours, chosen.threshold) == expected
    k, t = expected
    others = members - 1

    def tail(marked, draws, least):
        return members * stats.hypergeom(others, marked, draws).sf(least - 1)

    if active:
        # Both kinds of share of a member need 2t ≤ (k + 1) + corrupt neighbours.
        assert tail(corrupt, k, 2 * t - k - 1) <= 2**-40
        # A cut needs a run of k/2 so corrupt that its neighbour still counts t alive.
        assert tail(corrupt, k // 2, t - k // 2 - 1) <= 2**-40
    else:
        assert tail(corrupt, k, t) <= 2**-40
        assert tail(corrupt + dropped, k // 2, k // 2) <= 2**-40
    # The round stops where fewer than t of a dropped member's k neighbours are left.
    assert tail(dropped, k, k + 1 - t) <= 2**-20


@pytest.mark.parametrize("case", SIZES[:6])
def test_a_smaller_graph_would_not_do(case):
    members, fraction, active = case
    corrupt, dropped = int(fraction * members), members // 10
    chosen = degree(members, corrupt, dropped, active)
    assert chosen is not None
    k, others = chosen.neighbours - 2, members - 1

    def tail(marked, draws, least):
        return members * stats.hypergeom(others, marked, draws).sf(least - 1)

    for t in range(1, k + 1):
        if active:
            safe = (
                tail(corrupt, k, 2 * t - k - 1) <= 2**-40
                and tail(corrupt, k // 2, t - k // 2 - 1) <= 2**-40
            )
        else:
            safe = (
                t >= 2
                and tail(corrupt, k, t) <= 2**-40
                and tail(corrupt + dropped, k // 2, k // 2) <= 2**-40
            )
        assert not (safe and tail(dropped, k, k + 1 - t) <= 2**-20)


def test_the_graph_is_regular_symmetric_and_without_loops():
    members = tuple(range(3, 303, 3))
    around = neighbourhoods(members, 32, bytes(range(32)))
    for member, peers in around.items():
        assert len(set(peers)) == 32
        assert member not in peers
        assert list(peers) == sorted(peers)
        assert all(member in around[peer] for peer in peers)
    assert around != neighbourhoods(members, 32, bytes(32))


def test_neighbours_are_drawn_evenly():
    # Over 300 seeds each pair meets with probability 32/99; false-alarm rate 1e-6.
    members = tuple(range(1, 101))
    counts = np.zeros(101, dtype=int)
    for seed in range(300):
        for peer in neighbourhoods(members, 32, seed.to_bytes(32, "little"))[1]:
            counts[peer] += 1
    assert counts[1] == 0
    expected = 300 * 32 / 99
    # Neighbours come without replacement: the variance of a cell is that of a binomial.
    spread = ((counts[2:] - expected) ** 2 / (expected * (1 - 32 / 99))).sum()
    assert stats.chi2(98).sf(spread) > 1e-6


def connected(members: set[int], around: dict[int, tuple[int, ...]]) -> bool:
    """Tell whether members hang together through each other."""
    seen, todo = set(), [min(members)]
    while todo:
        member = todo.pop()
        if member not in seen:
            seen.add(member)
            todo += [peer for peer in around[member] if peer in members]
    return seen == members


def test_a_server_that_drops_whom_it_likes_cuts_nobody_off_unnoticed():
    """The best cut of a ring drops a run of k/2 on either side of an arc.

    Whenever the honest survivors fall apart, an honest one has fewer than t of its
    neighbourhood left, so that its neighbours refuse to unmask it.
    """
    size = degree(100, 10, 10, True)
    assert size is not None
    half = size.neighbours // 2
    rng = np.random.default_rng(5)
    cut = 0
    for trial in range(300):
        seed = trial.to_bytes(32, "little")
        members = tuple(range(1, 101))
        around = neighbourhoods(members, size.neighbours, seed)
        ring = _order(members, seed)
        corrupt = set(rng.choice(members, 10, replace=False).tolist())
        arc = int(rng.integers(1, 30))
        run = [*range(half), *range(half + arc, 2 * half + arc)]
        dropped = {ring[place] for place in run} - corrupt
        alive = set(members) - dropped
        honest = alive - corrupt
        if not connected(honest, around):
            cut += 1
            left = {each: 1 + sum(peer in alive for peer in around[each]) for each in honest}
            assert min(left.values()) < size.threshold
    assert cut > 200


@pytest.mark.parametrize("neighbours", [0, 3, 10, 12])
def test_odd_or_too_many_neighbours_are_refused(neighbours):
    with pytest.raises(PolicyError):
        neighbourhoods(tuple(range(1, 11)), neighbours, bytes(32))


@pytest.mark.parametrize("members", [3, 4, 10, 64, 65, 100, 500, 1000])
@pytest.mark.parametrize("mode", ["semi-honest", "active"])
def test_a_policy_gives_sound_sizes_for_any_cohort(members, mode):
    policy = Policy(plan=plan(1000, 1.0, 1e-3), mode=mode, roster=members)
    sharing = policy.sharing(members)
    corrupt = members // 10
    assert 2 * sharing.quorum > members + corrupt
    assert sharing.threshold <= sharing.neighbours + 1
    if members <= 64:
        assert (sharing.neighbours, sharing.threshold) == (members - 1, sharing.quorum)
    else:
        assert sharing.neighbours < members - 1
