"""Keys and messages: published vectors, framing, and what a parser refuses."""

from dataclasses import replace

import pytest
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey

from secure._hashing import digest
from secure.aggregation import Identity, Policy, Roster, plan, save_identity
from secure.aggregation import load_identity as load
from secure.aggregation._keys import agree, derive, seal, unseal, verify
from secure.aggregation._messages import (
    Bundle,
    Commit,
    Dealt,
    Inbox,
    Reveal,
    Setup,
    from_fields,
    to_fields,
)
from secure.aggregation._payload import Layout
from secure.errors import IntegrityError, ParameterError, PolicyError
from secure.random import SecureRandom

RNG = SecureRandom()
POLICY = Policy(plan=plan(10, 1.0, 1e-3))


def test_ed25519_published_vector():
    # RFC 8032, section 7.1, test 2.
    identity = Identity(
        bytes.fromhex("4ccd089b28ff96da9db6c346ec114e0f5b8a319f35aba624da8cf6ed4fb8a6fb")
    )
    assert identity.public_key.hex() == (
        "3d4017c3e843895a92b70aa74d1b7ebc9c982ccf2ec4968cc0cd55f12af4660c"
    )
    signature = identity.sign(b"\x72")
    assert signature.hex() == (
        "92a009a9f0d4cab8720e820b5f642540a2b27b5416503f8fb3762223ebdb69da"
        "085ac1e43e15996e458f3613d0f11d8c387b2eaeb4302aeeb00d291612bb0c00"
    )
    assert verify(identity.public_key, signature, b"\x72")
    assert not verify(identity.public_key, signature, b"\x73")
    assert not verify(b"short", signature, b"\x72")
    assert not verify(identity.public_key, b"", b"\x72")


def test_agreement_is_symmetric_and_bound_to_its_context():
    alice = X25519PrivateKey.generate()
    bob = X25519PrivateKey.generate()
    public = [key.public_key().public_bytes_raw() for key in (alice, bob)]
    key = agree(alice, public[1], "role", b"session", 1, 2)
    assert key == agree(bob, public[0], "role", b"session", 1, 2)
    others = [
        agree(alice, public[1], *context)
        for context in (
            ("other", b"session", 1, 2),
            ("role", b"another", 1, 2),
            ("role", b"session", 2, 1),
            ("role", b"session", 12),
        )
    ]
    assert len({key, *others}) == 5


def test_sealing():
    key = derive(bytes(32), "a key")
    sealed = seal(key, b"text", b"data", RNG)
    assert unseal(key, sealed, b"data", 1) == b"text"
    assert seal(key, b"text", b"data", RNG)[:12] != sealed[:12]
    for bad in ((sealed[:-1], b"data"), (sealed, b"other"), (b"", b"data")):
        with pytest.raises(IntegrityError, match="member 1"):
            unseal(key, *bad, 1)


def test_framing_keeps_different_parts_apart():
    calls = [
        ("a", b"x", b"yz"),
        ("a", b"xy", b"z"),
        ("a", "x", b"yz"),
        ("ax", b"", b"yz"),
        ("a", [b"x", b"yz"]),
        ("a", [b"x"], b"yz"),
        ("a", 1, 2),
        ("a", [1, 2]),
        ("a", 12),
        ("a", -1, 2),
    ]
    assert len({digest(*call) for call in calls}) == len(calls)


def test_a_setup_survives_its_flat_form_and_binds_everything():
    setup = Setup("run", 3, "train", bytes(32), POLICY)
    back = Setup.from_fields(setup.to_fields())
    assert back.session == setup.session
    assert back == replace(setup, terms=POLICY.for_roster(POLICY.plan.clients))
    sessions = {
        setup.session,
        Setup("other", 3, "train", bytes(32), POLICY).session,
        Setup("run", 4, "train", bytes(32), POLICY).session,
        Setup("run", 3, "evaluate", bytes(32), POLICY).session,
        Setup("run", 3, "train", bytes([1] * 32), POLICY).session,
        Setup("run", 3, "train", bytes(32), Policy(plan=POLICY.plan, min_clients=5)).session,
    }
    assert len(sessions) == 6


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("version", 1),
        ("run", 3),
        ("round", "3"),
        ("round", True),
        ("kind", "query"),
        ("nonce", b"short"),
        ("nonce", "text"),
        ("extra", 1),
        ("terms.extra", 1),
        ("terms.levels", "many"),
        ("terms.levels", 2.0),
        ("terms.threshold", "2/0"),
        ("terms.threshold", "0.6666666666666666666"),
        ("terms.bound", "nan"),
        ("terms.clip", 2),
    ],
)
def test_a_setup_that_is_off_is_refused(field, value):
    flat = Setup("run", 3, "train", bytes(32), POLICY).to_fields()
    flat[field] = value
    with pytest.raises((IntegrityError, PolicyError)):
        Setup.from_fields(flat)


