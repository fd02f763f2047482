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

import logging
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from secure.aggregation._client import StageError
from secure.aggregation._history import RoundRecord, TripRecord
from secure.aggregation._payload import Aggregate, Layout, examples_and_metrics
from secure.aggregation._refusals import REFUSALS, refusal
from secure.aggregation._tensors import difference, flatten, is_float, restore
from secure.aggregation.flower import (
    Mod,
    _exchange,
    _only_arrays,
    _refuse_single_updates,
    _size,
)
from secure.errors import (
    IntegrityError,
    MissingExtraError,
    ParameterError,
    PeerError,
    PolicyError,
    SecureError,
)
from secure.he.aggregation import EncryptedSum
from secure.he.ciphertext import Encrypted
from secure.he.client import HEClient
from secure.he.errors import LayoutError
from secure.he.plans import SumPlan
from secure.he.policy import HEPolicy, load_key
from secure.he.wire import Envelope, Kind, require_same_key, require_same_parameters

try:
    from flwr.app import (
        Array,
        ArrayRecord,
        ConfigRecord,
        Context,
        Error,
        Message,
        MetricRecord,
        RecordDict,
    )
    from flwr.serverapp import Grid
    from flwr.serverapp.strategy import Strategy
except ImportError:
    raise MissingExtraError("flwr", "sim") from None

RECORD = "he"
PAYLOAD = "he-payload"
ENCRYPT, DECRYPT = "encrypt", "decrypt"
_ARRAY = "bytes"

log = logging.getLogger("secure.he")


def he_mod(
    policy: HEPolicy, key: Path | str | None = None, weighted_by_key: str = "num-examples"
) -> Mod:
    """Make the mod that lets a ClientApp answer `train` messages with ciphertexts, and only so.

    Args:
        policy: The client's floor; it comes with the client's code, never from the server.
        key: File that `provision_key` wrote; None takes the one that the node's configuration
            names as `he-key`.
        weighted_by_key: Metric that holds the number of examples.

    Returns:
        A mod for `ClientApp(mods=[...])`; it comes first.

    Guarantees:
        Of `train` nothing leaves the client but ciphertexts, names and shapes, and sums that
        say they hold `policy.quorum` clients, noised: one in each round that this client sent
        a vector in, and `policy.rounds` in all. Errors leave as fixed codes. `evaluate` is
        refused. Against a server that lies the sums are no protection: see the module.

    Example:
        >>> from flwr.clientapp import ClientApp
        >>> app = ClientApp(mods=[he_mod(HEPolicy(clients=10, bound=1.0, rounds=6))])
    """

    def mod(
        message: Message, context: Context, call_next: Callable[[Message, Context], Message]
    ) -> Message:
        kind = message.metadata.message_type.partition(".")[0]
        if kind not in ("train", "evaluate"):
            return call_next(message, context)
        try:
            if kind != "train":
                raise PolicyError("evaluation is not carried under encryption")
            content = _answer(policy, key, message, context, call_next, weighted_by_key)
        # The text of an exception may hold data: it stays in this machine's log.
        except Exception as error:
            code = refusal(error)
            log.error("refused a %s message (%s): %s", kind, code, error, exc_info=code == "client")
            return Message(Error(REFUSALS[code], f"he: {code}"), reply_to=message)
        return Message(content, reply_to=message)

    return mod


