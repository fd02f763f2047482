"""Sums under encryption for Flower's Message API: the server adds what it cannot read.

    app = ClientApp(mods=[he_mod(policy)])                  # client_app.py
    strategy = HESumStrategy(FedAvg(...), policy)           # server_app.py

The strategy runs under an unmodified `Strategy.start()`. The clients' replies to the app's own
`train` message are ciphertexts; the server adds them and sends the sum to one client, by a second
`train` message that ends in the mod. That client decrypts it, adds the noise of
`HEPolicy.release`, and answers.

What it is worth is `secure.he.aggregation.LABEL`. The clients can't see what went into a
ciphertext: a server that lies can have one client's update decrypted. A server that does not lie,
and that no client helps, learns the noised sums. Masks (`secure.aggregation`) need neither.
"""

import time
from collections import Counter
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from secure.aggregation._payload import Aggregate, Layout
from secure.errors import IntegrityError, MissingExtraError, PeerError, PolicyError, SecureError
from secure.flower._exchange import exchange
from secure.flower._history import RoundRecord, TripRecord
from secure.flower._refusals import told
from secure.flower._sizes import size
from secure.flower._strategy import DEFAULT_TIMEOUT_S, SummingStrategy
from secure.flower._tensors import Arrays, is_float, restore, shapes_of
from secure.he._flower_client import he_mod, log
from secure.he._flower_state import HENode
from secure.he._flower_wire import (
    DECRYPT,
    ENCRYPT,
    PAYLOAD,
    RECORD,
    payload_of,
    record_of,
    to_content,
)
from secure.he.aggregation import EncryptedSum
from secure.he.errors import LayoutError
from secure.he.policy import HEPolicy
from secure.he.wire import Envelope, Kind, require_same_key

try:
    from flwr.app import Array, ArrayRecord, ConfigRecord, Message, MetricRecord, RecordDict
    from flwr.serverapp import Grid
    from flwr.serverapp.strategy import Strategy
except ImportError:
    raise MissingExtraError("flwr", "sim") from None

__all__ = ["DECRYPT", "ENCRYPT", "PAYLOAD", "RECORD", "HENode", "HESumStrategy", "he_mod"]


@dataclass(frozen=True)
class _Vector:
    """A client's encrypted vector, as it came."""

    layout: Layout
    question: bytes
    fingerprint: bytes
    data: bytes


@dataclass
class _Open:
    """A round that is under way."""

    number: int
    grid: Grid
    requests: list[Message]
    arrays: Arrays
    opened_at: float
    summed: set[int] = field(default_factory=set)
    refusals: dict[int, str] = field(default_factory=dict)
    faults: list[str] = field(default_factory=list)
    trips: list[TripRecord] = field(default_factory=list)

    @property
    def nodes(self) -> set[int]:
        return {message.metadata.dst_node_id for message in self.requests}

    @contextmanager
    def leaving_out(self, node: int) -> Iterator[None]:
        """Leave a node out of the round where its answer is not what it should be."""
        try:
            yield
        # What a hostile reply can make Flower's records raise is no fixed list.
        except Exception as error:
            why = str(error) if isinstance(error, SecureError) else type(error).__name__
            self.faults.append(f"node {node}: {why}")
            log.warning("node %d is left out of the round: %s", node, why)

    def refused(self, node: int, reply: Message) -> None:
        self.refusals[node] = told(reply.error.code)
        log.warning("node %d refuses: %s", node, self.refusals[node])

    def record(self, summed: int, reason: str, partial: tuple[str, ...] = ()) -> RoundRecord:
        return RoundRecord(
            self.number,
            "train",
            len(self.requests),
            summed,
            reason,
            tuple(self.trips),
            self.refusals,
            tuple(self.faults),
            "examples",
            partial=partial,
        )


