"""The client's half of secure aggregation under Flower: a mod that no plain answer passes."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from secure.aggregation import _messages as wire
from secure.aggregation._client import Client, StageError
from secure.aggregation._drive import log
from secure.aggregation._flower_wire import RECORD, SCHEMA_KEY, WORDS, to_records
from secure.aggregation._payload import Layout, encode, examples_and_metrics
from secure.aggregation._policy import Policy
from secure.aggregation._provision import credentials
from secure.aggregation._refusals import REFUSALS, refusal
from secure.aggregation._state import ClientState
from secure.aggregation._tensors import difference, flatten
from secure.errors import IntegrityError, MissingExtraError, ParameterError, PolicyError
from secure.random import SecureRandom

try:
    from flwr.app import Array, ArrayRecord, ConfigRecord, Context, Error, Message, RecordDict
except ImportError:
    raise MissingExtraError("flwr", "sim") from None

_ASKS: dict[str, tuple[type, Callable[[Client, Any], Any]]] = {
    "share": (wire.Cohort, Client.share),
    "mask": (wire.Inbox, Client.mask),
    "commit": (wire.Survivors, Client.commit),
    "unmask": (wire.UnmaskRequest, Client.unmask),
}

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
        return to_records(trip, step(client, wire.from_fields(ask, flat)))
    if trip != "advertise":
        raise IntegrityError("the server's message names no trip of the protocol")
    setup = wire.Setup.from_fields(flat)
    if setup.kind != kind:
        raise StageError(f"a {setup.kind} session can't be opened by a {kind} message")
    client.open(setup)
    received, reply = ask_app(message, context, call_next, RECORD)
    vector, layout, weight, metrics = _reply_parts(received, reply, policy, kind, weighted_by_key)
    words = encode(vector, weight, metrics, policy, SecureRandom())
    return to_records("advertise", client.advertise(words, layout))


def _reply_parts(
    received: RecordDict, reply: RecordDict, policy: Policy, kind: str, weighted_by_key: str
) -> tuple[NDArray[np.floating], Layout, float, dict[str, float]]:
    """Take the app's reply apart: update, what it holds, examples, metrics."""
    weight, metrics = only_metrics(reply, weighted_by_key)
    schemas = {
        str(config[SCHEMA_KEY]) for config in reply.config_records.values() if SCHEMA_KEY in config
    }
    if len(schemas) > 1:
        raise ParameterError(f"a reply holds one {SCHEMA_KEY}, got {len(schemas)}")
    arrays: dict[str, NDArray] = {}
    if kind == "train":
        arrays = only_arrays(reply, "a train reply")
        if policy.update == "weights":
            arrays = difference(arrays, only_arrays(received, "a train message"))
    vector, shapes = flatten(arrays)
    return vector, Layout(shapes, tuple(sorted(metrics)), "".join(schemas)), weight, metrics


def ask_app(
    message: Message,
    context: Context,
    call_next: Callable[[Message, Context], Message],
    record: str,
) -> tuple[RecordDict, RecordDict]:
    """Hand the app its message without the protocol's record: what it got, and what it answered.

    Raises:
        ParameterError: The app answered with an error.
    """
    received = RecordDict({name: each for name, each in message.content.items() if name != record})
    message.content = received
    reply = call_next(message, context)
    if reply.has_error():
        raise ParameterError("the app answered with an error of its own")
    return received, reply.content


def only_metrics(reply: RecordDict, weighted_by_key: str) -> tuple[float, dict[str, float]]:
    """Return examples and metrics of a reply that holds one MetricRecord."""
    records = list(reply.metric_records.values())
    if len(records) != 1:
        raise ParameterError(f"a reply holds one MetricRecord, got {len(records)}")
    return examples_and_metrics(records[0], weighted_by_key)


def only_arrays(content: RecordDict, whose: str) -> dict[str, NDArray]:
    """Return the arrays of a message that holds one ArrayRecord."""
    records = list(content.array_records.values())
    if len(records) != 1:
        raise ParameterError(f"{whose} holds one ArrayRecord, got {len(records)}")
    return {name: array.numpy() for name, array in records[0].items()}