def _answer(
    policy: HEPolicy,
    key: Path | str | None,
    message: Message,
    context: Context,
    call_next: Callable[[Message, Context], Message],
    weighted_by_key: str,
) -> RecordDict:
    record = message.content.config_records.get(RECORD)
    if record is None:
        raise PolicyError("the server asks for a plain answer; this client gives encrypted ones")
    trip, number = record.get("trip"), record.get("round")
    if trip not in (ENCRYPT, DECRYPT) or type(number) is not int or number < 1:
        raise IntegrityError("the server's message names no trip and round of the protocol")
    place = key if key is not None else context.node_config.get("he-key")
    if not isinstance(place, str | Path) or not str(place):
        raise ParameterError("the node's configuration lacks he-key, the path of the clients' key")
    client = load_key(place)
    require_same_parameters(client.params.identity, policy.params.identity, "the clients' key")
    if trip == DECRYPT:
        return _decrypt(client, policy, number, message, context)
    state = _State.of(context)
    if number <= state.sent:
        raise StageError(f"round {number} is over: this client answered round {state.sent}")
    received = RecordDict({name: each for name, each in message.content.items() if name != RECORD})
    message.content = received
    reply = call_next(message, context)
    if reply.has_error():
        raise ParameterError("the app answered with an error of its own")
    records = list(reply.content.metric_records.values())
    if len(records) != 1:
        raise ParameterError(f"a reply holds one MetricRecord, got {len(records)}")
    weight, metrics = examples_and_metrics(records[0], weighted_by_key)
    update = difference(
        _only_arrays(reply.content, "a train reply"), _only_arrays(received, "a train message")
    )
    vector, shapes = flatten(update)
    entries = policy.encode(vector, weight, metrics)
    encrypted = client.encrypt(entries, SumPlan(policy.params, len(entries)))
    replace(state, sent=number, parameters=len(vector), length=len(entries)).keep(context)
    layout = Layout(shapes, tuple(sorted(metrics)))
    return _content(ENCRYPT, number, encrypted.to_bytes(), layout.to_json())


def _decrypt(
    client: HEClient, policy: HEPolicy, number: int, message: Message, context: Context
) -> RecordDict:
    """Decrypt what says that it is the sum of this round, once, and noise it."""
    state = _State.of(context)
    if number != state.sent or number == state.answered:
        raise StageError("a sum is decrypted once, in a round that this client takes part in")
    if state.released >= policy.rounds:
        raise PolicyError(f"this client has decrypted {state.released} sums, all it may")
    encrypted = Encrypted.from_bytes(_payload(message.content), policy.params)
    plan = SumPlan(policy.params, state.length)
    if not encrypted.is_result or encrypted.plan.tag != plan.tag:
        raise LayoutError("this is no sum of vectors like this client's own")
    total = client.release(encrypted, policy.release(state.length))[0]
    if not policy.quorum <= policy.count(total, state.parameters) <= policy.clients:
        raise PolicyError("the sum says that it holds too few clients, or too many")
    replace(state, answered=number, released=state.released + 1).keep(context)
    return _content(DECRYPT, number, total.astype("<f8").tobytes())


@dataclass(frozen=True)
class _State:
    """What a client remembers between messages; no secret among it."""

    sent: int = 0
    answered: int = 0
    released: int = 0
    parameters: int = 0
    length: int = 0

    @classmethod
    def of(cls, context: Context) -> "_State":
        kept = context.state.config_records.get(RECORD)
        return cls() if kept is None else cls(**dict(kept))  # pyright: ignore[reportArgumentType]

    def keep(self, context: Context) -> None:
        context.state.config_records[RECORD] = ConfigRecord(asdict(self))


def _content(trip: str, number: int, payload: bytes = b"", layout: str = "") -> RecordDict:
    record = ConfigRecord({"trip": trip, "round": number})
    if layout:
        record["layout"] = layout
    content = RecordDict({RECORD: record})
    if payload:
        array = np.frombuffer(payload, dtype=np.uint8)
        content[PAYLOAD] = ArrayRecord({_ARRAY: Array(array)})
    return content


def _payload(content: RecordDict) -> bytes:
    try:
        array = content.array_records[PAYLOAD][_ARRAY].numpy()
    except (KeyError, ValueError, TypeError):
        raise IntegrityError("the message holds no payload that can be read") from None
    if array.dtype != np.uint8 or array.ndim != 1:
        raise IntegrityError("a payload is a row of bytes")
    return array.tobytes()


@dataclass(frozen=True)
class _Vector:
    """A client's encrypted vector, as it came."""

    layout: Layout
    fingerprint: bytes
    data: bytes


