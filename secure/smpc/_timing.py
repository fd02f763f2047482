"""How long a query's arithmetic takes here: each kind of operation is run once and timed.

One party's own code runs against a mirror, which answers every message at once, so packing is in
it and waiting is not. Operations of one kind on inputs of one shape are timed once; those whose
correlated randomness is larger (more harmonics, a longer table) are scaled by its size.
"""

import math
import time
from collections.abc import Callable
from functools import lru_cache

import torch
from torch import Tensor

from secure.smpc import _ring, _wire
from secure.smpc._channel import Channel
from secure.smpc._execute import Executor, Values
from secure.smpc._items import Item, Tensors, Weighted
from secure.smpc._material import CLIENT, SERVER, Material
from secure.smpc._party import CountingParty, Party, Share
from secure.smpc._query import Query, finish
from secure.smpc.program import Linear, Operation, Program, meta_weights, sources

Work = Callable[[Party, Values], object]
_WORD = 1 << 62


def _draws() -> torch.Generator:
    """Return a generator of its own: timing leaves the caller's seed alone."""
    return torch.Generator().manual_seed(0)


class _Mirror(Channel):
    """A link whose other end sends back what it is sent."""

    def exchange(self, body: bytes, length: int) -> bytearray:
        return bytearray(body)

    def send(self, body: bytes, kind: int = _wire.ROUND) -> None:
        pass


class _TimedParty(Party):
    """A party with made-up randomness: for timing alone."""

    def __init__(self, role: int, held: list[Tensors], weights: dict) -> None:
        super().__init__(role, _Mirror(), Material(CLIENT, bytes(32), []), weights)
        self._held = iter(held)

    def take(self, item: Item) -> Tensors:
        return next(self._held)

    def _to_server(self, value: Tensor) -> Tensor | None:
        body = _wire.pack([(value, 64)])
        if self.role == CLIENT:
            return None
        return _wire.unpack(body, [(tuple(value.shape), 64)])[0]

    def reveal(self, share: Share) -> Tensor | None:
        return _ring.decode(share.value, share.bits)


def _noise(shape: tuple[int, ...], bits: int = 64) -> Tensor:
    return _ring.low_bits(torch.randint(-_WORD, _WORD, shape, generator=_draws()), bits)


def _made_up(item: Item) -> Tensors:
    held = {piece.name: _noise(piece.shape, piece.bits) for piece in item.pieces}
    if isinstance(item, Weighted):
        held["u"] = held["c"]
    return held


def _size(items: list[Item]) -> int:
    return 1 + sum(math.prod(p.shape) for item in items for p in item.pieces)


def _seconds(work: Work, items: list[Item], values: Values, weights: dict) -> float:
    """Time one piece of work for the party that takes longer; the better of two runs."""
    slowest = 0.0
    real = {name: Share(_noise(v.shape), v.bits) for name, v in values.items()}
    for role in (SERVER, CLIENT):
        found = []
        for _ in range(2):
            party = _TimedParty(role, [_made_up(item) for item in items], weights)
            start = time.perf_counter()
            work(party, real)
            found.append(time.perf_counter() - start)
        slowest = max(slowest, min(found))
    return slowest


def _weight(program: Program, op: Operation) -> dict:
    if not isinstance(op, Linear):
        return {}
    info = program.weights[op.weight]
    entries = torch.randint(-(1 << 17), 1 << 17, info.shape, generator=_draws())
    return {op.weight: entries if info.diagonal else _ring.SmallMatrix(entries)}


@lru_cache(maxsize=32)
def local_seconds(program: Program, query: Query) -> float:
    """Return the seconds of arithmetic of one query on this machine, without any network.

    Args:
        program: The program.
        query: What is asked.
    """
    counter = CountingParty(CLIENT, meta_weights(program))
    executor = Executor(program, counter, None, query.batch)
    values = executor.inputs(None)
    known: dict[tuple, tuple[float, int]] = {}
    total = 0.0
    for op in program.operations:
        counter.items.clear()
        read = {name: values[name] for name in sources(op)}
        values.update(executor.apply(op, values))
        items = list(counter.items)
        shapes = tuple((v.shape, v.bits) for v in read.values())
        key = (op.kind, shapes, values[op.target].shape, len(items))
        if key not in known:

            def work(party: Party, real: Values, op: Operation = op) -> object:
                return Executor(program, party, None, query.batch).apply(op, real)

            known[key] = _seconds(work, items, read, _weight(program, op)), _size(items)
        seconds, size = known[key]
        total += seconds * _size(items) / size
    counter.items.clear()
    result = values[program.output]
    finish(program, counter, query, result)
    read, items = {"result": result}, list(counter.items)
    return total + _seconds(
        lambda party, real: finish(program, party, query, real["result"]), items, read, {}
    )
