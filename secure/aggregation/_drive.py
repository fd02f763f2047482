"""Drives a server session over any transport, and records what every trip took."""

import logging
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from typing import Any

from secure.aggregation._payload import Aggregate
from secure.aggregation._server import SecureSum, Server
from secure.errors import IntegrityError, SecureError
from secure.flower._history import RoundRecord, TripRecord
from secure.flower._refusals import REFUSALS

log = logging.getLogger("secure.aggregation")

REJECTED = "rejected by the server"


@dataclass(frozen=True)
class Answer:
    """What came back from a node.

    Attributes:
        node: The transport's name of the client.
        size: Bytes of the answer.
        message: The protocol's message, or None.
        refusal: Why there is none.
    """

    node: int
    size: int
    message: Any = None
    refusal: str = ""


Send = Callable[[str, dict[int, Any]], tuple[int, Iterable[Answer]]]
"""`send(trip, message by node)`: bytes sent, and the answers as they arrive."""


class Drive:
    """One session: which node is which member, and the record of its trips.

    Args:
        server: A fresh server.
        asked: Clients that the session is opened with.
        opening_bytes: Bytes of the messages that open it.
    """

    def __init__(self, server: Server, asked: int, opening_bytes: int) -> None:
        self.server = server
        self._asked = asked
        self._opening_bytes = opening_bytes
        self._opened_at = time.perf_counter()
        self._nodes: dict[int, int] = {}
        self._revealed: set[int] = set()
        self._refusals: dict[int, str] = {}
        self._trips: list[TripRecord] = []

    def run(self, adverts: Iterable[Answer], send: Send) -> SecureSum:
        """Take the first trip's answers in, run the other trips, and unmask the sum.

        Raises:
            PeerError: Too few clients are left; the round is abandoned.
            IntegrityError: A client dealt shares of a wrong secret.
        """
        self._take("advertise", self._asked, self._opening_bytes, adverts, self._opened_at, 0.0)
        steps: list[tuple[str, Callable[[], dict[int, Any]]]] = [
            ("share", self.server.cohorts),
            ("mask", self.server.inboxes),
            ("commit", self.server.survivors),
            ("unmask", self.server.unmask_requests),
        ]
        for trip, step in steps:
            if trip == "commit" and not self.server.policy.active:
                continue
            start = time.perf_counter()
            outgoing = {self._nodes[member]: message for member, message in step().items()}
            computed = time.perf_counter() - start
            sent_bytes, answers = send(trip, outgoing)
            self._take(trip, len(outgoing), sent_bytes, answers, time.perf_counter(), computed)
        start = time.perf_counter()
        total = self.server.result()
        # The sum is unmasked after the last trip, and belongs to it.
        last = self._trips[-1]
        self._trips[-1] = replace(last, server_s=last.server_s + time.perf_counter() - start)
        return total

    def _take(
        self,
        trip: str,
        sent: int,
        sent_bytes: int,
        answers: Iterable[Answer],
        start: float,
        computed: float,
    ) -> None:
        """Take a trip's answers in as they come, and keep none of them."""
        answered = received = 0
        waited = 0.0
        for answer in answers:
            arrived = time.perf_counter()
            waited += arrived - start
            received += answer.size
            answered += self._accept(answer)
            start = time.perf_counter()
            computed += start - arrived
        waited += time.perf_counter() - start
        self._trips.append(TripRecord(trip, sent, answered, sent_bytes, received, waited, computed))

    def _accept(self, answer: Answer) -> bool:
        node, message = answer.node, answer.message
        if message is None:
            self._refusals[node] = answer.refusal
            return False
        try:
            sender = getattr(message, "sender", None)
            if sender is None and node in self._nodes.values():
                raise IntegrityError(f"node {node} advertises twice")
            if sender is not None and self._nodes.get(sender) != node:
                raise IntegrityError(f"node {node} answers for another member than its own")
            member = self.server.receive(message)
        except SecureError as error:
            log.warning("node %d is left out of the round: %s", node, error)
            self._refusals[node] = REJECTED
            return False
        self._nodes.setdefault(member, node)
        if self._trips and len(self._trips) + 1 == self._last:
            self._revealed.add(node)
        return True

    @property
    def _last(self) -> int:
        return 5 if self.server.policy.active else 4

    def unfinished(self) -> list[int]:
        """Return the nodes that sent keys, and neither came to the session's end nor ended it."""
        # Who refused has forgotten already; who could not be reached has not.
        ended = {node for node, code in self._refusals.items() if code in REFUSALS}
        return [node for node in self._nodes.values() if node not in self._revealed | ended]

    def record(self, mean: Aggregate | None, reason: str) -> RoundRecord:
        """Return what the session took and how it ended."""
        setup = self.server.setup
        summed = 0 if mean is None else mean.clients
        return RoundRecord(
            setup.round,
            setup.kind,
            self._asked,
            summed,
            reason,
            tuple(self._trips),
            dict(self._refusals),
            tuple(f"member {each.member}: {each.reason}" for each in self.server.faults),
            str(setup.terms.weighting),
            0 if mean is None else mean.clipped,
            0 if mean is None else mean.clients - mean.kept,
            () if mean is None else mean.partial,
        )
