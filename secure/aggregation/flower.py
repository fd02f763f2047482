"""Secure aggregation for Flower's Message API: two lines in somebody else's app.

    app = ClientApp(mods=[secagg_mod(policy)])                 # client_app.py
    strategy = SecAggStrategy(FedAvg(...), policy)             # server_app.py

The strategy runs under an unmodified `Strategy.start()`. The first trip is the app's own `train`
or `evaluate` message; the others carry the same message type and end in the mod, so that the app
never sees them. The mod comes first in `mods`: what stands before it sees the protocol's messages.
"""

import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from secure.aggregation import _messages as wire
from secure.aggregation._client import Client, StageError
from secure.aggregation._drive import REJECTED, Answer, Drive, log
from secure.aggregation._history import RoundRecord
from secure.aggregation._keys import Roster
from secure.aggregation._payload import (
    Aggregate,
    Layout,
    decode,
    encode,
    examples_and_metrics,
)
from secure.aggregation._policy import Policy
from secure.aggregation._provision import credentials
from secure.aggregation._refusals import REFUSALS, refusal
from secure.aggregation._server import Server
from secure.aggregation._state import ClientState
from secure.aggregation._tensors import difference, flatten, is_float, restore
from secure.errors import (
    IntegrityError,
    MissingExtraError,
    ParameterError,
    PolicyError,
    SecureError,
)
from secure.random import SecureRandom

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
    from flwr.serverapp.strategy import (
        FedAdagrad,
        FedAdam,
        FedAvg,
        FedAvgM,
        FedProx,
        FedYogi,
        Strategy,
    )
except ImportError:
    raise MissingExtraError("flwr", "sim") from None

RECORD = "secagg"
WORDS = "secagg-words"
SCHEMA_KEY = "schema-hash"
_ANSWERS = {
    "advertise": wire.Advert,
    "share": wire.Dealt,
    "mask": wire.Masked,
    "commit": wire.Commit,
    "unmask": wire.Reveal,
}
_ASKS: dict[str, tuple[type, Callable[[Client, Any], Any]]] = {
    "share": (wire.Cohort, Client.share),
    "mask": (wire.Inbox, Client.mask),
    "commit": (wire.Survivors, Client.commit),
    "unmask": (wire.UnmaskRequest, Client.unmask),
}
# Their aggregate_train uses the replies only through the weighted mean.
_MEAN_ONLY = (FedAvg, FedProx, FedAvgM, FedAdagrad, FedAdam, FedYogi)
_PULL_FIRST_S, _PULL_MOST_S = 0.02, 1.0

Mod = Callable[[Message, Context, Callable[[Message, Context], Message]], Message]


def secagg_mod(
    policy: Policy, identities: Path | str | None = None, weighted_by_key: str = "num-examples"
) -> Mod:
    """Make the mod that lets a ClientApp answer under secure aggregation, and only so.

    Args:
        policy: The client's floor; it comes with the client's code, never from the server.
        identities: Directory that `provision` wrote, for simulations: a client takes the key of
            its `partition-id`. Without it the node's own configuration names both files:
            `secagg-identity` and `secagg-roster`.
        weighted_by_key: Metric that holds the number of examples.

    Returns:
        A mod for `ClientApp(mods=[...])`; it comes first.

    Guarantees:
        Of `train` and `evaluate` nothing leaves the client but masked words, keys, signatures,
        shares, names and shapes; an error leaves as one of the fixed codes of `REFUSALS`. A
        message without secure aggregation is refused. Handlers of `query` messages are the
        app's own affair and pass.

    Example:
        >>> from flwr.clientapp import ClientApp
        >>> from secure.aggregation import Policy, plan
        >>> app = ClientApp(mods=[secagg_mod(Policy(plan(10, clip_norm=1.0, error=1e-4)))])
    """
    directory = None if identities is None else Path(identities)

    def mod(
        message: Message, context: Context, call_next: Callable[[Message, Context], Message]
    ) -> Message:
        kind = message.metadata.message_type.partition(".")[0]
        if kind not in ("train", "evaluate"):
            return call_next(message, context)
        try:
            with _client(context, policy, directory) as client:
                content = _answer(
                    client, policy, kind, message, context, call_next, weighted_by_key
                )
        # The text of an exception may hold data: it stays in this machine's log.
        except Exception as error:
            code = refusal(error)
            log.error(
                "secure aggregation refused a %s message (%s): %s",
                kind,
                code,
                error,
                exc_info=code == "client",
            )
            return Message(Error(REFUSALS[code], f"secagg: {code}"), reply_to=message)
        return Message(content, reply_to=message)

    return mod


