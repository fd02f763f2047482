"""What one client can do to the others' round: it is left out and named, and they go on."""

import hashlib
from dataclasses import replace

import pytest

from secure._hashing import digest
from secure.aggregation import _binding as bind
from secure.aggregation._graph import neighbourhoods
from secure.aggregation._messages import Bundle
from secure.aggregation._shamir import PRIME, SECRET_BYTES, combine
from secure.errors import IntegrityError
from tests.secure.aggregation.rig import Rig, change


def resigned(rig: Rig, member: int, advert, **keys: bytes):
    """Return a member's advert with keys of its own choice, under its own good signature."""
    bundle = Bundle.from_bytes(advert.bundle)
    bundle = replace(bundle, **keys)
    text = bundle.signed_text(rig.server.setup.session)
    signed = replace(bundle, signature=rig.identities[member].sign(text))
    return change(advert, bundle=signed.to_bytes())


def finished_without(rig: Rig, member: int) -> None:
    for each in rig.clients:
        if each not in (2, member):
            rig.server.receive(rig.advertise(each))
    outgoing = rig.server.cohorts()
    for step in ("share", "mask", "commit", "unmask"):
        rig.answer(step, outgoing)
        outgoing = rig.close(step)
    others = [each for each in rig.clients if each != member]
    assert outgoing.survivors == tuple(others)
    assert rig.decoded(outgoing).tolist() == rig.plain_sum(others).tolist()
    assert not rig.refused
    assert [fault.member for fault in outgoing.faults] in ([member], [0])


def test_a_client_whose_two_keys_are_one_costs_itself_the_round():
    """Every client refuses a cohort with a key that is there twice: such a key must not get in."""
    rig = Rig()
    rig.server.receive(rig.advertise(2))
    advert = rig.advertise(3)
    key = Bundle.from_bytes(advert.bundle).mask_key
    with pytest.raises(IntegrityError, match="member 3 advertises a key"):
        rig.server.receive(resigned(rig, 3, advert, channel_key=key))
    finished_without(rig, 3)


@pytest.mark.parametrize("which", ["channel_key", "mask_key"])
@pytest.mark.parametrize("taken", ["channel_key", "mask_key"])
def test_of_two_clients_with_one_key_the_second_costs_itself_the_round(which, taken):
    rig = Rig()
    first = rig.advertise(2)
    rig.server.receive(first)
    key = getattr(Bundle.from_bytes(first.bundle), taken)
    with pytest.raises(IntegrityError, match="member 3 advertises a key"):
        rig.server.receive(resigned(rig, 3, rig.advertise(3), **{which: key}))
    finished_without(rig, 3)


def test_a_refused_key_is_not_kept_from_its_owner():
    """Whoever shows another's key under a wrong signature doesn't keep that one out."""
    rig = Rig()
    honest = rig.advertise(3)
    stolen = Bundle.from_bytes(honest.bundle)
    mine = Bundle.from_bytes(rig.advertise(2).bundle)
    forged = replace(mine, channel_key=stolen.channel_key, mask_key=stolen.mask_key)
    with pytest.raises(IntegrityError, match="not signed"):
        rig.server.receive(change(honest, bundle=forged.to_bytes()))
    assert rig.server.receive(honest) == 3


def test_a_dealer_whose_shares_are_no_field_elements_is_named(monkeypatch):
    """Its shares are what it committed to: the blame is the dealer's and no holder's."""
    from secure.aggregation import _client

    rig = Rig()
    cohort = rig.to("share")
    true_split = _client.split

    def outside(secret, threshold, points, rng):
        assert combine(true_split(secret, threshold, points, rng), threshold) == secret
        return {point: PRIME.to_bytes(SECRET_BYTES, "little") for point in points}

    for member, message in cohort.items():
        with monkeypatch.context() as patch:
            if member == 2:
                patch.setattr(_client, "split", outside)
            rig.server.receive(rig.clients[member].share(message))
    outgoing = rig.server.inboxes()
    for step in ("mask", "commit"):
        rig.answer(step, outgoing)
        outgoing = rig.close(step)
    rig.answer("unmask", outgoing)
    with pytest.raises(IntegrityError, match="member 2 dealt shares that are no shares"):
        rig.server.result()


def test_another_graph_costs_a_member_that_tries_time_and_memory():
    """A colluding member may sign new keys until the sparse graph suits it: each try is a scrypt.

    Oracle: OpenSSL's scrypt by way of hashlib, 2^15 blocks of 1 KiB.
    """
    cohort = bytes(range(32))
    seed = hashlib.scrypt(
        cohort, salt=digest("graph", cohort), n=1 << 15, r=8, p=1, maxmem=1 << 26, dklen=32
    )
    members = tuple(range(1, 101))
    assert bind.graph(cohort, members, 44) == neighbourhoods(members, 44, seed)


def test_the_complete_graph_has_nothing_to_draw(monkeypatch):
    monkeypatch.setattr(bind, "graph_seed", lambda cohort: pytest.fail("a seed was made"))
    assert bind.graph(bytes(32), (1, 2, 3), 2) == {1: (2, 3), 2: (1, 3), 3: (1, 2)}
