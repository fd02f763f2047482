"""Secure aggregation for Flower's Message API: two lines in somebody else's app.

    app = ClientApp(mods=[secagg_mod(policy)])                 # client_app.py
    strategy = SecAggStrategy(FedAvg(...), policy)             # server_app.py

The strategy runs under Flower's own `Strategy.start()`. The first trip is the app's own `train`
or `evaluate` message; the others carry the same message type and end in the mod, so that the app
never sees them. The mod comes first in `mods`: what stands before it sees the protocol's messages.
"""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np

from secure.aggregation._drive import REJECTED, Answer, Drive, log
from secure.aggregation._flower_client import secagg_mod
from secure.aggregation._flower_wire import (
    RECORD,
    SCHEMA_KEY,
    WORDS,
    closing,
    from_records,
    to_records,
    upload_bytes,
)
from secure.aggregation._keys import Roster
from secure.aggregation._node import Node
from secure.aggregation._payload import Aggregate, Layout, decode
from secure.aggregation._policy import Policy
from secure.aggregation._server import Server
from secure.errors import IntegrityError, MissingExtraError, SecureError
from secure.flower._exchange import exchange
from secure.flower._history import RoundRecord
from secure.flower._refusals import REFUSALS, told
from secure.flower._sizes import size
from secure.flower._strategy import DEFAULT_TIMEOUT_S, SummingStrategy
from secure.flower._tensors import Arrays, is_float, restore, shapes_of
from secure.random import SecureRandom

try:
    from flwr.app import Array, ArrayRecord, ConfigRecord, Message, MetricRecord, RecordDict
    from flwr.serverapp import Grid
    from flwr.serverapp.strategy import Strategy
except ImportError:
    raise MissingExtraError("flwr", "sim") from None

__all__ = [
    "CLIPPED",
    "RECORD",
    "REFUSALS",
    "SCHEMA_KEY",
    "UNUSABLE",
    "WORDS",
    "Node",
    "SecAggStrategy",
    "secagg_mod",
    "upload_bytes",
]

CLIPPED, UNUSABLE = "secagg-clipped", "secagg-unusable"
"""Metrics of a round in which updates were scaled down, or could not be used: how many."""
# Seconds that a round with a silent client may cost more, so that the others hear of its end.
_CLOSE_S = 5.0


@dataclass(frozen=True)
class _Open:
    """A session that is under way."""

    drive: Drive
    grid: Grid
    requests: list[Message]
    arrays: Arrays


