"""The attacks on secure aggregation, run against this library's protocol.

Each returns whether the attacker got what it wanted; where the honest side raises, it got nothing.
"""

from collections.abc import Mapping
from dataclasses import replace
from functools import cache
from typing import Any

import numpy as np
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey

from secure.aggregation import (
    Client,
    LanePlan,
    Layout,
    Policy,
    Server,
    encode,
    identities,
    integer_plan,
)
from secure.aggregation._messages import Bundle, Cohort, UnmaskRequest
from secure.random import SecureRandom, keystream
from simulations.benchmarks._secaggplus import LENGTH, MODULUS, explains, folded

COUNT = 4
RNG = SecureRandom()


@cache
def _keys(count: int):
    return identities(count, RNG)


class Ours:
    """An active cohort, driven trip by trip."""

    def __init__(self, count: int = COUNT, **terms: Any) -> None:
        self.identities, self.roster = _keys(COUNT)
        lanes = LanePlan(bound=1.0, levels=1001, lane=32, clients=64)
        self.policy = Policy(**{"plan": lanes, "corrupt": 0.0, **terms})
        self.layout = Layout((("vector", (LENGTH,), "float32"),), ())
        members = list(self.identities)[:count]
        self.clients = {member: self._client(member) for member in members}
        self.server = self.opened(self.policy)

    def _client(self, member: int) -> Client:
        return Client(self.identities[member], self.roster, self.policy, "run", RNG)

    def opened(self, policy: Policy, round_number: int = 1) -> Server:
        """Return a server with other terms or another round."""
        return Server(policy, "run", round_number, "train", RNG, self.roster)

    def advertise(self, member: int, server: Server | None = None):
        """Open a session and get a member's keys."""
        client = self.clients[member]
        client.open((server or self.server).setup)
        words = encode(np.full(LENGTH, 0.1), 1.0, {}, self.policy, RNG)
        return client.advertise(words, self.layout)

    def to(self, trip: str) -> Mapping[int, Any]:
        """Run honestly up to a trip, and return its messages."""
        for member in self.clients:
            self.server.receive(self.advertise(member))
        closing = {
            "share": self.server.inboxes,
            "mask": self.server.survivors,
            "commit": self.server.unmask_requests,
        }
        outgoing: Mapping[int, Any] = self.server.cohorts()
        for step, close in closing.items():
            if step == trip:
                return outgoing
            for member, message in outgoing.items():
                self.server.receive(getattr(self.clients[member], step)(message))
            outgoing = close()
        return outgoing

    def bundles(self) -> list[Bundle]:
        """Return everybody's keys."""
        return [Bundle.from_bytes(data) for data in self.to("share")[1].bundles]

    def shares_with(self, bundles: list[Bundle]) -> bool:
        """Tell whether client 1 deals shares to this cohort."""
        cohort = Cohort(self.server.setup.session, tuple(each.to_bytes() for each in bundles))
        return bool(self.clients[1].share(cohort).ciphertexts)


def _public() -> bytes:
    return X25519PrivateKey.generate().public_key().public_bytes_raw()


def unmask(**changes: Any) -> bool:
    ours = Ours()
    request = ours.to("unmask")[1]
    return bool(ours.clients[1].unmask(replace(request, **changes)).shares)


def second_unmask() -> bool:
    ours = Ours()
    request = ours.to("unmask")[1]
    ours.clients[1].unmask(request)
    return bool(ours.clients[1].unmask(replace(request, members=(1, 2, 3))).shares)


def swapped_keys() -> bool:
    ours = Ours()
    first, *others = ours.bundles()
    forged = [replace(each, channel_key=_public(), mask_key=_public()) for each in others]
    return ours.shares_with([first, *forged])


def sybil() -> bool:
    ours = Ours()
    stranger, _ = identities(1, RNG)
    first = ours.bundles()[0]
    fake = Bundle.signed(
        stranger[1],
        ours.server.setup.session,
        9,
        _public(),
        _public(),
        first.commitment,
        first.layout,
        first.question,
    )
    return ours.shares_with([*map(Bundle.from_bytes, _cohort_bytes(ours)), fake])


def _cohort_bytes(ours: Ours) -> list[bytes]:
    return [bundle.to_bytes() for bundle in ours.server._in.bundles.values()]


