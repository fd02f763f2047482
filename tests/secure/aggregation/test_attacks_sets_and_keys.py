"""Attacks 1 to 4: lying about sets, keys, time and terms. Each is run against real clients."""

from dataclasses import replace

import pytest
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey

from secure.aggregation import LanePlan, Policy, StageError
from secure.aggregation._messages import Bundle
from secure.errors import IntegrityError, ParameterError, PeerError, PolicyError
from tests.secure.aggregation.rig import RNG, Rig, change

MODES = ["semi-honest", "active"]


def wiped(client) -> bool:
    empty = client.state.wiped()
    return client.state == empty and client.words is None


# --- attack 1: overlapping, duplicate, unknown-id, self-dead sets; a second unmask request --------


def refuses_unmask(rig: Rig, member: int, error, **changes):
    request = rig.to("unmask")[member]
    with pytest.raises(error):
        rig.clients[member].unmask(change(request, **changes))
    assert wiped(rig.clients[member])


@pytest.mark.parametrize("mode", MODES)
def test_attack_1_duplicate_survivors_are_refused(mode):
    refuses_unmask(Rig(mode=mode), 1, IntegrityError, members=(1, 1, 2, 3, 4, 5, 6))


@pytest.mark.parametrize("mode", MODES)
def test_attack_1_an_unknown_survivor_is_refused(mode):
    refuses_unmask(Rig(mode=mode), 1, IntegrityError, members=(1, 2, 3, 4, 5, 6, 99))


@pytest.mark.parametrize("mode", MODES)
def test_attack_1_a_client_told_that_it_is_dead_refuses(mode):
    refuses_unmask(Rig(mode=mode), 1, IntegrityError, members=(2, 3, 4, 5, 6))


@pytest.mark.parametrize("mode", MODES)
def test_attack_1_a_second_unmask_request_finds_nothing(mode):
    rig = Rig(mode=mode)
    request = rig.to("unmask")[1]
    reveal = rig.clients[1].unmask(request)
    assert len(reveal.shares) == 6
    assert wiped(rig.clients[1])
    for again in (request, change(request, members=(1, 2, 3, 4, 5))):
        with pytest.raises(StageError):
            rig.clients[1].unmask(again)


@pytest.mark.parametrize("mode", MODES)
def test_attack_1_both_shares_of_a_member_never_come_back(mode):
    # There is no way to ask for two kinds: one list says who lives, and the rest is dead.
    rig = Rig(mode=mode)
    request = rig.to("unmask", drop={"mask": [6]})[1]
    reveal = rig.clients[1].unmask(request)
    assert len(set(reveal.owners)) == len(reveal.owners) == len(reveal.shares) == 6


def test_attack_1_a_survivor_that_dealt_no_shares_is_refused():
    rig = Rig(mode="semi-honest")
    request = rig.to("unmask", drop={"share": [6]})[1]
    with pytest.raises(IntegrityError, match="dealt no shares"):
        rig.clients[1].unmask(change(request, members=(1, 2, 3, 4, 5, 6)))


@pytest.mark.parametrize("kind", ["duplicate", "without me", "unknown"])
def test_attack_1_bad_dealer_sets_are_refused(kind):
    rig = Rig()
    inbox = rig.to("mask")[1]
    dealers = {
        "duplicate": (1, 2, 2, 3, 4, 5, 6),
        "without me": (2, 3, 4, 5, 6),
        "unknown": (1, 2, 3, 4, 5, 6, 77),
    }[kind]
    with pytest.raises(IntegrityError):
        rig.clients[1].mask(change(inbox, dealers=dealers))
    assert wiped(rig.clients[1])


# --- attack 2: MITM, swapped, repeated, low-order or unsigned keys; outsiders ---------------------


def bundles_of(rig: Rig) -> list[Bundle]:
    return [Bundle.from_bytes(data) for data in rig.to("share")[1].bundles]


def refuses_cohort(rig: Rig, bundles: list[Bundle], match: str, member: int = 1):
    cohort = rig_cohort(rig, bundles)
    with pytest.raises(IntegrityError, match=match):
        rig.clients[member].share(cohort)
    assert wiped(rig.clients[member])


