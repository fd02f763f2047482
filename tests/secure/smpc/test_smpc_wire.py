"""The wire: what isn't the frame that is due is refused, before it is used."""

import queue
import threading

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from secure.errors import PeerError
from secure.smpc import _wire
from secure.smpc._channel import CountingChannel, PairChannel
from secure.smpc._query import Query
from secure.smpc.dealer import parse_identifier
from secure.smpc.errors import PlanMismatchError, WireError
from secure.smpc.parcels import Setup
from secure.smpc.program import Program
from tests.secure.smpc.tiny import tiny

EXPECTED = [((3, 4), 64), ((5,), 24), ((2,), 16)]
shapes = st.lists(
    st.tuples(
        st.lists(st.integers(0, 5), max_size=3).map(tuple), st.sampled_from([1, 9, 21, 24, 64])
    ),
    max_size=4,
)


def _body():
    tensors = [torch.arange(12).view(3, 4) - 6, torch.arange(5) + 2**20, torch.tensor([0, 65535])]
    return tensors, _wire.pack([(t, bits) for t, (_, bits) in zip(tensors, EXPECTED, strict=True)])


@given(shapes, st.integers(0, 2**31))
def test_a_round_arrives_as_it_was_sent(expected, seed):
    generator = torch.Generator().manual_seed(seed)
    tensors = [
        torch.randint(0, 2**63 - 1, shape, generator=generator) & ((1 << min(bits, 63)) - 1)
        for shape, bits in expected
    ]
    body = _wire.pack([(t, bits) for t, (_, bits) in zip(tensors, expected, strict=True)])
    assert len(body) == _wire.body_bytes(expected)
    for sent, got in zip(tensors, _wire.unpack(body, expected), strict=True):
        assert torch.equal(sent, got)


def test_negative_words_survive():
    tensors, body = _body()
    assert torch.equal(_wire.unpack(body, EXPECTED)[0], tensors[0])


@pytest.mark.parametrize(
    "other",
    [
        [((4, 3), 64), ((5,), 24), ((2,), 16)],
        [((3, 4), 64), ((5,), 21), ((2,), 16)],
        [((3, 4), 64), ((5,), 24)],
        [((12,), 64), ((5,), 24), ((2,), 16)],
    ],
)
def test_other_shapes_or_moduli_are_refused(other):
    _, body = _body()
    with pytest.raises(WireError, match="shapes or moduli"):
        _wire.unpack(body, other)


def test_a_word_beyond_its_modulus_is_refused():
    body = bytearray(_wire.pack([(torch.tensor([1]), 21)]))
    body[-1] = 0xFF
    with pytest.raises(WireError, match="beyond its modulus"):
        _wire.unpack(body, [((1,), 21)])


@given(st.binary(max_size=200))
def test_random_bytes_are_never_a_round(data):
    with pytest.raises(WireError):
        _wire.unpack(data, EXPECTED)


@given(st.binary(min_size=20, max_size=20))
def test_random_headers_are_refused(data):
    if data[:4] != _wire.MAGIC:
        with pytest.raises(WireError):
            _wire.parse_header(data)


@given(st.binary(max_size=60))
def test_control_messages_are_objects_or_refused(data):
    try:
        value = _wire.unpack_json(data)
    except WireError:
        return
    assert isinstance(value, dict)


def test_deeply_nested_control_messages_are_refused():
    with pytest.raises(WireError):
        _wire.unpack_json(b"[" * 100_000 + b"]" * 100_000)


def _inject(frame):
    inbox, outbox = queue.Queue(), queue.Queue()
    inbox.put(frame)
    return PairChannel(inbox, outbox, 0.2)


