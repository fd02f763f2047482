"""Attacks 5 to 8: lying about survivors, wrong shares, dropouts, and values out of range."""

import numpy as np
import pytest

from secure.aggregation import (
    LanePlan,
    Layout,
    Policy,
    combine,
    decode,
    encode,
    random_secret,
    split,
    unpack,
)
from secure.aggregation import (
    _binding as bind,
)
from secure.errors import IntegrityError, ParameterError, PeerError, PolicyError
from secure.random import keystream
from tests.secure.aggregation.rig import RNG, Rig, change

MODES = ["semi-honest", "active"]
EVERYONE = range(1, 7)


# --- attack 5: other survivor sets for other clients, too few or mixed signatures ---------------


def test_attack_5_split_views_find_no_quorum():
    """Two survivor sets of four, told to three clients each: neither gets four signatures."""
    rig = Rig()
    told = rig.to("commit")
    one, other = (1, 2, 3, 4), (3, 4, 5, 6)
    signatures = {}
    for member, survivors in told.items():
        members = one if member in (1, 2, 3) else other
        receipts = tuple(
            receipt
            for signer, receipt in zip(survivors.signers, survivors.receipts, strict=True)
            if signer in members
        )
        signers = tuple(signer for signer in survivors.signers if signer in members)
        view = change(survivors, members=members, signers=signers, receipts=receipts)
        signatures[member] = rig.clients[member].commit(view).signature
    from secure.aggregation._messages import UnmaskRequest

    session = rig.server.setup.session
    for members, mine in ((one, (1, 2, 3)), (other, (4, 5, 6))):
        victim = mine[0]
        few = UnmaskRequest(session, members, mine, tuple(signatures[each] for each in mine))
        with pytest.raises((PolicyError, IntegrityError)):
            rig.clients[victim].unmask(few)


def test_attack_5_mixed_signatures_are_refused():
    rig = Rig()
    request = rig.to("unmask")[1]
    signatures = list(request.signatures)
    signatures[0], signatures[1] = signatures[1], signatures[0]
    with pytest.raises(IntegrityError, match="has not signed"):
        rig.clients[1].unmask(change(request, signatures=tuple(signatures)))


def test_attack_5_too_few_signatures_are_refused():
    rig = Rig()
    request = rig.to("unmask")[1]
    with pytest.raises(PolicyError, match="3 members signed"):
        rig.clients[1].unmask(
            change(request, signers=request.signers[:3], signatures=request.signatures[:3])
        )


def test_attack_5_a_repeated_signature_does_not_count_twice():
    rig = Rig()
    request = rig.to("unmask")[1]
    with pytest.raises(IntegrityError, match="ascending"):
        rig.clients[1].unmask(
            change(
                request,
                signers=(1, 1, 2, 3),
                signatures=(request.signatures[0], *request.signatures[:3]),
            )
        )


def test_attack_5_other_survivors_than_were_signed_for():
    rig = Rig()
    request = rig.to("unmask")[1]
    with pytest.raises(IntegrityError, match="not those that this client signed for"):
        rig.clients[1].unmask(change(request, members=(1, 2, 3, 4, 5)))


def test_attack_5_a_client_told_of_other_dealers_stops_those_who_would_unmask_it():
    """The server hides most dealers from client 1, so that few pairwise masks protect it."""
    rig = Rig()
    inboxes = rig.to("mask")
    mine = inboxes[1]
    kept = (2, 3, 4)
    at = [mine.senders.index(each) for each in kept]
    inboxes[1] = change(
        mine,
        dealers=(1, *kept),
        senders=kept,
        ciphertexts=tuple(mine.ciphertexts[each] for each in at),
        commitments=tuple(mine.commitments[each] for each in at),
    )
    from secure.aggregation._messages import Masked

    masked: dict[int, Masked] = {
        member: rig.clients[member].mask(inbox) for member, inbox in inboxes.items()
    }
    # An honest server notices at once; a lying one passes the receipt on, and nobody commits.
    with pytest.raises(IntegrityError, match="did not sign"):
        rig.server.receive(masked[1])
    rig.server._roster = None
    for each in masked.values():
        rig.server.receive(each)
    for member, survivors in rig.server.survivors().items():
        with pytest.raises(IntegrityError):
            rig.clients[member].commit(survivors)


