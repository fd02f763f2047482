"""Frames of a client, a dealer's and an owner's answers to them, without a network: for tests."""

import queue

from secure.random import SecureRandom
from secure.smpc import (
    Query,
    _material,
    _wire,
)
from secure.smpc._channel import PairChannel
from secure.smpc._query import requirements
from secure.smpc.parcels import Setup
from tests.secure.smpc.tiny import tiny

TOP = Query("top")


def raw(count=1):
    return {"features": tiny()[1][:count]}


def framed(kind, sequence, body):
    return _wire.header(kind, sequence, len(body)) + body


def ask_dealer(dealer, role, name, **request):
    """Ask in this process, and return the answer's frames."""
    inbox, outbox = queue.Queue(), queue.Queue()
    body = _wire.pack_json({"program": tiny()[2].program.digest, **request})
    inbox.put(framed(_wire.JSON, 0, body))
    dealer.answer(PairChannel(inbox, outbox, 1.0), role, name)
    return [outbox.get()[_wire.HEADER_BYTES :] for _ in range(outbox.qsize())]


class Endless:
    """A source that deals for any parcel: for fuzzing."""

    def __init__(self, program):
        self._setup = Setup.draw(program, SecureRandom())
        self._masks = self._setup.masks(program)

    def setup(self, program):
        return self._setup

    def claim(self, program, query, setup, parcel):
        items = requirements(program, query).items
        return _material.deal_pair(items, self._masks, SecureRandom())[0]


def hello(query=TOP, labels=(), **other):
    from secure.smpc import _tables

    return framed(
        _wire.JSON,
        0,
        _wire.pack_json(
            {
                "protocol": 1,
                "program": tiny()[2].program.digest,
                "tables": _tables.fingerprint(),
                "query": query.to_wire(),
                "labels": list(labels),
                "parcel": "00" * 16,
                **other,
            }
        ),
    )


def converse(owner, frames):
    inbox, outbox = queue.Queue(), queue.Queue()
    for frame in frames:
        inbox.put(frame)
    inbox.put(None)
    owner.answer(PairChannel(inbox, outbox, 1.0))
