"""Secure aggregation for Flower's Message API: two lines in somebody else's app.

    app = ClientApp(mods=[secagg_mod(policy)])                 # client_app.py
    strategy = SecAggStrategy(FedAvg(...), policy)             # server_app.py

The strategy runs under an unmodified `Strategy.start()`. The first trip is the app's own `train`
or `evaluate` message; the others carry the same message type and end in the mod, so that the app
never sees them. The mod comes first in `mods`: what stands before it sees the protocol's messages.
"""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from secure.aggregation._drive import REJECTED, Answer, Drive, log
from secure.aggregation._flower_client import secagg_mod
from secure.aggregation._flower_wire import (
    RECORD,
    SCHEMA_KEY,
    WORDS,
    exchange,
    from_records,
    size,
    to_records,
    upload_bytes,
)
from secure.aggregation._history import RoundRecord
from secure.aggregation._keys import Roster
from secure.aggregation._mean_only import refuse_single_updates
from secure.aggregation._payload import Aggregate, Layout, decode
from secure.aggregation._policy import Policy
from secure.aggregation._refusals import REFUSALS
from secure.aggregation._server import Server
from secure.aggregation._tensors import is_float, restore
from secure.errors import MissingExtraError, SecureError
from secure.random import SecureRandom

try:
    from flwr.app import Array, ArrayRecord, ConfigRecord, Message, MetricRecord, RecordDict
    from flwr.serverapp import Grid
    from flwr.serverapp.strategy import Strategy
except ImportError:
    raise MissingExtraError("flwr", "sim") from None

__all__ = [
    "RECORD",
    "REFUSALS",
    "SCHEMA_KEY",
    "WORDS",
    "SecAggStrategy",
    "secagg_mod",
    "upload_bytes",
]


@dataclass(frozen=True)
class _Open:
    """A session that is under way."""

    drive: Drive
    grid: Grid
    requests: list[Message]
    arrays: dict[str, NDArray]


