"""T1: faults that were put in on purpose and that no test noticed; each has one here."""

import math
from dataclasses import replace
from fractions import Fraction
from itertools import combinations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from secure.aggregation import LanePlan, Policy
from secure.aggregation._binding import graph_seed
from secure.aggregation._graph import neighbourhoods
from secure.aggregation._messages import Bundle, Cohort
from secure.aggregation._shamir import combine, random_secret, split
from secure.errors import IntegrityError, ParameterError, PolicyError
from tests.secure.aggregation.rig import RNG, Rig, change


@pytest.mark.parametrize(
    ("field", "match"), [("layout", "has the layout"), ("question", "another model")]
)
def test_t1_a_member_that_signs_for_something_else_is_refused_by_each_client(field, match):
    """The server leaves such members out; a server that doesn't finds that the clients do."""
    rig = Rig()
    cohort = rig.to("share")[1]
    bundles = [Bundle.from_bytes(data) for data in cohort.bundles]
    other = replace(bundles[2], **{field: bytes(31) + b"\x07"})
    signature = rig.identities[3].sign(other.signed_text(cohort.session))
    bundles[2] = replace(other, signature=signature)
    with pytest.raises(IntegrityError, match=f"member 3 .*{match}"):
        rig.clients[1].share(Cohort(cohort.session, tuple(each.to_bytes() for each in bundles)))
    assert rig.clients[1].state.stage == "idle"


@pytest.mark.parametrize("mode", ["semi-honest", "active"])
def test_t1_fewer_dealers_than_the_least_of_a_sum_get_no_masked_vector(mode):
    """The least of a sum is more than the threshold here: six of eight could open the secrets."""
    rig = Rig(8, mode=mode, threshold=0.51, min_clients=8)
    assert rig.policy.sharing(8).threshold <= 6
    inbox = rig.to("mask")[1]
    left = [place for place, sender in enumerate(inbox.senders) if sender <= 6]
    few = change(
        inbox,
        dealers=tuple(range(1, 7)),
        **{
            name: tuple(getattr(inbox, name)[place] for place in left)
            for name in ("senders", "ciphertexts", "commitments")
        },
    )
    with pytest.raises(PolicyError, match="6 members dealt shares, 8 are needed"):
        rig.clients[1].mask(few)
    assert rig.clients[1].words is None


def test_t1_a_survivor_set_that_isolates_a_neighbour_is_not_unmasked():
    """In a sparse graph the set may be large enough, and a neighbour all but alone in it."""
    rig = Rig(12, mode="semi-honest", threshold=0.51)
    request, client = rig.to("unmask")[1], rig.clients[1]
    around = neighbourhoods(client.state.members, 6, graph_seed(client.state.cohort))
    places = [place for place, peer in enumerate(client.state.peers) if peer in around[1]]

    def chosen(values):
        return tuple(values[place] for place in places)

    sparse = replace(
        client.state,
        **{"degree": 6, "threshold": 5, "quorum": 5, "peers": chosen(client.state.peers)},
        self_shares=chosen(client.state.self_shares),
        mask_shares=chosen(client.state.mask_shares),
    )
    told = 0
    for alive in combinations(client.state.members, 6):
        left = {each: 1 + len(set(alive) & set(around[each])) for each in alive}
        if 1 not in alive or left[1] < 5:
            continue
        lonely = [each for each in alive if each in around[1] and left[each] < 5]
        client.state = sparse
        if lonely:
            with pytest.raises(PolicyError, match="of the neighbourhood of member"):
                client.unmask(change(request, members=alive))
        else:
            assert len(client.unmask(change(request, members=alive)).shares) == 7
        told += bool(lonely)
    assert told > 5


def test_t1_shares_that_their_dealer_did_not_commit_to_are_refused_by_who_gets_them():
    """Later they would make the one that reveals them look like the liar."""
    rig = Rig()
    cohorts = rig.to("share")
    rig.clients[2]._commitments = lambda *_: bytes(range(64))
    rig.answer("share", cohorts)
    inboxes = rig.server.inboxes()
    with pytest.raises(IntegrityError, match="member 2 dealt shares that it did not commit to"):
        rig.clients[1].mask(inboxes[1])
    assert rig.clients[1].words is None


def test_t1_a_secret_is_not_put_together_from_too_few_shares():
    shares = split(random_secret(RNG), 3, [1, 2, 5], RNG)
    for few in (1, 2):
        chosen = dict(list(shares.items())[:few])
        with pytest.raises(ParameterError, match=f"3 shares are needed, got {few}"):
            combine(chosen, 3)
    with pytest.raises(ParameterError, match="0 shares"):
        combine(shares, 0)


@given(
    st.integers(3, 64),
    st.integers(3, 400),
    st.sampled_from([Fraction(0), Fraction(1, 10), Fraction(1, 5), Fraction(2, 5)]),
    st.sampled_from([Fraction(1, 2), Fraction(2, 3)]),
    st.sampled_from(["semi-honest", "active"]),
)
def test_t1_two_survivor_sets_never_both_find_a_quorum(cohort, roster, corrupt, threshold, mode):
    """2t > n + c, where all the corrupt of the *roster* may sit in the cohort; counted here anew.

    With t signers in each of two sets, at least one honest member would have signed both.
    """
    roster = max(cohort, roster)
    lanes = LanePlan(bound=1.0, levels=101, lane=32, clients=400)
    policy = Policy(
        lanes, mode=mode, corrupt=corrupt, threshold=threshold, roster=roster, min_clients=3
    )
    colluders = min(cohort, math.floor(corrupt * roster))
    try:
        sharing = policy.sharing(cohort)
    except PolicyError:
        assert 2 * cohort <= cohort + colluders + 1  # even all of them would be too few
        return
    assert 2 * sharing.quorum > cohort + colluders
    assert sharing.quorum >= threshold * cohort
    assert sharing.threshold == sharing.quorum


@pytest.mark.parametrize(("roster", "corrupt"), [(64, 0.1), (64, 0.25), (300, 0.1)])
def test_t1_the_derived_least_of_a_sum_holds_three_honest_members(roster, corrupt):
    """Whomever the server picks: all the corrupt of the roster, and three more."""
    lanes = LanePlan(bound=1.0, levels=101, lane=32, clients=400)
    for policy in (
        Policy(lanes, corrupt=corrupt, roster=roster),
        Policy(lanes, corrupt=corrupt).for_roster(roster),
    ):
        assert policy.fewest - math.floor(Fraction(corrupt) * roster) >= 3