def rig_cohort(rig: Rig, bundles: list[Bundle]):
    from secure.aggregation._messages import Cohort

    return Cohort(rig.server.setup.session, tuple(bundle.to_bytes() for bundle in bundles))


def fresh_public() -> bytes:
    return X25519PrivateKey.generate().public_key().public_bytes_raw()


@pytest.mark.parametrize("which", ["channel_key", "mask_key", "commitment"])
def test_attack_2_mitm_the_server_replaces_a_key_of_a_bundle(which):
    rig = Rig()
    bundles = bundles_of(rig)
    bundles[2] = replace(bundles[2], **{which: fresh_public()})
    refuses_cohort(rig, bundles, "member 3 are not signed")


def test_attack_2_mitm_the_server_signs_with_a_key_of_its_own():
    rig = Rig()
    bundles = bundles_of(rig)
    forged = Bundle.signed(
        rig.forged_identity(),
        rig.server.setup.session,
        3,
        fresh_public(),
        fresh_public(),
        bundles[2].commitment,
        bundles[2].layout,
        bundles[2].question,
    )
    bundles[2] = forged
    refuses_cohort(rig, bundles, "member 3 are not signed")


def test_attack_2_swapped_keys_of_two_members():
    rig = Rig()
    bundles = bundles_of(rig)
    bundles[1], bundles[2] = (
        replace(bundles[2], member=2),
        replace(bundles[1], member=3),
    )
    refuses_cohort(rig, bundles, "not signed")


def test_attack_2_a_member_listed_twice():
    rig = Rig()
    bundles = bundles_of(rig)
    refuses_cohort(rig, [*bundles[:3], bundles[2], *bundles[3:]], "ascending")


def test_attack_2_two_members_with_the_same_key():
    # A member that colludes repeats another one's keys under its own good signature.
    rig = Rig()
    bundles = bundles_of(rig)
    bundles[2] = colluding(
        rig, bundles[2], channel_key=bundles[3].channel_key, mask_key=bundles[3].mask_key
    )
    refuses_cohort(rig, bundles, "same key")


# RFC 7748, section 6.1, and https://cr.yp.to/ecdh.html: the points whose shared secret is zero.
LOW_ORDER = [
    "0000000000000000000000000000000000000000000000000000000000000000",
    "0100000000000000000000000000000000000000000000000000000000000000",
    "e0eb7a7c3b41b8ae1656e3faf19fc46ada098deb9c32b1fd866205165f49b800",
    "5f9c95bca3508c24b1d0b1559c83ef5b04445cc4581c8e86d8224eddd09f1157",
    "ecffffffffffffffffffffffffffffffffffffffffffffffffffffffffffff7f",
    "edffffffffffffffffffffffffffffffffffffffffffffffffffffffffffff7f",
    "eeffffffffffffffffffffffffffffffffffffffffffffffffffffffffffff7f",
]


def colluding(rig: Rig, bundle: Bundle, **keys: bytes) -> Bundle:
    """Return member 3's bundle with other keys, under its own good signature."""
    return Bundle.signed(
        rig.identities[3],
        rig.server.setup.session,
        3,
        keys.get("channel_key", bundle.channel_key),
        keys.get("mask_key", bundle.mask_key),
        bundle.commitment,
        bundle.layout,
        bundle.question,
    )


@pytest.mark.parametrize("which", ["channel_key", "mask_key"])
@pytest.mark.parametrize("point", LOW_ORDER)
def test_attack_2_low_order_key(point, which):
    rig = Rig()
    bundles = bundles_of(rig)
    bundles[2] = colluding(rig, bundles[2], **{which: bytes.fromhex(point)})
    refuses_cohort(rig, bundles, "low order")


@pytest.mark.parametrize("which", ["channel_key", "mask_key"])
def test_attack_2_low_order_key_costs_its_sender_the_round_and_nobody_else(which):
    rig = Rig()
    advert = rig.advertise(3)
    low = colluding(rig, Bundle.from_bytes(advert.bundle), **{which: bytes(32)})
    with pytest.raises(IntegrityError, match="low order"):
        rig.server.receive(change(advert, bundle=low.to_bytes()))
    summed = rig.finish(drop={"advertise": [3]})
    assert rig.decoded(summed).tolist() == rig.plain_sum([1, 2, 4, 5, 6]).tolist()