class SecAggStrategy(Strategy):
    """Wraps a strategy so that it sees the secure mean of its clients' replies, and no reply.

    The inner strategy gets one reply, which holds the mean of the updates (added to the arrays
    that were sent, unless the policy's update is `delta`), the mean of each metric weighted by
    examples, and the sum of the examples. Arrays of whole numbers keep the server's values. A
    round in which too few clients are left is abandoned: the model stays, the run goes on.

    Attributes:
        strategy: The inner strategy.
        history: One `RoundRecord` for each session, with the bytes and seconds of every trip.

    Args:
        strategy: FedAvg, FedProx, FedAvgM, FedAdagrad, FedAdam, FedYogi, or a subclass that
            inherits their `aggregate_train`; or one of your own that uses only the weighted
            mean of the replies and says so by the class attribute `aggregates_mean_only = True`.
        policy: Terms of every session.
        roster: The clients' identities, so that a client with a wrong signature is left out
            at once; without it such a client costs the round.
        trip_timeout_s: Seconds to wait for the answers of the second and later trips.

    Raises:
        PolicyError: The strategy needs single updates.

    Example:
        >>> from flwr.serverapp.strategy import FedAvg
        >>> from secure.aggregation import Policy, plan
        >>> policy = Policy(plan(clients=10, clip_norm=1.0, error=1e-4))
        >>> strategy = SecAggStrategy(FedAvg(min_train_nodes=3, min_available_nodes=3), policy)
    """

    def __init__(
        self,
        strategy: Strategy,
        policy: Policy,
        roster: Roster | None = None,
        trip_timeout_s: float = 3600.0,
    ) -> None:
        refuse_single_updates(strategy)
        self.strategy = strategy
        self.policy = policy
        self.history: list[RoundRecord] = []
        self._roster = roster
        self._timeout_s = trip_timeout_s
        self._weight_key = str(getattr(strategy, "weighted_by_key", "num-examples"))
        self._array_key = str(getattr(strategy, "arrayrecord_key", "arrays"))
        self._rng = SecureRandom()
        self._open: _Open | None = None
        self._spent: dict[str, int] = {}

    def summary(self) -> None:
        """Log the inner strategy's summary and the terms."""
        log.info("secure aggregation: %s", self.policy)
        self.strategy.summary()

    def configure_train(
        self, server_round: int, arrays: ArrayRecord, config: ConfigRecord, grid: Grid
    ) -> Iterable[Message]:
        """Open a session with the clients that the inner strategy samples."""
        messages = list(self.strategy.configure_train(server_round, arrays, config, grid))
        return self._opened("train", server_round, messages, grid, arrays)

    def configure_evaluate(
        self, server_round: int, arrays: ArrayRecord, config: ConfigRecord, grid: Grid
    ) -> Iterable[Message]:
        """Open a session for the metrics of the clients that the inner strategy samples."""
        messages = list(self.strategy.configure_evaluate(server_round, arrays, config, grid))
        return self._opened("evaluate", server_round, messages, grid, arrays)

    def aggregate_train(
        self, server_round: int, replies: Iterable[Message]
    ) -> tuple[ArrayRecord | None, MetricRecord | None]:
        """Run the remaining trips, and hand the mean to the inner strategy."""
        before = {} if self._open is None else self._open.arrays
        mean = self._mean_reply(replies)
        if mean is None:
            return None, None
        arrays, metrics = self.strategy.aggregate_train(server_round, [mean])
        if arrays is not None and self.policy.update == "weights":
            # FedAvg's product with a weight would turn the counters into floats.
            for name, old in before.items():
                if name in arrays and not is_float(old):
                    arrays[name] = Array(old)
        return arrays, metrics

    def aggregate_evaluate(
        self, server_round: int, replies: Iterable[Message]
    ) -> MetricRecord | None:
        """Run the remaining trips, and hand the mean metrics to the inner strategy."""
        mean = self._mean_reply(replies)
        return None if mean is None else self.strategy.aggregate_evaluate(server_round, [mean])

    def _opened(
        self, kind: str, server_round: int, messages: list[Message], grid: Grid, arrays: ArrayRecord
    ) -> list[Message]:
        self._open = None
        if not messages:
            return []
        run = str(messages[0].metadata.run_id)
        # A strategy that is started again counts from 1, but a client opens no round twice.
        number = max(server_round, self._spent.get(kind, 0) + 1)
        self._spent[kind] = number
        server = Server(self.policy, run, number, kind, self._rng, self._roster)
        setup = to_records("advertise", server.setup)
        requests = []
        for message in messages:
            meta = message.metadata
            content = RecordDict({**message.content, **setup})
            requests.append(
                Message(content, meta.dst_node_id, meta.message_type, group_id=str(server_round))
            )
        before = {name: array.numpy() for name, array in arrays.items()}
        drive = Drive(server, len(requests), sum(map(size, requests)))
        self._open = _Open(drive, grid, requests, before)
        return requests

    def _mean_reply(self, replies: Iterable[Message]) -> Message | None:
        """Bring the open session to its end: a reply with the means, or None."""
        session, self._open = self._open, None
        if session is None:
            return None
        drive, first = session.drive, session.requests[0]

        def send(trip: str, outgoing: dict[int, Any]) -> tuple[int, Iterator[Answer]]:
            meta = first.metadata
            messages = [
                Message(to_records(trip, message), node, meta.message_type, group_id=meta.group_id)
                for node, message in outgoing.items()
            ]
            answers = exchange(session.grid, messages, self._timeout_s)
            return sum(map(size, messages)), _answers(trip, answers)

        adverts = ((reply.metadata.src_node_id, reply) for reply in replies)
        summed, reason, reply = 0, "", None
        try:
            total = drive.run(_answers("advertise", adverts), send)
            mean = decode(total.words, total.layout, self.policy, len(total.survivors))
            reply = Message(self._mean_content(session, total.layout, mean), reply_to=first)
            summed = mean.clients
        except SecureError as error:
            reason = str(error)
            setup = drive.server.setup
            log.warning("%s round %d is abandoned: %s", setup.kind, setup.round, reason)
        self.history.append(drive.record(summed, reason))
        return reply

    def _mean_content(self, session: _Open, layout: Layout, mean: Aggregate) -> RecordDict:
        metrics = MetricRecord({**mean.metrics, self._weight_key: mean.weight})
        content = RecordDict({"metrics": metrics})
        if layout.schema:
            content["schema"] = ConfigRecord({SCHEMA_KEY: layout.schema})
        if session.drive.server.setup.kind == "evaluate":
            return content
        before = session.arrays if self.policy.update == "weights" else None
        arrays = restore(mean.mean, layout, before)
        content[self._array_key] = ArrayRecord(
            {name: Array(np.asarray(array)) for name, array in arrays.items()}
        )
        return content


def _answers(trip: str, replies: Iterable[tuple[int, Message]]) -> Iterator[Answer]:
    """Parse replies as they arrive."""
    for node, reply in replies:
        if reply.has_error():
            yield Answer(node, size(reply), refusal=reply.error.reason or str(reply.error.code))
            continue
        try:
            message = from_records(trip, reply.content)
        except SecureError as error:
            log.warning("node %d is left out of the round: %s", node, error)
            yield Answer(node, size(reply), refusal=REJECTED)
            continue
        yield Answer(node, size(reply), message)