@pytest.mark.parametrize("field", ["version", "run", "nonce", "terms.levels", "terms.mode"])
def test_a_setup_with_a_missing_field_is_refused(field):
    flat = Setup("run", 3, "train", bytes(32), POLICY).to_fields()
    del flat[field]
    with pytest.raises((IntegrityError, PolicyError)):
        Setup.from_fields(flat)


MESSAGES = [
    Dealt(b"s" * 32, 3, (1, 2), (b"a", b"b"), (b"c", b"d", b"e")),
    Inbox(b"s" * 32, (1, 2, 3), (), (), ()),
    Commit(b"s" * 32, 1, b"x" * 64),
    Reveal(b"s" * 32, 1, (1, 2), (b"a" * 32, b"b" * 32)),
]


@pytest.mark.parametrize("message", MESSAGES, ids=lambda each: type(each).__name__)
def test_messages_survive_their_flat_form(message):
    flat = to_fields(message)
    assert from_fields(type(message), flat) == message
    # Flower refuses to count a record with an empty value.
    assert all(value not in (b"", "", []) for value in flat.values())


@pytest.mark.parametrize(
    "change",
    [
        {"sender": "3"},
        {"sender": True},
        {"recipients": [1, "2"]},
        {"recipients": (1, 2)},
        {"ciphertexts": b"ab"},
        {"ciphertexts": [b"a", "b"]},
        {"more": 1},
    ],
)
def test_messages_of_another_shape_are_refused(change):
    with pytest.raises(IntegrityError, match="Dealt"):
        from_fields(Dealt, to_fields(MESSAGES[0]) | change)


def test_a_bundle_has_one_size():
    identity = Identity.generate(RNG)
    bundle = Bundle.signed(identity, b"s", 7, *(bytes([n] * 32) for n in range(5)))
    assert Bundle.from_bytes(bundle.to_bytes()) == bundle
    for data in (b"", bundle.to_bytes()[:-1], bundle.to_bytes() + b"\0"):
        with pytest.raises(IntegrityError, match="228 bytes"):
            Bundle.from_bytes(data)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "[]",
        "{}",
        '[[["a",[-1],"f"]],[],""]',
        '[[["a",[1.5],"f"]],[],""]',
        '[[],[1],""]',
        '[[], [], ""]',
        "[[],[],3]",
        '[[["a",[true],"f"]],[],""]',
        "[" * 100_000,
    ],
)
def test_what_is_no_layout_is_refused(text):
    with pytest.raises(IntegrityError, match="layout"):
        Layout.from_json(text)


def test_rosters_and_keys_on_disk(tmp_path):
    identity = Identity.generate(RNG)
    path = tmp_path / "me.key"
    save_identity(identity, path)
    assert path.stat().st_mode & 0o077 == 0
    assert load(path).public_key == identity.public_key
    with pytest.raises(FileExistsError):
        save_identity(identity, path)
    path.chmod(0o600)
    path.write_text("zz")
    with pytest.raises(ParameterError, match="no identity key"):
        load(path)
    roster = Roster({3: identity.public_key})
    roster.save(tmp_path / "roster.json")
    assert Roster.load(tmp_path / "roster.json") == roster
    with pytest.raises(ParameterError, match="not in its roster"):
        roster.member_of(bytes(32))
    for keys in (
        {0: bytes(32)},
        {1: bytes(31)},
        {1: bytes(32), 2: bytes(32)},
        {1 << 31: bytes(32)},
    ):
        with pytest.raises(ParameterError):
            Roster(keys)