def lies(count: int, threshold: int, allowed: int) -> dict[int, set[int]]:
    """Tell each of `count` members up to `allowed` dead ones, so that many look dead to t."""
    told: dict[int, set[int]] = {member: set() for member in range(1, count + 1)}
    for victim in range(1, count * allowed // threshold + 1):
        ready = sorted(
            (member for member in told if member != victim and len(told[member]) < allowed),
            key=lambda member: len(told[member]),
        )
        for member in ready[:threshold]:
            told[member].add(victim)
    return told


def test_attack_5_lying_about_survivors_shrinks_a_semi_honest_sum():
    """Why trip 4 exists: n = 10, t = 6, and the server learns a sum of four.

    Each client is told a survivor set of six, as large as its floor asks for, but each another
    one. Six members look dead to six clients each, so that their pairwise masks come off.
    """
    count, threshold = 10, 6
    rig = Rig(count, mode="semi-honest", threshold=0.51)
    assert rig.policy.sharing(count).threshold == threshold
    inboxes = rig.to("mask")
    masked = {member: rig.clients[member].mask(inbox) for member, inbox in inboxes.items()}
    for each in masked.values():
        rig.server.receive(each)
    told = lies(count, threshold, count - threshold)
    shares: dict[tuple[int, str], dict[int, bytes]] = {}
    for member, request in rig.server.unmask_requests().items():
        alive = tuple(each for each in request.members if each not in told[member])
        assert len(alive) >= threshold
        reveal = rig.clients[member].unmask(change(request, members=alive))
        for owner, share in zip(reveal.owners, reveal.shares, strict=True):
            kind = "self" if owner in alive else "pair"
            shares.setdefault((owner, kind), {})[member] = share
    secrets = {key: combine(got, threshold) for key, got in shares.items() if len(got) >= threshold}
    dead = sorted(owner for owner, kind in secrets if kind == "pair")
    left = sorted(owner for owner, kind in secrets if kind == "self")
    assert len(left) == 4
    assert sorted(dead + left) == list(range(1, count + 1))

    server = rig.server
    total = sum(masked[member].words for member in left)
    for owner in left:
        total -= keystream(
            bind.self_mask_key(secrets[owner, "self"], server._cohort, owner), len(total)
        )
    for gone in dead:
        private = bind.mask_private_key(secrets[gone, "pair"], server._session, gone)
        for owner in left:
            key = bind.pair_mask_key(
                private, server._in.bundles[owner].mask_key, server._cohort, gone, owner
            )
            mask = keystream(key, len(total))
            total = total - mask if owner < gone else total + mask
    opened = unpack(total[:-4], rig.policy.plan.lane, 7).astype(int)
    assert opened.tolist() == rig.plain_sum(left).tolist()


def test_attack_5_the_same_lies_find_no_quorum_in_active_mode():
    count, threshold = 10, 6
    rig = Rig(count, mode="active", threshold=0.51)
    told = lies(count, threshold, count - threshold)
    signed: dict[tuple[int, ...], int] = {}
    for member, survivors in rig.to("commit").items():
        members = tuple(each for each in survivors.members if each not in told[member])
        receipts = dict(zip(survivors.signers, survivors.receipts, strict=True))
        signers = tuple(each for each in survivors.signers if each in members)
        view = change(
            survivors,
            members=members,
            signers=signers,
            receipts=tuple(receipts[each] for each in signers),
        )
        rig.clients[member].commit(view)
        signed[members] = signed.get(members, 0) + 1
    # Everybody signs once, but for another set: none of them gets its six signatures.
    assert sum(signed.values()) == count
    assert max(signed.values()) < threshold


def test_attack_5_a_late_client_is_left_out_and_the_sum_stays_exact():
    rig = Rig()
    inboxes = rig.to("mask")
    late = rig.clients[6].mask(inboxes.pop(6))
    rig.answer("mask", inboxes)
    rig.answer("commit", rig.server.survivors())
    with pytest.raises(IntegrityError, match="during"):
        rig.server.receive(late)
    rig.answer("unmask", rig.server.unmask_requests())
    summed = rig.server.result()
    assert rig.decoded(summed).tolist() == rig.plain_sum(range(1, 6)).tolist()


# --- attack 6: malformed, truncated, wrong-x or wrong-key shares ---------------------------------


def test_attack_6_truncated_and_altered_ciphertexts_are_refused():
    for spoil in (
        lambda c: c[:-1],
        lambda c: b"",
        lambda c: c[:-1] + bytes([c[-1] ^ 1]),
        lambda c: c + b"\0",
    ):
        rig = Rig()
        inbox = rig.to("mask")[1]
        spoilt = (spoil(inbox.ciphertexts[0]), *inbox.ciphertexts[1:])
        with pytest.raises(IntegrityError, match="member 2 don't decrypt"):
            rig.clients[1].mask(change(inbox, ciphertexts=spoilt))


def test_attack_6_altered_commitments_are_refused():
    rig = Rig()
    inbox = rig.to("mask")[1]
    spoilt = (bytes(64), *inbox.commitments[1:])
    with pytest.raises(IntegrityError):
        rig.clients[1].mask(change(inbox, commitments=spoilt))


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("dead", [(), (6,)])
def test_attack_6_a_wrong_share_is_named_and_the_sum_survives_it(mode, dead):
    rig = Rig(mode=mode)
    requests = rig.to("unmask", drop={"mask": dead})
    for member, request in requests.items():
        reveal = rig.clients[member].unmask(request)
        if member == 2:
            wrong = [bytes([share[0] ^ 1]) + share[1:] for share in reveal.shares]
            reveal = change(reveal, shares=tuple(wrong))
        rig.server.receive(reveal)
    summed = rig.server.result()
    assert {fault.member for fault in summed.faults} == {2}
    assert "wrong share of member 1" in " ".join(fault.reason for fault in summed.faults)
    alive = [member for member in EVERYONE if member not in dead]
    assert rig.decoded(summed).tolist() == rig.plain_sum(alive).tolist()


def test_attack_6_too_many_wrong_shares_abandon_the_round_and_name_their_senders():
    rig = Rig()
    for member, request in rig.to("unmask").items():
        reveal = rig.clients[member].unmask(request)
        if member <= 3:
            reveal = change(reveal, shares=tuple(bytes(32) for _ in reveal.shares))
        rig.server.receive(reveal)
    with pytest.raises(PeerError, match=r"wrong answers came from members \[1, 2, 3\]"):
        rig.server.result()


def test_attack_6_shares_at_a_wrong_point_are_wrong():
    secret = random_secret(RNG)
    shares = split(secret, 3, [1, 2, 3, 4], RNG)
    assert combine({1: shares[1], 2: shares[2], 3: shares[3]}, 3) == secret
    assert combine({1: shares[1], 2: shares[2], 4: shares[3]}, 3) != secret


def test_attack_6_one_share_too_few_fails():
    shares = split(random_secret(RNG), 3, [1, 2, 3, 4], RNG)
    with pytest.raises(ParameterError, match="3 shares are needed, got 2"):
        combine({1: shares[1], 2: shares[2]}, 3)


def test_attack_6_a_dealer_whose_shares_are_of_another_secret_is_named():
    rig = Rig()
    client = rig.clients[2]
    cohort = rig.to("share")
    from dataclasses import replace

    client.state = replace(client.state, self_seed=random_secret(RNG))
    rig.answer("share", cohort)
    rig.answer("mask", rig.server.inboxes())
    rig.answer("commit", rig.server.survivors())
    rig.answer("unmask", rig.server.unmask_requests())
    with pytest.raises(IntegrityError, match="member 2 dealt shares of another secret"):
        rig.server.result()


def test_attack_6_a_dropped_dealer_whose_key_does_not_match_is_named():
    from dataclasses import replace

    rig = Rig()
    cohort = rig.to("share")
    client = rig.clients[2]
    client.state = replace(client.state, mask_seed=random_secret(RNG))
    rig.answer("share", cohort)
    rig.gone.add(2)
    rig.answer("mask", rig.server.inboxes())
    rig.answer("commit", rig.server.survivors())
    rig.answer("unmask", rig.server.unmask_requests())
    with pytest.raises(IntegrityError, match="member 2 dealt shares of another key"):
        rig.server.result()


def test_attack_6_malformed_shares_are_refused_by_the_server():
    rig = Rig()
    dealt = rig.clients[1].share(rig.to("share")[1])
    for bad in (
        change(dealt, ciphertexts=dealt.ciphertexts[:-1]),
        change(dealt, ciphertexts=(b"", *dealt.ciphertexts[1:])),
        change(dealt, commitments=dealt.commitments[:-1]),
        change(dealt, recipients=dealt.recipients[::-1]),
        change(dealt, sender=2),
    ):
        with pytest.raises(IntegrityError):
            rig.server.receive(bad)


# --- attack 7: dropouts at each trip, at two adjacent ones, down to t, and t − 1 -----------------

TRIPS = {
    "semi-honest": ("advertise", "share", "mask", "unmask"),
    "active": ("advertise", "share", "mask", "commit", "unmask"),
}
CASES = [(mode, trip) for mode in MODES for trip in TRIPS[mode]]


@pytest.mark.parametrize(("mode", "trip"), CASES)
@pytest.mark.parametrize("lost", [(3,), (1, 6)])
def test_attack_7_dropouts_at_each_trip_give_the_exact_sum_of_the_others(mode, trip, lost):
    rig = Rig(mode=mode)
    summed = rig.finish(drop={trip: lost})
    in_sum = trip in ("commit", "unmask")
    expected = EVERYONE if in_sum else [member for member in EVERYONE if member not in lost]
    assert summed.survivors == tuple(expected)
    assert rig.decoded(summed).tolist() == rig.plain_sum(expected).tolist()
    assert not rig.refused


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("position", range(4))
def test_attack_7_dropouts_at_two_adjacent_trips(mode, position):
    trips = TRIPS[mode]
    if position + 1 == len(trips):
        position -= 1
    drop = {trips[position]: [1], trips[position + 1]: [5]}
    rig = Rig(mode=mode)
    summed = rig.finish(drop=drop)
    early = ("advertise", "share", "mask")
    lost = {member for trip, members in drop.items() if trip in early for member in members}
    expected = [member for member in EVERYONE if member not in lost]
    assert rig.decoded(summed).tolist() == rig.plain_sum(expected).tolist()


@pytest.mark.parametrize(("mode", "trip"), [case for case in CASES if case[1] != "advertise"])
def test_attack_7_down_to_exactly_t_and_below_it_the_round_is_abandoned(mode, trip):
    # Six members, t = 4.
    rig = Rig(mode=mode)
    summed = rig.finish(drop={trip: (1, 2)})
    assert rig.decoded(summed).tolist() == rig.plain_sum(summed.survivors).tolist()
    rig = Rig(mode=mode)
    with pytest.raises(PeerError, match="abandoned"):
        rig.finish(drop={trip: (1, 2, 3)})


# --- attack 8: overflow, NaN, weights beyond the clamp or zero ----------------------------------


@pytest.mark.parametrize("count", [3, 64])
def test_attack_8_everything_at_its_maximum_does_not_overflow(count):
    levels = ((1 << 16) - 1) // count + 1
    lanes = LanePlan(bound=1.0, levels=levels, lane=16, clients=count)
    policy = Policy(plan=lanes, clip=False, weighting="examples", max_weight=1 << 20)
    layout = Layout((("v", (9,), "float32"),), ("m",))
    for sign in (1, -1):
        top = np.full(9, sign, dtype=np.float32)
        words = encode(top, 1 << 20, {"m": sign * 2.0**15}, policy, RNG)
        total = np.zeros_like(words)
        for _ in range(count):
            total += words
        got = decode(total, layout, policy, count)
        assert np.allclose(got.mean, top, atol=1e-12)
        assert got.metrics == {"m": sign * 2.0**15}
        assert got.weight == count << 20


def test_attack_8_no_plan_overflows_by_one():
    with pytest.raises(ParameterError, match="overflow"):
        LanePlan(bound=1.0, levels=(1 << 16) // 64 + 1, lane=16, clients=64)


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("clip", [True, False])
def test_attack_8_an_update_that_is_not_finite_is_refused(bad, clip):
    policy = Policy(plan=Rig().policy.plan, clip=clip)
    vector = np.zeros(5, dtype=np.float32)
    vector[2] = bad
    with pytest.raises(ParameterError, match="NaN or Inf"):
        encode(vector, 1.0, {}, policy, RNG)


def test_attack_8_an_update_above_the_clip_is_refused_with_clipping_off():
    policy = Policy(plan=Rig().policy.plan, clip=False)
    with pytest.raises(ParameterError, match="beyond"):
        encode(np.full(5, 1.01, dtype=np.float32), 1.0, {}, policy, RNG)


def test_attack_8_a_weight_above_the_clamp_counts_as_the_clamp():
    policy = Policy(plan=Rig().policy.plan, weighting="examples", max_weight=10)
    layout = Layout((("v", (1,), "float32"),), ())
    vector = np.array([0.5], dtype=np.float32)
    heavy = encode(vector, 1e9, {}, policy, RNG) + encode(-vector, 10, {}, policy, RNG)
    got = decode(heavy, layout, policy, 2)
    assert got.weight == 20
    assert abs(got.mean[0]) <= 2 * policy.plan.step


def test_attack_8_a_zero_weight_adds_nothing_and_all_zero_is_no_mean():
    policy = Policy(plan=Rig().policy.plan, weighting="examples", max_weight=10)
    layout = Layout((("v", (1,), "float32"),), ())
    vector = np.array([0.5], dtype=np.float32)
    words = encode(vector, 5, {}, policy, RNG) + encode(-vector, 0, {}, policy, RNG)
    assert decode(words, layout, policy, 2).mean[0] == pytest.approx(0.5, abs=0.01)
    nothing = encode(vector, 0, {}, policy, RNG) + encode(vector, 0, {}, policy, RNG)
    with pytest.raises(PeerError, match="zero"):
        decode(nothing, layout, policy, 2)


@pytest.mark.parametrize("weight", [-1.0, np.nan, np.inf])
def test_attack_8_a_weight_that_is_no_count_is_refused(weight):
    with pytest.raises(ParameterError, match="examples"):
        encode(np.zeros(1, dtype=np.float32), weight, {}, Rig().policy, RNG)


@pytest.mark.parametrize("metric", [np.nan, np.inf, 1e12, -1e12])
def test_attack_8_s13_a_metric_out_of_range_costs_itself_and_nothing_else(metric):
    """S13: one metric that can't be summed is left out of its mean, and its round stands."""
    policy = Policy(plan=Rig().policy.plan, weighting="examples", max_weight=10_000)
    layout = Layout((("v", (1,), "float32"),), ("acc", "loss"))
    vector = np.array([0.5], dtype=np.float32)
    bad = encode(vector, 5, {"loss": metric, "acc": 0.25}, policy, RNG)
    good = encode(vector, 15, {"loss": 2.0, "acc": 0.25}, policy, RNG)
    got = decode(bad + good, layout, policy, 2)
    assert got.metrics == pytest.approx({"acc": 0.25, "loss": 2.0}, abs=1e-3)
    assert got.partial == ("loss",)
    assert (got.kept, got.clipped) == (2, 0)
    alone = decode(bad, layout, policy, 1)
    assert set(alone.metrics) == {"acc"}
