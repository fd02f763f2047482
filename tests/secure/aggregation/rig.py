"""A cohort in one process, driven trip by trip, so that a test can lie at any point of it."""

from collections.abc import Collection, Mapping
from dataclasses import replace
from functools import cache

import numpy as np

from secure.aggregation import (
    Client,
    Identity,
    LanePlan,
    Layout,
    Policy,
    SecureSum,
    Server,
    decode,
    identities,
)
from secure.aggregation._keys import verify
from secure.errors import SecureError
from secure.random import SecureRandom

RNG = SecureRandom()
CHECK = cache(verify)
STEPS = ("share", "mask", "commit", "unmask")


@cache
def keys(count: int):
    return identities(count, RNG)


class Rig:
    """Server and clients; `to(trip)` runs honestly up to a trip and returns its messages."""

    def __init__(self, count: int = 6, mode: str = "active", length: int = 7, roster=None, **terms):
        self.identities, honest = keys(count)
        self.roster = roster or honest
        lanes = LanePlan(bound=1.0, levels=1001, lane=32, clients=max(count, 64))
        self.policy = Policy(**{"plan": lanes, "mode": mode, "corrupt": 0.0, **terms})
        self.layout = Layout((("vector", (length,), "float32"),), ())
        self.values = np.random.default_rng([count, length]).integers(
            0, lanes.levels, (count + 1, length)
        )
        self.clients = {
            member: Client(identity, honest, self.policy, "run", RNG, check=CHECK)
            for member, identity in self.identities.items()
        }
        self.server = self.new_server()
        self.gone: set[int] = set()
        self.refused: dict[int, SecureError] = {}

    def new_server(self, round_number: int = 1, run: str = "run") -> Server:
        return Server(self.policy, run, round_number, "train", RNG, self.roster, CHECK)

    def words(self, member: int):
        from secure.aggregation import pack

        lanes = pack(self.values[member].astype(np.uint64), self.policy.plan.lane)
        tail = np.array([1 << 16, 1 << 16, 0, 1 << 16], dtype=np.uint64)
        return np.concatenate([lanes, tail])

    def advertise(self, member: int, setup=None):
        client = self.clients[member]
        client.open(setup or self.server.setup)
        return client.advertise(self.words(member), self.layout)

    def to(self, trip: str, drop: Mapping[str, Collection[int]] | None = None) -> dict:
        drop = drop or {}
        for member in self.clients:
            if member not in drop.get("advertise", ()):
                self.server.receive(self.advertise(member))
        outgoing = self.server.cohorts()
        for step in STEPS:
            if step == "commit" and not self.policy.active:
                continue
            if step == trip:
                return outgoing
            self.gone |= set(drop.get(step, ()))
            self.answer(step, outgoing)
            outgoing = self.close(step)
        raise ValueError(trip)

    def answer(self, step: str, outgoing: Mapping) -> None:
        """Hand messages to the clients and their answers to the server; keep the refusals."""
        for member, message in outgoing.items():
            if member in self.gone:
                continue
            try:
                reply = getattr(self.clients[member], step)(message)
            except SecureError as error:
                self.refused[member] = error
                continue
            self.server.receive(reply)

    def close(self, step: str):
        if step == "share":
            return self.server.inboxes()
        if step == "mask":
            active = self.policy.active
            return self.server.survivors() if active else self.server.unmask_requests()
        return self.server.unmask_requests() if step == "commit" else self.server.result()

    def finish(self, drop: Mapping[str, Collection[int]] | None = None) -> SecureSum:
        drop = drop or {}
        outgoing = self.to("unmask", drop)
        self.gone |= set(drop.get("unmask", ()))
        self.answer("unmask", outgoing)
        return self.server.result()

    def plain_sum(self, members: Collection[int]):
        return sum(self.values[member] for member in members)

    def decoded(self, summed: SecureSum):
        """Return the integer sum that came out."""
        got = decode(summed.words, self.layout, self.policy, len(summed.survivors))
        total = got.mean * got.clients
        plan = self.policy.plan
        return np.rint((total + got.clients * plan.bound) / plan.step).astype(int)

    def forged_identity(self) -> Identity:
        return Identity.generate(RNG)


def change(message, **values):
    return replace(message, **values)