@contextmanager
def _client(context: Context, policy: Policy, directory: Path | None) -> Iterator[Client]:
    """Take the client up where the last message left it, and put it down again."""
    identity, roster = credentials(context.node_config, directory)
    kept = context.state.config_records.get(RECORD)
    array = context.state.array_records.get(WORDS)
    client = Client(
        identity,
        roster,
        policy,
        str(context.run_id),
        SecureRandom(),
        None if kept is None else ClientState.from_fields(dict(kept)),
        None if array is None else array["words"].numpy(),
    )
    try:
        yield client
    except BaseException:
        client.wipe()
        raise
    finally:
        context.state.config_records[RECORD] = ConfigRecord(client.state.to_fields())
        context.state.array_records.pop(WORDS, None)
        if client.words is not None:
            context.state.array_records[WORDS] = ArrayRecord({"words": Array(client.words)})


def _answer(
    client: Client,
    policy: Policy,
    kind: str,
    message: Message,
    context: Context,
    call_next: Callable[[Message, Context], Message],
    weighted_by_key: str,
) -> RecordDict:
    record = message.content.config_records.get(RECORD)
    if record is None:
        raise PolicyError("the server asks for a plain answer; this client gives masked ones only")
    flat = dict(record)
    trip = flat.pop("trip", None)
    if isinstance(trip, str) and trip in _ASKS:
        ask, step = _ASKS[trip]
        return _to_records(trip, step(client, wire.from_fields(ask, flat)))
    if trip != "advertise":
        raise IntegrityError("the server's message names no trip of the protocol")
    setup = wire.Setup.from_fields(flat)
    if setup.kind != kind:
        raise StageError(f"a {setup.kind} session can't be opened by a {kind} message")
    client.open(setup)
    content = RecordDict({name: each for name, each in message.content.items() if name != RECORD})
    message.content = content
    reply = call_next(message, context)
    if reply.has_error():
        raise ParameterError("the app answered with an error of its own")
    vector, layout, weight, metrics = _reply_parts(
        content, reply.content, policy, kind, weighted_by_key
    )
    words = encode(vector, weight, metrics, policy, SecureRandom())
    return _to_records("advertise", client.advertise(words, layout))


def _reply_parts(
    received: RecordDict, reply: RecordDict, policy: Policy, kind: str, weighted_by_key: str
) -> tuple[NDArray[np.floating], Layout, float, dict[str, float]]:
    """Take the app's reply apart: update, what it holds, examples, metrics."""
    records = list(reply.metric_records.values())
    if len(records) != 1:
        raise ParameterError(f"a reply holds one MetricRecord, got {len(records)}")
    weight, metrics = examples_and_metrics(records[0], weighted_by_key)
    schemas = {
        str(config[SCHEMA_KEY]) for config in reply.config_records.values() if SCHEMA_KEY in config
    }
    if len(schemas) > 1:
        raise ParameterError(f"a reply holds one {SCHEMA_KEY}, got {len(schemas)}")
    arrays: dict[str, NDArray] = {}
    if kind == "train":
        arrays = _only_arrays(reply, "a train reply")
        if policy.update == "weights":
            arrays = difference(arrays, _only_arrays(received, "a train message"))
    vector, shapes = flatten(arrays)
    return vector, Layout(shapes, tuple(sorted(metrics)), "".join(schemas)), weight, metrics


def _only_arrays(content: RecordDict, whose: str) -> dict[str, NDArray]:
    records = list(content.array_records.values())
    if len(records) != 1:
        raise ParameterError(f"{whose} holds one ArrayRecord, got {len(records)}")
    return {name: array.numpy() for name, array in records[0].items()}


