"""Whatever a client or a party sends, dealer and owner end with the library's own errors."""

import contextlib
import queue
import random
import threading

from hypothesis import given, settings
from hypothesis import strategies as st

from secure.errors import SecureError
from secure.random import SecureRandom
from secure.smpc import (
    Owner,
    _material,
    _wire,
)
from secure.smpc._channel import PairChannel
from secure.smpc._query import requirements
from secure.smpc.dealer import Dealer
from tests.secure.smpc.conversation import TOP, Endless, ask_dealer, converse, framed, hello, raw
from tests.secure.smpc.serving import TIMEOUT, attempt
from tests.secure.smpc.tiny import tiny


def _mangle(frames, draw):
    """Change one thing about a conversation."""
    frames = list(frames)
    at = draw.randrange(len(frames)) if draw.random() < 0.5 else draw.randrange(min(3, len(frames)))
    frame = bytearray(frames[at])
    kind = draw.randrange(6)
    if kind == 0:
        frame[draw.randrange(len(frame))] ^= 1 << draw.randrange(8)
    elif kind == 1:
        frame = frame[: draw.randrange(len(frame))]
    elif kind == 2:
        frame += draw.randbytes(draw.randrange(1, 40))
    elif kind == 3:
        other = draw.randrange(len(frames))
        frames[other], frame = bytes(frame), bytearray(frames[other])
    elif kind == 4:
        frame = bytearray(draw.randbytes(draw.randrange(60)))
    else:
        body = draw.choice([b"{}", b"[]", b'{"weights": 5}', b"[" * 5000, b'{"a": 1e999}', b"\xff"])
        frame = bytearray(framed(_wire.JSON, at, body))
    frames[at] = bytes(frame)
    return frames


def test_m6_m8_whatever_a_client_sends_the_owner_ends_with_its_own_errors():
    plan = tiny()[2]
    needs = requirements(plan.program, TOP)
    draw = random.Random(6)
    owner = Owner(plan, Endless(plan.program))
    # A conversation of the right form; what its words say doesn't matter.
    honest = _record(owner, plan)
    assert len(honest) >= needs.client.rounds // 2
    refused = 0
    for _ in range(60):
        frames = _mangle(honest, draw)
        _, error = attempt(lambda sent=frames: converse(owner, sent))
        refused += error is not None
        assert error is None or str(error).isprintable()
    assert refused > 30


class _Recording(PairChannel):
    """Remembers what the client sent."""

    def __init__(self, *arguments):
        super().__init__(*arguments)
        self.frames = []

    def _transfer(self, out, expect):
        if out:
            self.frames.append(bytes(out))
        return super()._transfer(out, expect)


class _Shared(Endless):
    """Deals to both parties of one process."""

    def __init__(self, program):
        super().__init__(program)
        self.halves = []

    def choose(self, program, query):
        items = requirements(program, query).items
        self.halves = list(_material.deal_pair(items, self._masks, SecureRandom()))
        return bytes(16)

    def claim(self, program, query, setup, parcel):
        return self.halves.pop(0)

    def discard(self, parcel):
        pass


def _record(owner, plan):
    from secure.smpc import Client

    shared = _Shared(plan.program)
    owner = Owner(plan, shared)
    left, right = queue.Queue(), queue.Queue()
    server, link = PairChannel(left, right, 5.0), _Recording(right, left, 5.0)
    thread = threading.Thread(target=owner.answer, args=(server,), daemon=True)
    thread.start()
    Client(plan.program, shared, lambda: link).ask(raw(), TOP)
    thread.join(TIMEOUT)
    return link.frames


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=40),
    lambda inner: (
        st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=8), inner, max_size=4)
    ),
    max_leaves=12,
)


@settings(max_examples=100, deadline=None)
@given(
    st.fixed_dictionaries(
        {},
        optional={
            "ask": st.sampled_from(["open", "setup", "parcel", "x"]) | json_values,
            "program": json_values,
            "query": json_values | st.just(TOP.to_wire()),
            "parcel": json_values | st.just("00" * 16),
            "setup": json_values,
        },
    ),
    st.sampled_from(["server", "client"]),
)
def test_m6_m8_whatever_a_party_asks_the_dealer_ends_with_its_own_errors(request, role):
    dealer = _fuzzed_dealer()
    _, error = attempt(lambda: ask_dealer(dealer, role, b"fuzz", **request))
    assert error is None or str(error).isprintable()
    assert len(dealer.waiting) <= 64


_dealers = []


def _fuzzed_dealer():
    if not _dealers:
        _dealers.append(Dealer(tiny()[2].program))
    return _dealers[0]


@settings(max_examples=100, deadline=None)
@given(
    st.fixed_dictionaries(
        {},
        optional={
            name: json_values
            for name in ("protocol", "program", "tables", "query", "labels", "parcel")
        },
    )
)
def test_m6_m8_whatever_a_client_says_first_is_answered_or_refused(changes):
    owner = _fuzzed_owner()
    with contextlib.suppress(SecureError):
        converse(
            owner,
            [
                hello(**changes)
                if "query" not in changes and "labels" not in changes
                else framed(_wire.JSON, 0, _wire.pack_json(changes))
            ],
        )


_owners = []


def _fuzzed_owner():
    if not _owners:
        _owners.append(Owner(tiny()[2], Endless(tiny()[2].program)))
    return _owners[0]