@dataclass
class _Open:
    """A round that is under way."""

    number: int
    grid: Grid
    requests: list[Message]
    arrays: dict[str, NDArray]
    opened_at: float
    summed: set[int] = field(default_factory=set)
    refusals: dict[int, str] = field(default_factory=dict)
    faults: list[str] = field(default_factory=list)
    trips: list[TripRecord] = field(default_factory=list)

    @contextmanager
    def leaving_out(self, node: int) -> Iterator[None]:
        """Leave a node out of the round where its answer is not what it should be."""
        try:
            yield
        except SecureError as error:
            self.faults.append(f"node {node}: {error}")
            log.warning("node %d is left out of the round: %s", node, error)

    def record(self, summed: int, reason: str) -> RoundRecord:
        return RoundRecord(
            self.number,
            "train",
            len(self.requests),
            summed,
            reason,
            tuple(self.trips),
            self.refusals,
            tuple(self.faults),
        )


class HESumStrategy(Strategy):
    """Wraps a strategy so that it sees the mean of its clients' replies, and no reply.

    The inner strategy gets one reply: the mean of the updates, added to the arrays that were
    sent; the mean of each metric, weighted by examples; and the sum of the examples. Arrays of
    whole numbers keep the server's values. A round with fewer than `policy.quorum` clients, or
    whose sum nobody decrypts, is abandoned: the model stays, the run goes on. No client
    evaluates.

    Attributes:
        strategy: The inner strategy.
        history: One `RoundRecord` a round, with the bytes and seconds of both trips.
        noise: Standard deviation of the noise on an entry of the last weighted sum.

    Args:
        strategy: As for `secure.aggregation.flower.SecAggStrategy`.
        policy: Terms of every round.
        trip_timeout_s: Seconds to wait for a client to decrypt.

    Guarantees:
        Against a server that follows the protocol and gets the key from no client: it learns
        the noised sums, shapes and lengths. A server that lies reads single updates, and so
        does one that a single client works with.

    Raises:
        PolicyError: The strategy needs single updates.

    Example:
        >>> from flwr.serverapp.strategy import FedAvg
        >>> policy = HEPolicy(clients=10, bound=1.0, rounds=6)
        >>> strategy = HESumStrategy(FedAvg(fraction_evaluate=0.0), policy)
    """

    def __init__(
        self, strategy: Strategy, policy: HEPolicy, trip_timeout_s: float = 3600.0
    ) -> None:
        _refuse_single_updates(strategy)
        self.strategy = strategy
        self.policy = policy
        self.history: list[RoundRecord] = []
        self.noise = 0.0
        self._timeout_s = trip_timeout_s
        self._weight_key = str(getattr(strategy, "weighted_by_key", "num-examples"))
        self._array_key = str(getattr(strategy, "arrayrecord_key", "arrays"))
        self._open: _Open | None = None
        self._spent = 0

    def summary(self) -> None:
        """Log the inner strategy's summary and the terms."""
        log.info("sums under encryption: %s", self.policy)
        self.strategy.summary()

    def configure_train(
        self, server_round: int, arrays: ArrayRecord, config: ConfigRecord, grid: Grid
    ) -> Iterable[Message]:
        """Ask the clients that the inner strategy samples for encrypted updates.

        Raises:
            ParameterError: The model has more parameters than the policy has room for.
        """
        before = {name: array.numpy() for name, array in arrays.items()}
        parameters = sum(array.size for array in before.values() if is_float(array))
        if parameters >= self.policy.entries:
            raise ParameterError(
                f"{parameters} parameters do not fit entries={self.policy.entries}"
            )
        messages = list(self.strategy.configure_train(server_round, arrays, config, grid))
        self._open = None
        if not messages:
            return []
        # A strategy that is started again counts from 1, but a client opens no round twice.
        self._spent = max(server_round, self._spent + 1)
        asked = _content(ENCRYPT, self._spent)
        requests = [
            Message(
                RecordDict({**message.content, **asked}),
                message.metadata.dst_node_id,
                message.metadata.message_type,
                group_id=str(server_round),
            )
            for message in messages
        ]
        self._open = _Open(self._spent, grid, requests, before, time.perf_counter())
        return requests

    def aggregate_train(
        self, server_round: int, replies: Iterable[Message]
    ) -> tuple[ArrayRecord | None, MetricRecord | None]:
        """Add the ciphertexts, have the sum decrypted, and hand the mean to the inner strategy."""
        session, self._open = self._open, None
        if session is None:
            return None, None
        try:
            total, layout = self._add(session, list(replies))
            mean = self.policy.decode(self._decrypted(session, total), layout, total.count)
            reply = self._mean_reply(session, mean, layout)
        except SecureError as error:
            log.warning("round %d is abandoned: %s", session.number, error)
            self.history.append(session.record(0, str(error)))
            return None, None
        self.noise = self.policy.noise(total.plan.length)
        self.history.append(session.record(mean.clients, ""))
        arrays, metrics = self.strategy.aggregate_train(server_round, [reply])
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
                session.refusals[node] = reply.error.reason or str(reply.error.code)
                continue
            with session.leaving_out(node):
                vectors[node] = self._vector(session, reply.content)
        if not vectors:
            raise self._too_few(session, replies, arrived)
        # What most agree on, so that one client with another key does not cost the round.
        kinds = Counter((each.layout, each.fingerprint) for each in vectors.values())
        (layout, fingerprint), _ = kinds.most_common(1)[0]
        total = EncryptedSum(self.policy.params, self.policy.length(layout))
        for node, vector in vectors.items():
            with session.leaving_out(node):
                if vector.layout != layout:
                    raise LayoutError("a vector of another layout than most")
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
                sum(map(_size, session.requests)),
                sum(map(_size, replies)),
                arrived - session.opened_at,
                time.perf_counter() - arrived,
            )
        )

    def _vector(self, session: _Open, content: RecordDict) -> _Vector:
        record = _record(content, ENCRYPT, session.number)
        layout = Layout.from_json(str(record.get("layout")))
        self._require_layout(layout, session)
        data = _payload(content)
        return _Vector(layout, Envelope.from_bytes(data, Kind.CIPHERTEXT).fingerprint, data)

    def _require_layout(self, layout: Layout, session: _Open) -> None:
        ours = tuple((name, each.shape) for name, each in session.arrays.items() if is_float(each))
        if tuple((name, shape) for name, shape, _ in layout.arrays) != ours:
            raise IntegrityError("an update of other arrays than the server's model")

    def _decrypted(self, session: _Open, total: EncryptedSum) -> NDArray[np.float64]:
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
                _content(DECRYPT, session.number, payload),
                meta.dst_node_id,
                meta.message_type,
                group_id=meta.group_id,
            )
            sent, tried = sent + _size(ask), tried + 1
            for node, reply in _exchange(session.grid, [ask], self._timeout_s):
                upload += _size(reply)
                if reply.has_error():
                    session.refusals[node] = reply.error.reason or str(reply.error.code)
                    continue
                _record(reply.content, DECRYPT, session.number)
                data = _payload(reply.content)
                if len(data) != 8 * total.plan.length:
                    raise IntegrityError("a decrypted sum has another length than its ciphertext")
                values, answered = np.frombuffer(data, dtype="<f8"), 1
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


def _record(content: RecordDict, trip: str, number: int) -> ConfigRecord:
    """Take exactly one protocol message, and nothing that came along with it."""
    record = content.config_records.get(RECORD)
    if set(content) != {RECORD, PAYLOAD} or record is None:
        raise IntegrityError(f"an answer to {trip!r} holds the records {sorted(content)}")
    if record.get("trip") != trip or record.get("round") != number:
        raise IntegrityError(f"an answer to another trip or round came during {trip!r}")
    return record