def _to_records(trip: str, message: Any) -> RecordDict:
    flat = message.to_fields() if isinstance(message, wire.Setup) else wire.to_fields(message)
    content = RecordDict({RECORD: ConfigRecord(flat | {"trip": trip})})
    if isinstance(message, wire.Masked):
        content[WORDS] = ArrayRecord({"words": Array(message.words)})
    return content


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
        _refuse_single_updates(strategy)
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
        setup = _to_records("advertise", server.setup)
        requests = []
        for message in messages:
            meta = message.metadata
            content = RecordDict({**message.content, **setup})
            requests.append(
                Message(content, meta.dst_node_id, meta.message_type, group_id=str(server_round))
            )
        before = {name: array.numpy() for name, array in arrays.items()}
        drive = Drive(server, len(requests), sum(map(_size, requests)))
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
                Message(_to_records(trip, message), node, meta.message_type, group_id=meta.group_id)
                for node, message in outgoing.items()
            ]
            answers = _exchange(session.grid, messages, self._timeout_s)
            return sum(map(_size, messages)), _answers(trip, answers)

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


def _refuse_single_updates(strategy: Strategy) -> None:
    kind = type(strategy)
    owner = next(each for each in kind.__mro__ if "aggregate_train" in vars(each))
    if owner in _MEAN_ONLY or vars(owner).get("aggregates_mean_only") is True:
        return
    raise PolicyError(
        f"{kind.__name__} can't run under secure aggregation: {owner.__name__}.aggregate_train "
        "may look at single updates, and the server gets only their sum. Use FedAvg, FedProx, "
        "FedAvgM, FedAdagrad, FedAdam or FedYogi, or set aggregates_mean_only = True on a class "
        "that uses nothing but the weighted mean"
    )


def _size(message: Message) -> int:
    if message.has_error():
        return len(message.error.reason or "")
    return _content_bytes(message.content)


def _content_bytes(content: RecordDict) -> int:
    return sum(record.count_bytes() for record in content.values())


def upload_bytes(trip: str, message: Any) -> int:
    """Return the bytes of a protocol message as Flower carries it, with its names."""
    return _content_bytes(_to_records(trip, message))


def _from_records(trip: str, content: RecordDict) -> Any:
    """Take exactly one protocol message, and nothing that came along with it."""
    expected = {RECORD, WORDS} if trip == "mask" else {RECORD}
    record = content.config_records.get(RECORD)
    if set(content) != expected or record is None:
        raise IntegrityError(f"an answer to {trip!r} holds the records {sorted(content)}")
    flat = dict(record)
    if flat.pop("trip", None) != trip:
        raise StageError(f"an answer to another trip came during {trip!r}")
    words = None
    if trip == "mask":
        try:
            words = content.array_records[WORDS]["words"].numpy()
        except (KeyError, ValueError, TypeError):
            raise IntegrityError("a masked vector can't be read") from None
    return wire.from_fields(_ANSWERS[trip], flat, words)


def _answers(trip: str, replies: Iterable[tuple[int, Message]]) -> Iterator[Answer]:
    """Parse replies as they arrive."""
    for node, reply in replies:
        if reply.has_error():
            yield Answer(node, _size(reply), refusal=reply.error.reason or str(reply.error.code))
            continue
        try:
            message = _from_records(trip, reply.content)
        except SecureError as error:
            log.warning("node %d is left out of the round: %s", node, error)
            yield Answer(node, _size(reply), refusal=REJECTED)
            continue
        yield Answer(node, _size(reply), message)


def _exchange(
    grid: Grid, messages: list[Message], timeout_s: float
) -> Iterator[tuple[int, Message]]:
    """Send messages and give each answer out as it arrives, with the node it came from."""
    # A grid that could not push gives None for a message, or no ids at all.
    pushed = zip(grid.push_messages(messages), messages, strict=False)
    waiting = {each: message.metadata.dst_node_id for each, message in pushed if each}
    deadline = time.monotonic() + timeout_s
    pause = _PULL_FIRST_S
    while waiting:
        arrived = False
        for reply in grid.pull_messages(list(waiting)):
            node = waiting.pop(reply.metadata.reply_to_message_id, None)
            if node is not None:
                arrived = True
                yield node, reply
        if not waiting or time.monotonic() > deadline:
            return
        if not arrived:
            time.sleep(pause)
            pause = min(2 * pause, _PULL_MOST_S)