@pytest.mark.parametrize(
    ("frame", "message"),
    [
        (b"", "not a frame"),
        (bytes(40), "not a frame"),
        (_wire.header(_wire.ROUND, 0, 8) + bytes(7), "not the one announced"),
        (_wire.header(_wire.ROUND, 0, 9) + bytes(9), "longer"),
        (_wire.header(_wire.ROUND, 0, 7) + bytes(7), "another length"),
        (_wire.header(_wire.ROUND, 1, 8) + bytes(8), "out of turn"),
        (_wire.header(_wire.JSON, 0, 8) + bytes(8), "out of turn"),
        (_wire.header(_wire.ERROR, 0, 1 << 30) + bytes(8), "beyond its limit"),
        (_wire.header(_wire.ROUND, 0, 1 << 62) + bytes(8), "longer"),
    ],
)
def test_frames_that_are_not_due_are_refused(frame, message):
    with pytest.raises(WireError, match=message):
        _inject(frame).receive(8)


def test_a_peers_error_is_reported_without_control_characters():
    text = b"no\x1b[31m more"
    with pytest.raises(PeerError, match=r"no\?\[31m more"):
        _inject(_wire.header(_wire.ERROR, 0, len(text)) + text).receive(8)


def test_silence_and_hanging_up_are_errors():
    left, right = PairChannel.pair(timeout_s=0.2)
    with pytest.raises(PeerError, match=r"silent for 0\.2 s"):
        left.receive(8)
    right.close()
    for _ in range(2):
        with pytest.raises(PeerError, match="went away"):
            left.receive(8)
    with pytest.raises(PeerError, match="closed"):
        right.send(b"")


def test_a_failing_party_ends_both():
    from secure.smpc.pair import run_both

    channels = PairChannel.pair(30.0)

    def fail():
        raise WireError("broken")

    before = threading.active_count()
    with pytest.raises(WireError, match="broken"):
        run_both({0: fail, 1: lambda: channels[1].receive(8)}, channels)
    assert threading.active_count() == before


def test_a_counting_link_carries_nothing():
    with pytest.raises(TypeError):
        CountingChannel().send(b"x")


@pytest.mark.parametrize(
    "value",
    [
        None,
        [],
        {},
        {"reveal": "weights", "k": 1, "labels": 0, "batch": 1},
        {"reveal": "top", "k": 0, "labels": 0, "batch": 1},
        {"reveal": "top", "k": 1, "labels": 10**9, "batch": 1},
        {"reveal": "top", "k": True, "labels": 0, "batch": 1},
        {"reveal": "top", "k": 1, "labels": 0, "batch": "1"},
        {"reveal": "top", "k": 1, "labels": 0, "batch": 1, "more": 1},
    ],
)
def test_queries_from_the_wire_are_checked(value):
    with pytest.raises(WireError):
        Query.from_wire(value)


@pytest.mark.parametrize(
    "value", [None, 5, "", "zz" * 16, "00" * 15, "00" * 17, "é" * 32, "00 " * 10 + "00"]
)
def test_identifiers_from_the_wire_are_checked(value):
    with pytest.raises(WireError):
        parse_identifier(value)


def test_programs_survive_json_and_keep_their_name():
    program = tiny()[2].program
    again = Program.from_json(program.to_json())
    assert again == program
    assert again.digest == program.digest


def test_a_peer_writes_nothing_of_its_own_into_an_error():
    with pytest.raises(PlanMismatchError) as caught:
        tiny()[2].program.require("\x1b[2J\nanswered")
    assert str(caught.value).isprintable()


@settings(max_examples=60)
@given(st.data())
def test_mangled_programs_are_refused_or_have_another_name(data):
    program = tiny()[2].program
    text = bytearray(program.to_json().encode())
    at = data.draw(st.integers(0, len(text) - 1))
    byte = data.draw(st.integers(32, 126))
    if text[at] == byte:
        return
    text[at] = byte
    try:
        other = Program.from_json(text.decode())
    except WireError:
        return
    # Digits far behind the point may round to the same number.
    assert other == program or other.digest != program.digest


@pytest.mark.parametrize("data", [b"", bytes(84), b"FVMS" + bytes(10)])
def test_setups_are_checked(data):
    from secure.smpc.errors import MaterialError

    with pytest.raises(MaterialError):
        Setup.from_bytes(data)