def test_attack_2_an_identity_outside_the_roster():
    rig = Rig()
    bundles = bundles_of(rig)
    outsider = Bundle.signed(
        rig.forged_identity(),
        rig.server.setup.session,
        50,
        fresh_public(),
        fresh_public(),
        bundles[0].commitment,
        bundles[0].layout,
        bundles[0].question,
    )
    refuses_cohort(rig, [*bundles, outsider], "member 50 is not in this client's roster")


def test_attack_2_the_clients_own_keys_are_replaced_or_left_out():
    for changed in (True, False):
        rig = Rig()
        bundles = bundles_of(rig)
        bundles[0] = replace(bundles[0], mask_key=fresh_public())
        refuses_cohort(rig, bundles if changed else bundles[1:], "own keys")


# --- attack 3: replay, stage skips, a restart in mid-protocol ------------------------------------


def test_attack_3_a_round_is_opened_once_and_only_forwards():
    rig = Rig()
    rig.advertise(1, rig.new_server(round_number=5).setup)
    for spent in (5, 4, 0, -1):
        with pytest.raises(StageError, match="spent"):
            rig.clients[1].open(rig.new_server(round_number=spent).setup)
    rig.clients[1].open(rig.new_server(round_number=6).setup)


def test_attack_3_another_runs_session_is_refused():
    rig = Rig()
    with pytest.raises(StageError, match="run"):
        rig.clients[1].open(rig.new_server(run="other").setup)


@pytest.mark.parametrize("trip", ["share", "mask", "commit", "unmask"])
def test_attack_3_replay_of_an_earlier_sessions_message(trip):
    first = Rig()
    stale = first.to(trip)[1]
    second = Rig()
    message = second.to(trip)[1]
    assert stale.session != message.session
    with pytest.raises(StageError, match="another session"):
        getattr(second.clients[1], trip)(stale)
    assert wiped(second.clients[1])


@pytest.mark.parametrize("trip", ["share", "mask", "commit"])
def test_attack_3_replay_of_the_same_message(trip):
    rig = Rig()
    message = rig.to(trip)[1]
    step = getattr(rig.clients[1], trip)
    step(message)
    with pytest.raises(StageError):
        step(message)


def test_attack_3_replay_of_shares_to_another_recipient():
    rig = Rig()
    inboxes = rig.to("mask")
    mine, others = inboxes[1], inboxes[2]
    at = mine.senders.index(3), others.senders.index(3)
    ciphertexts, commitments = list(mine.ciphertexts), list(mine.commitments)
    ciphertexts[at[0]] = others.ciphertexts[at[1]]
    commitments[at[0]] = others.commitments[at[1]]
    with pytest.raises(IntegrityError, match="member 3 don't decrypt"):
        rig.clients[1].mask(
            change(mine, ciphertexts=tuple(ciphertexts), commitments=tuple(commitments))
        )


def test_attack_3_shares_attributed_to_another_sender():
    rig = Rig()
    mine = rig.to("mask")[1]
    ciphertexts = list(mine.ciphertexts)
    ciphertexts[0], ciphertexts[1] = ciphertexts[1], ciphertexts[0]
    with pytest.raises(IntegrityError, match="don't decrypt"):
        rig.clients[1].mask(change(mine, ciphertexts=tuple(ciphertexts)))


@pytest.mark.parametrize("skipped", ["share", "mask", "commit"])
def test_attack_3_a_skipped_stage(skipped):
    rig = Rig()
    honest = Rig()
    following = {"share": "mask", "mask": "commit", "commit": "unmask"}[skipped]
    message = change(honest.to(following)[1], session=rig.server.setup.session)
    rig.to(skipped)
    with pytest.raises(StageError):
        getattr(rig.clients[1], following)(message)


def test_attack_3_active_clients_do_not_unmask_without_committing():
    rig = Rig()
    survivors = rig.to("commit")[1]
    from secure.aggregation._messages import UnmaskRequest

    request = UnmaskRequest(survivors.session, survivors.members, (), ())
    with pytest.raises(StageError, match="commits"):
        rig.clients[1].unmask(request)