class SecAggStrategy(SummingStrategy):
    """Wraps a strategy so that it sees the secure mean of its clients' replies, and no reply.

    The inner strategy gets one reply, which holds the mean of the updates (added to the arrays
    that it sent, unless the policy's update is `delta`), the mean of each metric weighted by
    examples, and the sum of the examples. Arrays of whole numbers keep the server's values. A
    round in which too few clients are left is abandoned: the model stays, the run goes on. A reply
    that is malformed in any way costs its client the round, and is named in the log.

    Attributes:
        strategy: The inner strategy.
        history: One `RoundRecord` for each session, with the bytes and seconds of every trip, how
            it was weighted, and how many updates were scaled down or could not be used.

    Args:
        strategy: FedAvg, FedProx, FedAvgM, FedAdagrad, FedAdam, FedYogi, or a subclass that
            inherits their `aggregate_train`; or one of your own that uses only the weighted
            mean of the replies and says so by the class attribute `aggregates_mean_only = True`.
            It sends all clients of a round the same model and configuration.
        policy: Terms of every session.
        roster: The clients' identities, so that a client with a wrong signature is left out
            at once; without it such a client costs the round. Its size is what the policy's
            `corrupt` counts against; without it the plan's clients are.
        trip_timeout_s: Seconds to wait for the answers of the second and later trips: what a
            client that falls silent costs, once.

    Raises:
        PolicyError: The strategy needs single updates, or has a `start` or a function for metrics
            of its own, which would never run.

    Example:
        >>> from flwr.serverapp.strategy import FedAvg
        >>> from secure.aggregation import Policy, plan
        >>> policy = Policy(plan(clients=10, clip_norm=1.0, error=1e-4))
        >>> strategy = SecAggStrategy(FedAvg(min_train_nodes=4, min_available_nodes=4), policy)
    """

    def __init__(
        self,
        strategy: Strategy,
        policy: Policy,
        roster: Roster | None = None,
        trip_timeout_s: float = DEFAULT_TIMEOUT_S,
    ) -> None:
        super().__init__(strategy, log, RECORD)
        members = policy.plan.clients if roster is None else len(roster.keys)
        self.policy = policy.for_roster(members)
        self._roster = roster
        self._timeout_s = trip_timeout_s
        self._rng = SecureRandom()
        self._open: _Open | None = None

    def summary(self) -> None:
        """Log the inner strategy's summary and the terms, those that change the mean in words."""
        policy = self.policy
        weights = f"by examples up to {policy.max_weight:,}"
        log.info(
            "secure aggregation (%s): clients weigh %s; updates beyond ±%g are %s; at least %d "
            "clients in a sum",
            policy.mode,
            weights if policy.weighting == "examples" else "alike, whatever their examples",
            policy.plan.bound,
            "left out" if policy.clip == "none" else f"scaled down ({policy.clip}), and counted",
            policy.fewest,
        )
        log.info("secure aggregation: %s", policy)
        self.strategy.summary()

    def configure_train(
        self, server_round: int, arrays: ArrayRecord, config: ConfigRecord, grid: Grid
    ) -> Iterable[Message]:
        """Open a session with the clients that the inner strategy samples.

        Raises:
            PolicyError: So few or so many clients can't be summed, and that in the first round;
                or they would be asked different things.
        """
        messages = list(self.strategy.configure_train(server_round, arrays, config, grid))
        return self._opened("train", server_round, messages, grid)

    def configure_evaluate(
        self, server_round: int, arrays: ArrayRecord, config: ConfigRecord, grid: Grid
    ) -> Iterable[Message]:
        """Open a session for the metrics of the clients that the inner strategy samples.

        Raises:
            PolicyError: As for `configure_train`.
        """
        messages = list(self.strategy.configure_evaluate(server_round, arrays, config, grid))
        return self._opened("evaluate", server_round, messages, grid)

    def aggregate_train(
        self, server_round: int, replies: Iterable[Message]
    ) -> tuple[ArrayRecord | None, MetricRecord | None]:
        """Run the remaining trips, and hand the mean to the inner strategy."""
        before = {} if self._open is None else self._open.arrays
        found = self._mean_reply(replies)
        if found is None:
            return None, None
        arrays, metrics = self._hand_on(self.strategy.aggregate_train, server_round, found)
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
        if mean is None:
            return None
        return self._hand_on(self.strategy.aggregate_evaluate, server_round, mean)

    def _refuse_cohort(self, size: int) -> None:
        self.policy.sharing(size)

    def _opened(
        self, kind: str, server_round: int, messages: list[Message], grid: Grid
    ) -> list[Message]:
        self._open = None
        if not messages:
            return []
        impossible = self._checked(kind, messages, grid)
        self._same_question(messages)
        weights = kind == "train" and self.policy.update == "weights"
        before = self._sent_arrays(messages) if weights else {}
        run = str(messages[0].metadata.run_id)
        number = self._next(kind, server_round)
        server = Server(self.policy, run, number, kind, self._rng, self._roster)
        requests = self._requests(messages, server_round, to_records("advertise", server.setup))
        drive = Drive(server, len(requests), sum(map(size, requests)))
        if impossible:
            log.warning("%s round %d is abandoned: %s", kind, number, impossible)
            self.history.append(drive.record(None, impossible))
            return []
        self._open = _Open(drive, grid, requests, before)
        return requests

    def _mean_reply(self, replies: Iterable[Message]) -> Message | None:
        """Bring the open session to its end: a reply with the means, or None."""
        session, self._open = self._open, None
        if session is None:
            return None
        drive = session.drive
        mean, reason, reply = None, "", None

        def send(trip: str, outgoing: dict[int, Any]) -> tuple[int, Iterator[Answer]]:
            contents = {node: to_records(trip, message) for node, message in outgoing.items()}
            messages = _addressed(session, contents)
            answers = exchange(session.grid, messages, self._timeout_s)
            return sum(map(size, messages)), _answers(trip, answers, session)

        try:
            adverts = _answers("advertise", _asked(replies, session), session)
            total = drive.run(adverts, send)
            mean = decode(total.words, total.layout, self.policy, len(total.survivors))
            content = self._mean_content(session, total.layout, mean)
            reply = Message(content, reply_to=session.requests[0])
        except SecureError as error:
            mean, reason = None, str(error)
            setup = drive.server.setup
            log.warning("%s round %d is abandoned: %s", setup.kind, setup.round, reason)
        self._close(session)
        record = drive.record(mean, reason)
        self.history.append(record)
        if mean is not None:
            _tell(record)
        return reply

    def _close(self, session: _Open) -> None:
        """Have the clients that didn't come to the end forget the session's secrets."""
        left = session.drive.unfinished()
        content = closing(session.drive.server.setup.session)
        messages = _addressed(session, dict.fromkeys(left, content))
        for _ in exchange(session.grid, messages, min(self._timeout_s, _CLOSE_S)):
            pass

    def _mean_content(self, session: _Open, layout: Layout, mean: Aggregate) -> RecordDict:
        metrics = MetricRecord({**mean.metrics, self._weight_key: mean.weight})
        if mean.clipped:
            metrics[CLIPPED] = mean.clipped
        if mean.kept < mean.clients:
            metrics[UNUSABLE] = mean.clients - mean.kept
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