class HESumStrategy(SummingStrategy):
    """Wraps a strategy so that it sees the mean of its clients' replies, and no reply.

    The inner strategy gets one reply: the mean of the updates, added to the arrays that were
    sent; the mean of each metric over the clients that have a number in range for it, weighted by
    examples; and the sum of the examples. Arrays of whole numbers keep the server's values. A
    round with fewer than `policy.quorum` clients, or whose sum nobody decrypts, is abandoned: the
    model stays, the run goes on. No client evaluates.

    Attributes:
        strategy: The inner strategy.
        history: One `RoundRecord` a round, with the bytes and seconds of both trips.
        noise: Standard deviation of the noise on an entry of the last round's weighted sum, 0
            if there was none.

    Args:
        strategy: As for `secure.aggregation.flower.SecAggStrategy`.
        policy: Terms of every round.
        trip_timeout_s: Seconds to wait for a client to decrypt: what each one that falls silent
            costs.

    Guarantees:
        Against a server that follows the protocol and gets the key from no client: it learns
        the noised sums, shapes and lengths. A server that lies reads single updates, and so
        does one that a single client works with.

    Raises:
        PolicyError: The strategy needs single updates, or has a `start` or a function for metrics
            of its own, which would never run.

    Example:
        >>> from flwr.serverapp.strategy import FedAvg
        >>> policy = HEPolicy(clients=10, bound=1.0, rounds=6)
        >>> strategy = HESumStrategy(FedAvg(fraction_evaluate=0.0), policy)
    """

    def __init__(
        self, strategy: Strategy, policy: HEPolicy, trip_timeout_s: float = DEFAULT_TIMEOUT_S
    ) -> None:
        super().__init__(strategy, log, RECORD)
        self.policy = policy
        self.noise = 0.0
        self._timeout_s = trip_timeout_s
        self._open: _Open | None = None

    def summary(self) -> None:
        """Log the inner strategy's summary and the terms."""
        log.info("sums under encryption: %s", self.policy)
        self.strategy.summary()

    def configure_train(
        self, server_round: int, arrays: ArrayRecord, config: ConfigRecord, grid: Grid
    ) -> Iterable[Message]:
        """Ask the clients that the inner strategy samples for encrypted updates.

        Raises:
            PolicyError: The model has more parameters than the policy has room for, so few or so
                many clients can't be summed, or they would be asked different things.
        """
        messages = list(self.strategy.configure_train(server_round, arrays, config, grid))
        self._open = None
        if not messages:
            return []
        impossible = self._checked("train", messages, grid)
        self._same_question(messages)
        before = self._sent_arrays(messages)
        parameters = sum(array.size for array in before.values() if is_float(array))
        if parameters >= self.policy.entries:
            raise PolicyError(f"{parameters} parameters do not fit entries={self.policy.entries}")
        number = self._next("train", server_round)
        requests = self._requests(messages, server_round, to_content(ENCRYPT, number))
        session = _Open(number, grid, requests, before, time.perf_counter())
        if impossible:
            log.warning("round %d is abandoned: %s", number, impossible)
            self.history.append(session.record(0, impossible))
            return []
        self._open = session
        return requests

    def _refuse_cohort(self, size: int) -> None:
        if not self.policy.quorum <= size <= self.policy.clients:
            raise PolicyError(
                f"{size} clients are no sum of {self.policy.quorum} to {self.policy.clients}"
            )

    def _foresee_evaluation(self, grid: Grid) -> None:
        """Nothing is foreseen: no client evaluates."""

    def aggregate_train(
        self, server_round: int, replies: Iterable[Message]
    ) -> tuple[ArrayRecord | None, MetricRecord | None]:
        """Add the ciphertexts, have the sum decrypted, and hand the mean to the inner strategy."""
        session, self._open = self._open, None
        if session is None:
            return None, None
        try:
            total, layout = self._add(session, list(replies))
            mean = self.policy.decode(self._decrypted(session, total, layout), layout, total.count)
            reply = self._mean_reply(session, mean, layout)
        except SecureError as error:
            log.warning("round %d is abandoned: %s", session.number, error)
            self.history.append(session.record(0, str(error)))
            self.noise = 0.0
            return None, None
        self.noise = self.policy.noise(total.plan.length)
        self.history.append(session.record(mean.clients, "", mean.partial))
        if mean.partial:
            log.warning("some clients had no number in range for %s", ", ".join(mean.partial))
        arrays, metrics = self._hand_on(self.strategy.aggregate_train, server_round, reply)
        if arrays is not None:
            # FedAvg's product with a weight would turn the counters into floats.
            for name, old in session.arrays.items():
                if name in arrays and not is_float(old):
                    arrays[name] = Array(old)
        return arrays, metrics

    def configure_evaluate(
        self, server_round: int, arrays: ArrayRecord, config: ConfigRecord, grid: Grid
    ) -> Iterable[Message]:
        """Send nothing: evaluation is the server's, on data of its own."""
        return []

    def aggregate_evaluate(
        self, server_round: int, replies: Iterable[Message]
    ) -> MetricRecord | None:
        """Return None: no client evaluates."""
        return None

    def _add(self, session: _Open, replies: list[Message]) -> tuple[EncryptedSum, Layout]:
        arrived = time.perf_counter()
        vectors: dict[int, _Vector] = {}
        for reply in replies:
            node = reply.metadata.src_node_id
            if reply.has_error():
                session.refused(node, reply)
                continue
            with session.leaving_out(node):
                if node in vectors or node not in session.nodes:
                    raise IntegrityError("an answer that was not asked for, or came twice")
                vectors[node] = self._vector(session, reply.content)
        if not vectors:
            raise self._too_few(session, replies, arrived)
        # What most agree on, so that one client with another key does not cost the round.
        kinds = Counter((each.layout, each.question, each.fingerprint) for each in vectors.values())
        (layout, question, fingerprint), _ = kinds.most_common(1)[0]
        total = EncryptedSum(self.policy.params, self.policy.length(layout))
        for node, vector in vectors.items():
            with session.leaving_out(node):
                if vector.layout != layout:
                    raise LayoutError("a vector of another layout than most")
                if vector.question != question:
                    raise IntegrityError("was asked something else than most")
                require_same_key(vector.fingerprint, fingerprint, "the ciphertext")
                total.add(vector.data)
                session.summed.add(node)
        if total.count < self.policy.quorum:
            raise self._too_few(session, replies, arrived)
        self._record_encrypt(session, replies, arrived)
        return total, layout

    def _too_few(self, session: _Open, replies: list[Message], arrived: float) -> PeerError:
        self._record_encrypt(session, replies, arrived)
        return PeerError(
            f"{len(session.summed)} clients sent a vector, {self.policy.quorum} are needed"
        )

    def _record_encrypt(self, session: _Open, replies: list[Message], arrived: float) -> None:
        session.trips.append(
            TripRecord(
                ENCRYPT,
                len(session.requests),
                len(session.summed),
                sum(map(size, session.requests)),
                sum(map(size, replies)),
                arrived - session.opened_at,
                time.perf_counter() - arrived,
            )
        )

    def _vector(self, session: _Open, content: RecordDict) -> _Vector:
        record = record_of(content, ENCRYPT, session.number)
        text, question = record.get("layout"), record.get("question")
        if not isinstance(text, str) or not isinstance(question, bytes) or len(question) != 32:
            raise IntegrityError("a vector without its layout, or without its question")
        layout = Layout.from_json(text)
        if layout.arrays != shapes_of(session.arrays):
            raise IntegrityError("an update of other arrays than the server's model")
        data = payload_of(content)
        fingerprint = Envelope.from_bytes(data, Kind.CIPHERTEXT).fingerprint
        return _Vector(layout, question, fingerprint, data)

    def _decrypted(
        self, session: _Open, total: EncryptedSum, layout: Layout
    ) -> NDArray[np.float64]:
        """Ask one client; the next one only where nothing was decrypted for the server."""
        payload = total.result().to_bytes()
        sent = upload = tried = answered = 0
        start = time.perf_counter()
        values = None
        # Rounds take turns, so that no client carries the whole cost.
        requests = sorted(session.requests, key=lambda each: each.metadata.dst_node_id)
        turn = session.number % len(requests)
        for request in requests[turn:] + requests[:turn]:
            meta = request.metadata
            if meta.dst_node_id not in session.summed or values is not None:
                continue
            ask = Message(
                to_content(DECRYPT, session.number, payload, summands=total.count),
                meta.dst_node_id,
                meta.message_type,
                group_id=meta.group_id,
            )
            sent, tried = sent + size(ask), tried + 1
            for node, reply in exchange(session.grid, [ask], self._timeout_s):
                upload += size(reply)
                if reply.has_error():
                    session.refused(node, reply)
                    continue
                # A client that answers with garbage has had its turn: the next one is asked.
                with session.leaving_out(node):
                    record_of(reply.content, DECRYPT, session.number)
                    data = payload_of(reply.content)
                    if len(data) != 8 * total.plan.length:
                        raise IntegrityError("a decrypted sum of another length")
                    found = np.frombuffer(data, dtype="<f8")
                    if not np.isfinite(found).all():
                        raise IntegrityError("a decrypted sum that is not finite")
                    if self.policy.count(found, layout.length) != total.count:
                        raise IntegrityError("a decrypted sum of another number of clients")
                    values, answered = found, 1
        seconds = time.perf_counter() - start
        session.trips.append(TripRecord(DECRYPT, tried, answered, sent, upload, seconds, 0.0))
        if values is None:
            raise PeerError("no client decrypted the sum")
        return values

    def _mean_reply(self, session: _Open, mean: Aggregate, layout: Layout) -> Message:
        arrays = restore(mean.mean, layout, session.arrays)
        content = RecordDict(
            {
                self._array_key: ArrayRecord(
                    {name: Array(np.asarray(array)) for name, array in arrays.items()}
                ),
                "metrics": MetricRecord({**mean.metrics, self._weight_key: mean.weight}),
            }
        )
        return Message(content, reply_to=session.requests[0])
