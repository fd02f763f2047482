"""Bytes from elsewhere: every damage is a typed error, and none reaches native code."""

import contextlib
import hashlib
import struct

import numpy as np
import pytest

from secure.errors import SecureError
from secure.he import (
    Encrypted,
    EncryptedAdapter,
    EncryptedGallery,
    EncryptedLinear,
    EvaluationKeys,
    HEClient,
    HEParams,
    KeyMismatchError,
    LayoutError,
    ParametersMismatchError,
    WireError,
)
from secure.he.ciphertext import _HEAD, TAG_BYTES, Piece
from secure.he.wire import Envelope, Kind

from .he_tools import FAST, client

WIDTH = 128
LAYER = EncryptedLinear(np.eye(WIDTH), params=FAST)
VALUES = np.full(WIDTH, 0.05)


@pytest.fixture(scope="module")
def messages() -> dict[str, bytes]:
    owner = client(FAST)
    keys = owner.evaluation_keys(LAYER.plan, public=True)
    sent = owner.encrypt(VALUES, LAYER.plan)
    return {
        "keys": keys.to_bytes(),
        "input": sent.to_bytes(),
        "result": LAYER(sent, keys).to_bytes(),
    }


def read(name: str, data: bytes):
    return EvaluationKeys.from_bytes(data) if name == "keys" else Encrypted.from_bytes(data, FAST)


def use(name: str, thing) -> None:
    """Do with it what a server or client would: let SEAL load it, compute, decrypt."""
    owner = client(FAST)
    if name == "keys":
        LAYER(owner.encrypt(VALUES, LAYER.plan), thing)
        assert thing.zero_encryptor is not None
    elif name == "input":
        LAYER(thing, owner.evaluation_keys(LAYER.plan))
    else:
        owner.decrypt(thing)


def with_digest(data: bytes) -> bytes:
    """Make the digest right again, as an enemy would."""
    return data[:-32] + hashlib.sha256(data[:-32]).digest()


NAMES = ("keys", "input", "result")


@pytest.mark.parametrize("name", NAMES)
def test_round_trip(messages, name):
    thing = read(name, messages[name])
    assert thing.to_bytes() == messages[name]
    use(name, thing)


@pytest.mark.parametrize("name", NAMES)
def test_any_flipped_bit_is_noticed(messages, name):
    rng = np.random.default_rng(0)
    data = bytearray(messages[name])
    for place in [*range(60), *rng.integers(60, len(data), 40)]:
        data[place] ^= 1 << int(rng.integers(8))
        with pytest.raises(SecureError):
            read(name, bytes(data))
        data[:] = messages[name]