def test_attack_3_restart_in_mid_protocol_goes_on_from_the_state_and_only_once():
    from secure.aggregation import Client, ClientState

    rig = Rig()
    survivors = rig.to("commit")

    def restarted(member):
        old = rig.clients[member]
        state = ClientState.from_fields(old.state.to_fields())
        return Client(rig.identities[member], rig.roster, rig.policy, "run", RNG, state, old.words)

    rig.clients = {member: restarted(member) for member in rig.clients}
    rig.answer("commit", survivors)
    rig.clients = {member: restarted(member) for member in rig.clients}
    rig.answer("unmask", rig.server.unmask_requests())
    summed = rig.server.result()
    assert rig.decoded(summed).tolist() == rig.plain_sum(range(1, 7)).tolist()


def test_attack_3_a_client_that_lost_its_state_refuses_to_go_on():
    from secure.aggregation import Client

    rig = Rig()
    survivors = rig.to("commit")[1]
    blank = Client(rig.identities[1], rig.roster, rig.policy, "run", RNG)
    with pytest.raises(StageError):
        blank.commit(survivors)


# --- attack 4: low threshold, cohort of 1 or 2, changed modulus, clip or lane --------------------


def weaker(**terms) -> Rig:
    """Return a rig whose server asks for other terms than its clients hold."""
    rig = Rig()
    rig.policy = replace(rig.policy, **terms)
    rig.server = rig.new_server()
    return rig


PLAN = Rig().policy.plan


@pytest.mark.parametrize(
    "terms",
    [
        {"mode": "semi-honest"},
        {"threshold": 0.51},
        {"min_clients": 2},
        {"plan": replace(PLAN, bound=2.0)},
        {"plan": replace(PLAN, levels=2)},
        {"plan": replace(PLAN, lane=21)},
        {"plan": replace(PLAN, clients=1000)},
        {"clip": False},
        {"weighting": "examples"},
        {"max_weight": 1},
        {"update": "delta"},
    ],
    ids=lambda terms: next(iter(terms)),
)
def test_attack_4_terms_below_the_floor_are_refused_before_training(terms):
    rig = weaker(**terms)
    with pytest.raises(PolicyError):
        rig.clients[1].open(rig.server.setup)
    assert wiped(rig.clients[1])
    assert rig.clients[1].state.spent == ""


def test_attack_4_stricter_terms_are_accepted():
    rig = weaker(threshold=0.9, min_clients=5)
    rig.clients[1].open(rig.server.setup)


@pytest.mark.parametrize("size", [0, 1, 2])
def test_attack_4_a_cohort_of_one_or_two(size):
    rig = Rig()
    bundles = bundles_of(rig)[:size]
    with pytest.raises(PolicyError, match="below the least of 3"):
        rig.clients[1].share(rig_cohort(rig, bundles))


def test_attack_4_a_cohort_that_could_overflow_the_lanes():
    rig = Rig(plan=LanePlan(bound=1.0, levels=1001, lane=32, clients=5))
    for member in rig.clients:
        rig.server.receive(rig.advertise(member))
    with pytest.raises(PeerError, match="overflow"):
        rig.server.cohorts()
    bundles = [rig.server._in.bundles[member] for member in sorted(rig.clients)]
    with pytest.raises(PolicyError, match="overflow"):
        rig.clients[1].share(rig_cohort(rig, bundles))


@pytest.mark.parametrize("mode", MODES)
def test_attack_4_too_few_survivors(mode):
    rig = Rig(mode=mode)
    step = "commit" if mode == "active" else "unmask"
    message = rig.to(step)[1]
    with pytest.raises(PolicyError, match="survive"):
        getattr(rig.clients[1], step)(change(message, members=(1, 2)))


def test_attack_4_plans_that_overflow_cannot_be_made():
    with pytest.raises(ParameterError, match="overflow"):
        LanePlan(bound=1.0, levels=1 << 16, lane=16, clients=2)
    with pytest.raises(ParameterError):
        Policy(plan=PLAN, min_clients=1)
    with pytest.raises(ParameterError):
        Policy(plan=PLAN, threshold=0.4)