def _tell(record: RoundRecord) -> None:
    """Say in the log what the mean is of."""
    log.info(
        "%s round %d: %d of %d clients summed, weighted %s",
        record.kind,
        record.round,
        record.summed,
        record.asked,
        "by examples" if record.weighting == "examples" else "alike",
    )
    if record.clipped:
        log.warning("%d updates were scaled down to the policy's bound", record.clipped)
    if record.unusable:
        log.warning("%d updates could not be used and weigh nothing", record.unusable)
    if record.partial:
        log.warning("some clients had no number in range for %s", ", ".join(record.partial))


def _addressed(session: _Open, contents: dict[int, RecordDict]) -> list[Message]:
    meta = session.requests[0].metadata
    return [
        Message(content, node, meta.message_type, group_id=meta.group_id)
        for node, content in contents.items()
    ]


def _asked(replies: Iterable[Message], session: _Open) -> Iterator[tuple[int, Message]]:
    """Give out the replies of the nodes that were asked, one each."""
    waiting = {message.metadata.dst_node_id for message in session.requests}
    for reply in replies:
        node = reply.metadata.src_node_id
        if node not in waiting:
            log.warning("node %d answers unasked, or twice, and is not heard", node)
            continue
        waiting.remove(node)
        yield node, reply


def _answers(trip: str, replies: Iterable[tuple[int, Message]], session: _Open) -> Iterator[Answer]:
    """Parse replies as they arrive; one that can't be parsed costs its node the round."""
    for node, reply in replies:
        count = 0
        try:
            count = size(reply)
            if reply.has_error():
                code = told(reply.error.code)
                log.warning("node %d refuses: %s", node, code)
                yield Answer(node, count, refusal=code)
                continue
            message = from_records(trip, reply.content)
            if trip == "advertise":
                _check_layout(message.layout, session)
        # What a hostile reply can make Flower's records raise is no fixed list.
        except Exception as error:
            why = str(error) if isinstance(error, SecureError) else type(error).__name__
            log.warning("node %d is left out of the round: %s", node, why)
            yield Answer(node, count, refusal=REJECTED)
            continue
        yield Answer(node, count, message)


def _check_layout(text: str, session: _Open) -> None:
    """Refuse a vector that is not one for the model that was sent."""
    layout = Layout.from_json(text)
    if session.arrays and layout.arrays != shapes_of(session.arrays):
        raise IntegrityError("an update of other arrays than the model that was sent")
    if session.drive.server.setup.kind == "evaluate" and layout.arrays:
        raise IntegrityError("an evaluation that holds arrays")