@pytest.mark.parametrize("name", NAMES)
def test_any_truncation_is_noticed(messages, name):
    data = messages[name]
    for size in [0, 1, 4, 45, 46, 77, 78, 79, 100, len(data) // 2, len(data) - 1]:
        with pytest.raises(WireError):
            read(name, data[:size])
    with pytest.raises(WireError):
        read(name, data + b"\0")


@pytest.mark.parametrize("name", NAMES)
def test_fuzzed_messages_with_a_right_digest_never_crash(messages, name):
    """Mutations that the digest does not catch end in a typed error or in a harmless number."""
    rng = np.random.default_rng(1)
    refused = 0
    for _ in range(150):
        data = bytearray(messages[name])
        for _ in range(int(rng.integers(1, 6))):
            # Half of the mutations hit headers, where the lengths are.
            top = 140 if rng.integers(2) else len(data) - 32
            place = int(rng.integers(0, top))
            kind = int(rng.integers(4))
            if kind == 0:
                data[place] = int(rng.integers(256))
            elif kind == 1:
                data[place : place + 8] = rng.bytes(8)[: len(data[place : place + 8])]
            elif kind == 2:
                del data[place : place + int(rng.integers(1, 50))]
            else:
                data[place:place] = rng.bytes(int(rng.integers(1, 50)))
        try:
            use(name, read(name, with_digest(bytes(data))))
        except SecureError:
            refused += 1
    assert refused > 75


@pytest.mark.parametrize("name", NAMES)
def test_random_payloads_of_the_right_length_never_crash(messages, name):
    """Random residues: those above a prime are refused, those below are a valid ciphertext."""
    rng = np.random.default_rng(2)
    data = bytearray(messages[name])
    start = 46 + 100 if name == "keys" else 46 + 32
    for _ in range(20):
        data[start:-32] = rng.bytes(len(data) - 32 - start)
        try:
            use(name, read(name, with_digest(bytes(data))))
        except SecureError:
            continue


def test_keys_and_inputs_of_zeros_never_crash(messages):
    """Zeros are residues: well formed, and without meaning."""
    owner = client(FAST)
    data = bytearray(messages["keys"])
    data[46 + 100 : -32] = bytes(len(data) - 32 - 46 - 100)
    keys = EvaluationKeys.from_bytes(with_digest(bytes(data)))
    with contextlib.suppress(SecureError):
        LAYER(owner.encrypt(VALUES, LAYER.plan), keys)
    sent = Encrypted.from_bytes(messages["input"], FAST)
    blank = Piece(np.zeros((2, 1, 4096), dtype=np.uint64))
    zeros = Encrypted(sent.plan, sent.fingerprint, False, 0, sent.scale, (blank,))
    with pytest.raises(SecureError):
        LAYER(zeros, owner.evaluation_keys(LAYER.plan))


@pytest.mark.parametrize("fill", [bytes, np.random.default_rng(5).bytes])
def test_keys_without_meaning_never_crash_a_gallery(fill):
    """A gallery's sums are taken outside SEAL: what hostile keys lead to goes through there too."""
    owner = client(FAST)
    gallery = EncryptedGallery(np.tile(np.eye(256), (40, 1)), FAST)
    data = bytearray(owner.evaluation_keys(gallery.plan).to_bytes())
    start = 46 + 400
    # One bit a byte keeps every residue below its prime: they get as far as SEAL.
    junk = np.frombuffer(fill(len(data) - 32 - start), dtype=np.uint8)
    data[start:-32] = (junk & 1).astype(np.uint8).tobytes()
    sent = owner.encrypt(np.full(256, 0.05), gallery.plan)
    keys = EvaluationKeys.from_bytes(with_digest(bytes(data)))
    with contextlib.suppress(SecureError):
        gallery.query(sent, keys)


def test_keys_of_other_parameters_are_refused_by_name(messages):
    with pytest.raises(ParametersMismatchError):
        EvaluationKeys.from_bytes(messages["keys"], HEParams(4096, (50, 56), 27))


def test_a_result_that_anyone_can_read_is_refused(messages):
    data = bytearray(messages["result"])
    data[46 + 32 : -32] = bytes(len(data) - 32 - 46 - 32)
    with pytest.raises(WireError, match="second polynomial"):
        Encrypted.from_bytes(with_digest(bytes(data)), FAST)


def test_a_length_that_announces_gigabytes_allocates_nothing(messages):
    data = bytearray(messages["result"])
    data[38:46] = struct.pack("<Q", 1 << 60)
    with pytest.raises(WireError, match="announced"):
        Encrypted.from_bytes(with_digest(bytes(data)), FAST)


def test_every_header_field_is_checked(messages):
    envelope = Envelope.from_bytes(messages["result"], Kind.CIPHERTEXT)
    payload = bytearray(envelope.payload)
    tag = 17
    changes = {
        0: 99,  # no such layout
        tag: 2,  # neither input nor result
        tag + 1: 7,  # a level that there is not
        tag + 2: 1,  # seeded, but of another length
        tag + 11: 9,  # number of ciphertexts
    }
    for place, value in changes.items():
        broken = bytearray(payload)
        broken[place] = value
        with pytest.raises((WireError, LayoutError)):
            Encrypted.from_bytes(
                Envelope(
                    envelope.kind, envelope.parameters, envelope.fingerprint, bytes(broken)
                ).to_bytes(),
                FAST,
            )
    for scale in (0.0, -1.0, float("nan"), float("inf"), 2.0**60):
        broken = bytearray(payload)
        broken[tag + 3 : tag + 11] = struct.pack("<d", scale)
        with pytest.raises(WireError, match="scale"):
            Encrypted.from_bytes(
                Envelope(
                    envelope.kind, envelope.parameters, envelope.fingerprint, bytes(broken)
                ).to_bytes(),
                FAST,
            )


def test_other_versions_and_kinds_are_refused(messages):
    data = bytearray(messages["input"])
    data[4] = 2
    with pytest.raises(WireError, match="version 2"):
        Encrypted.from_bytes(with_digest(bytes(data)), FAST)
    with pytest.raises(WireError, match="kind"):
        EvaluationKeys.from_bytes(messages["input"])
    with pytest.raises(WireError, match="not a message"):
        Encrypted.from_bytes(b"X" * 200, FAST)


def test_other_parameters_are_refused(messages):
    other = HEParams(4096, (50, 56), 27)
    with pytest.raises(ParametersMismatchError):
        Encrypted.from_bytes(messages["input"], other)
    foreign = EncryptedLinear(np.eye(WIDTH), params=other)
    with pytest.raises(ParametersMismatchError):
        client(FAST).encrypt(VALUES, foreign.plan)
    with pytest.raises(ParametersMismatchError):
        client(FAST).evaluation_keys(foreign.plan)


def test_a_forged_fingerprint_changes_nothing_but_the_name(messages):
    """Fingerprints stop mistakes; an enemy who forges one gets noise, not values."""
    stranger = HEClient(FAST)
    data = bytearray(messages["result"])
    with pytest.raises(KeyMismatchError):
        stranger.decrypt(Encrypted.from_bytes(bytes(data), FAST))
    data[22:38] = stranger.fingerprint
    noise = stranger.decrypt(Encrypted.from_bytes(with_digest(bytes(data)), FAST))
    assert np.abs(noise - 0.05).min() > 1e-3


def test_keys_of_the_adapter_carry_the_relinearisation_key():
    params = HEParams.select(2, 1.0, 1e-2)
    adapter = EncryptedAdapter((np.eye(4), None), (np.eye(4), None), params=params)
    keys = HEClient(params).evaluation_keys(adapter.plan)
    again = EvaluationKeys.from_bytes(keys.to_bytes())
    assert again.to_bytes() == keys.to_bytes()
    assert len(again.relin_parts) == 3


def test_t1_as_many_ciphertexts_as_the_layout_has_and_no_more(messages):
    """Header and body agree with each other, and not with the layout."""
    envelope = Envelope.from_bytes(messages["input"], Kind.CIPHERTEXT)
    payload = bytes(envelope.payload)
    result, level, seeded, scale, count = _HEAD.unpack_from(payload, TAG_BYTES)
    body = payload[TAG_BYTES + _HEAD.size :]
    for times in (0, 2):
        head = _HEAD.pack(result, level, seeded, scale, times * count)
        forged = payload[:TAG_BYTES] + head + times * body
        data = Envelope(Kind.CIPHERTEXT, FAST.identity, envelope.fingerprint, forged).to_bytes()
        with pytest.raises(WireError, match=f"{times} ciphertexts where this layout has 1"):
            Encrypted.from_bytes(data, FAST)
