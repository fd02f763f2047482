"""A whole session in one process, without a network: for tests, benchmarks and simulations."""

import time
from collections.abc import Callable, Collection, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from functools import cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

from secure.aggregation._client import Client
from secure.aggregation._keys import Identity, Roster, verify
from secure.aggregation._payload import Aggregate, Layout, decode, encode
from secure.aggregation._policy import Policy
from secure.aggregation._server import SecureSum, Server
from secure.errors import ParameterError, SecureError
from secure.random import SecureRandom

TRIPS = ("advertise", "share", "mask", "commit", "unmask")


@dataclass
class Session:
    """What a local session took.

    Attributes:
        client_s: CPU seconds of all clients together, by trip.
        server_s: CPU seconds of the server.
        refusals: Error by member, for clients that refused.
    """

    client_s: dict[str, float] = field(default_factory=lambda: dict.fromkeys(TRIPS, 0.0))
    server_s: float = 0.0
    refusals: dict[int, SecureError] = field(default_factory=dict)


def identities(count: int, rng: SecureRandom) -> tuple[dict[int, Identity], Roster]:
    """Draw identities for members 1 to `count`, and the roster that lists them."""
    drawn = {member: Identity.generate(rng) for member in range(1, count + 1)}
    return drawn, Roster({member: each.public_key for member, each in drawn.items()})


def run_session(
    server: Server,
    clients: Mapping[int, Client],
    words: Mapping[int, NDArray[np.uint64]],
    layout: Layout,
    drop: Mapping[str, Collection[int]] | None = None,
    timings: Session | None = None,
) -> SecureSum:
    """Run all trips between a server and clients in this process.

    Args:
        server: A fresh server.
        clients: By member.
        words: Encoded vector by member.
        layout: What each vector holds.
        drop: Members that don't answer a trip, by its name in `TRIPS`; who is gone stays gone.
        timings: Filled with seconds and refusals.

    Returns:
        What the server learns.

    Raises:
        PeerError: Too few members were left.
    """
    drop, timings = drop or {}, timings or Session()
    gone: set[int] = set()

    def trip(name: str, outgoing: Mapping[int, Any], answer: Callable[[Client, Any], Any]) -> None:
        gone.update(drop.get(name, ()))
        for member, message in outgoing.items():
            if member in gone:
                continue
            start = time.process_time()
            try:
                reply = answer(clients[member], message)
            except SecureError as error:
                timings.refusals[member] = error
                gone.add(member)
                continue
            middle = time.process_time()
            with suppress(SecureError):
                server.receive(reply)
            timings.client_s[name] += middle - start
            timings.server_s += time.process_time() - middle

    def closed(step: Callable[[], Any]) -> Any:
        start = time.process_time()
        try:
            return step()
        finally:
            timings.server_s += time.process_time() - start

    def advertise(client: Client, setup: Any) -> Any:
        client.open(setup)
        return client.advertise(words[client.member], layout)

    trip("advertise", dict.fromkeys(clients, server.setup), advertise)
    trip("share", closed(server.cohorts), Client.share)
    trip("mask", closed(server.inboxes), Client.mask)
    if server.policy.active:
        trip("commit", closed(server.survivors), Client.commit)
    trip("unmask", closed(server.unmask_requests), Client.unmask)
    return closed(server.result)


class LocalAggregator:
    """Sums vectors through the whole protocol in this process.

    Attributes:
        tolerance: Largest absolute error of a coordinate of the sum: every survivor is rounded
            by less than one step, plus what float64 loses in decoding.

    Args:
        policy: Terms; its plan's bound is the largest L2 norm of a vector.

    Example:
        >>> from secure.aggregation import Policy, plan
        >>> policy = Policy(plan(clients=3, clip_norm=1.0, error=1e-4), mode="semi-honest")
        >>> aggregator = LocalAggregator(policy)
        >>> total = aggregator.sum([np.full(4, 0.25, dtype=np.float32)] * 3)
        >>> bool(np.abs(total - 0.75).max() <= aggregator.tolerance)
        True
    """

    def __init__(self, policy: Policy) -> None:
        self.policy = policy
        self.tolerance = policy.plan.clients * policy.plan.step * (1 + 1e-6)
        self._rng = SecureRandom()

    def sum(
        self,
        vectors: Sequence[NDArray[np.floating]],
        drop: Mapping[str, Collection[int]] | None = None,
    ) -> NDArray[np.float64]:
        """Return the sum of the vectors of the clients that stayed: float64, shape `(length,)`.

        Args:
            vectors: One a client, floating, shape `(length,)`; client 1 is the first.
            drop: Clients that don't answer a trip.

        Raises:
            ParameterError: A vector is not finite or of another length.
            PeerError: Too few clients stayed.
        """
        got = self.aggregate(vectors, drop)
        return got.mean * got.clients

    def aggregate(
        self,
        vectors: Sequence[NDArray[np.floating]],
        drop: Mapping[str, Collection[int]] | None = None,
        timings: Session | None = None,
    ) -> Aggregate:
        """Return the mean with its counts; `timings` is filled."""
        lengths = {len(vector) for vector in vectors}
        if len(lengths) != 1:
            raise ParameterError(f"vectors of one length are summed, got {sorted(lengths)}")
        layout = Layout((("vector", (lengths.pop(),), "float32"),), ())
        keys, roster = identities(len(vectors), self._rng)
        # Every client checks every signature; in one process each has to be computed only once.
        check = cache(verify)
        # The full weight for each, so that none of the lanes' room is lost to small ones.
        weight = 1.0 if self.policy.weighting == "uniform" else float(self.policy.max_weight)
        words = {
            member: encode(vector, weight, {}, self.policy, self._rng)
            for member, vector in enumerate(vectors, 1)
        }
        clients = {
            member: Client(identity, roster, self.policy, "local", self._rng, check=check)
            for member, identity in keys.items()
        }
        server = Server(self.policy, "local", 1, "train", self._rng, roster, check)
        summed = run_session(server, clients, words, layout, drop, timings)
        return decode(summed.words, layout, self.policy, len(summed.survivors))