def repeated_keys() -> bool:
    ours = Ours()
    bundles = ours.bundles()
    bundles[1] = Bundle.signed(
        ours.identities[2],
        ours.server.setup.session,
        2,
        bundles[2].channel_key,
        bundles[2].mask_key,
        bundles[1].commitment,
        bundles[1].layout,
        bundles[1].question,
    )
    return ours.shares_with(bundles)


def replayed_round() -> bool:
    ours = Ours()
    ours.to("commit")
    again = ours.opened(ours.policy)
    return bool(ours.advertise(1, again).bundle)


def weaker(**terms: Any) -> bool:
    ours = Ours()
    return bool(ours.advertise(1, ours.opened(replace(ours.policy, **terms))).bundle)


def cohort_of_two() -> bool:
    ours = Ours(min_clients=2)
    return ours.shares_with(ours.bundles()[:2])


def split_views() -> bool:
    ours = Ours()
    told = ours.to("commit")
    signatures: dict[tuple[int, ...], dict[int, bytes]] = {}
    for member, survivors in told.items():
        members = (1, 2, 3) if member in (1, 2) else (2, 3, 4)
        pairs = zip(survivors.signers, survivors.receipts, strict=True)
        kept = [(signer, receipt) for signer, receipt in pairs if signer in members]
        view = replace(
            survivors,
            members=members,
            signers=tuple(signer for signer, _ in kept),
            receipts=tuple(receipt for _, receipt in kept),
        )
        commit = ours.clients[member].commit(view)
        signatures.setdefault(members, {})[member] = commit.signature
    members, signed = next(iter(signatures.items()))
    request = UnmaskRequest(
        ours.server.setup.session, members, tuple(signed), tuple(signed.values())
    )
    return bool(ours.clients[1].unmask(request).shares)


def wrong_share() -> bool:
    ours = Ours()
    for member, request in ours.to("unmask").items():
        reveal = ours.clients[member].unmask(request)
        if member == 2:
            reveal = replace(reveal, shares=tuple(bytes(32) for _ in reveal.shares))
        ours.server.receive(reveal)
    summed = ours.server.result()
    return not (len(summed.survivors) == COUNT and {each.member for each in summed.faults} == {2})


def nan() -> bool:
    encode(np.full(LENGTH, np.nan), 1.0, {}, Ours().policy, RNG)
    return True


def early_dropout() -> bool:
    ours = Ours()
    cohorts = ours.to("share")
    for member, message in cohorts.items():
        if member != 2:
            ours.server.receive(ours.clients[member].share(message))
    for member, message in ours.server.inboxes().items():
        ours.server.receive(ours.clients[member].mask(message))
    for member, message in ours.server.survivors().items():
        ours.server.receive(ours.clients[member].commit(message))
    for member, message in ours.server.unmask_requests().items():
        ours.server.receive(ours.clients[member].unmask(message))
    return ours.server.result().survivors != (1, 3, 4)


def small_seed() -> bool:
    """Tell whether the folded 32-bit seed of a key explains what that key masks."""
    key = RNG.token(32)
    mask = (keystream(key, 8) % np.uint64(MODULUS)).astype(np.int64)
    return explains(mask, folded(key))


def plaintext() -> bool:
    ours = Ours()
    policy = replace(ours.policy, plan=integer_plan(64, 1000), clip=False)
    value = np.arange(LENGTH, dtype=np.float64)
    words = encode(value, 777.0, {"loss": 2.5}, policy, RNG)
    ours.layout = Layout((("vector", (LENGTH,), "float64"),), ("loss",))
    ours.policy = policy
    ours.clients = {member: ours._client(member) for member in ours.clients}
    ours.server = ours.opened(policy)
    for client in ours.clients.values():
        client.open(ours.server.setup)
        ours.server.receive(client.advertise(words, ours.layout))
    sent: list[bytes] = []
    for member, message in ours.server.cohorts().items():
        ours.server.receive(ours.clients[member].share(message))
    for member, message in ours.server.inboxes().items():
        sent.append(ours.clients[member].mask(message).words.tobytes())
    plain = words[-2:].tobytes()
    return any(plain in each or plain[:8] in each for each in sent)


def kept_secrets() -> bool:
    ours = Ours()
    request = ours.to("unmask")[1]
    ours.clients[1].unmask(request)
    kept = ours.clients[1].state.to_fields().values()
    return any(isinstance(value, bytes | list) for value in kept) or (
        ours.clients[1].words is not None
    )
