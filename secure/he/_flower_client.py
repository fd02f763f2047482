"""The client of an encrypted sum under Flower: a mod."""

import logging
from collections.abc import Callable, Collection
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from secure.aggregation._flower_reply import Base, base_of, metric_record
from secure.aggregation._payload import Layout, examples_and_metrics
from secure.errors import MissingExtraError, ParameterError, PolicyError, SecureError
from secure.flower._arrays import only_arrays
from secure.flower._frame import CallNext, Mod, ask_app, framed
from secure.flower._question import question
from secure.flower._refusals import KeysError
from secure.flower._tensors import difference, flatten, shapes_of
from secure.he._flower_state import Counted, HENode
from secure.he._flower_wire import DECRYPT, ENCRYPT, RECORD, payload_of, to_content, trip_of
from secure.he.ciphertext import Encrypted
from secure.he.client import HEClient
from secure.he.errors import LayoutError
from secure.he.plans import SumPlan
from secure.he.policy import HEPolicy, load_key
from secure.he.wire import Envelope, Kind, require_same_parameters

try:
    from flwr.app import Context, Message, RecordDict
except ImportError:
    raise MissingExtraError("flwr", "sim") from None

log = logging.getLogger("secure.he")


def he_mod(
    policy: HEPolicy | None = None,
    key: Path | str | None = None,
    weighted_by_key: str = "num-examples",
    *,
    local: Callable[[Context], HENode] | None = None,
    queries: Collection[str] = (),
) -> Mod:
    """Make the mod that lets a ClientApp answer `train` messages with ciphertexts, and only so.

    Args:
        policy: The client's floor; it comes with the client's code, never from the server.
        key: File that `provision_key` wrote; None takes the one that the node's configuration
            names as `he-key`, and counts in the folder that it names as `he-state`.
        weighted_by_key: Metric that holds the number of examples.
        local: In the place of `policy` and `key`: gives the node's own terms and key. It must
            read them from the node's files or `context.node_config`, NEVER from
            `context.run_config` or a message: those are the server's.
        queries: Actions of `query` messages that pass to the app; what such a handler answers
            goes to the server as it is.

    Returns:
        A mod for `ClientApp(mods=[...])`; it comes first.

    Guarantees:
        Of `train` nothing leaves the client but ciphertexts, names and shapes, and sums that
        say they hold `policy.quorum` clients, noised: one in each round that this client sent
        a vector in, and `policy.rounds` in all. Errors leave as fixed codes. Every other message
        is refused. An update that can't be summed leaves as zeros that weigh nothing. Against a
        server that lies the sums are no protection: see the module.

    Raises:
        ParameterError: Neither a policy nor `local` is given, or both are.

    Example:
        >>> from flwr.clientapp import ClientApp
        >>> app = ClientApp(mods=[he_mod(HEPolicy(clients=10, bound=1.0, rounds=6))])
    """
    if (policy is None) == (local is None) or (local is not None and key is not None):
        raise ParameterError("give he_mod a policy (and key), or local, and not both")

    def node(context: Context) -> HENode:
        if local is not None:
            return local(context)
        if policy is None:
            raise ParameterError("he_mod has no policy")
        place = key if key is not None else context.node_config.get("he-key")
        if not isinstance(place, str | Path) or not str(place):
            raise KeysError("the node's configuration lacks he-key, the path of the clients' key")
        state = context.node_config.get("he-state")
        return HENode(policy, Path(place), Path(str(state)) if state else None)

    def answer(kind: str, message: Message, context: Context, call_next: CallNext) -> RecordDict:
        if kind != "train":
            raise PolicyError("evaluation is not carried under encryption")
        if RECORD not in message.content.config_records:
            raise PolicyError(
                "the server asks for a plain answer; this client gives encrypted ones"
            )
        trip, number = trip_of(message.content)
        mine = node(context)
        client, counted = _client(mine, context)
        if trip == DECRYPT:
            return _decrypt(client, mine.policy, number, message, counted)
        return _encrypt(
            client, mine.policy, number, message, context, call_next, counted, weighted_by_key
        )

    return framed("he", log, answer, queries)


def _client(node: HENode, context: Context) -> tuple[HEClient, Counted]:
    try:
        client = load_key(node.key)
        data = node.key.read_bytes()
    except (OSError, ParameterError) as error:
        raise KeysError(str(error)) from None
    expected = node.policy.params.identity
    require_same_parameters(client.params.identity, expected, "the clients' key")
    fingerprint = Envelope.from_bytes(data, Kind.SECRET_KEY).fingerprint
    return client, Counted(context, node.state, fingerprint)


def _encrypt(
    client: HEClient,
    policy: HEPolicy,
    number: int,
    message: Message,
    context: Context,
    call_next: CallNext,
    counted: Counted,
    weighted_by_key: str,
) -> RecordDict:
    meta = message.metadata
    asked = question(message.content, meta.message_type, meta.group_id, context.run_config, RECORD)
    base = base_of(message.content, "train", "weights")
    counted.send(number)
    _, reply = ask_app(message, context, call_next, RECORD)
    layout, entries, parameters = _entries(reply, base, policy, weighted_by_key)
    counted.sized(number, parameters, len(entries))
    encrypted = client.encrypt(entries, SumPlan(policy.params, len(entries)))
    return to_content(ENCRYPT, number, encrypted.to_bytes(), layout.to_json(), asked)


def _entries(
    reply: RecordDict, base: Base, policy: HEPolicy, weighted_by_key: str
) -> tuple[Layout, NDArray[np.float64], int]:
    """Encode a reply, or zeros where it can't be summed; the reason stays in this log."""
    before = base.arrays or {}
    weight, metrics, lists = examples_and_metrics(metric_record(reply), weighted_by_key)
    for name in lists:
        log.warning("metric %r is a list and is not sent; reply with its mean", name)
    layout = Layout(shapes_of(before), tuple(sorted(metrics)))
    try:
        vector, _ = flatten(difference(only_arrays(reply, "a train reply"), before))
        return layout, policy.encode(vector, weight, metrics), layout.length
    except SecureError as error:
        log.warning("this client's update is not in the sum, zeros take its place: %s", error)
    zeros = np.zeros(layout.length, dtype=np.float32)
    blank = policy.encode(zeros, 0.0, dict.fromkeys(metrics, 0.0))
    return layout, blank, layout.length


def _decrypt(
    client: HEClient, policy: HEPolicy, number: int, message: Message, counted: Counted
) -> RecordDict:
    """Decrypt what says that it is the sum of this round, once, and noise it."""
    parameters, length = counted.vector(number)
    encrypted = Encrypted.from_bytes(payload_of(message.content), policy.params)
    plan = SumPlan(policy.params, length)
    if not encrypted.is_result or encrypted.plan.tag != plan.tag:
        raise LayoutError("this is no sum of vectors like this client's own")
    # Counted on the disk before anything is decrypted: whether a sum is refused depends on what it
    # holds, and a server that could try again would have an oracle.
    counted.release(number, policy.rounds)
    total = client.release(encrypted, policy.release(length))[0]
    found = policy.count(total, parameters)
    if not policy.quorum <= found <= policy.clients:
        raise PolicyError("the sum says that it holds too few clients, or too many")
    # The server would refuse it and ask the next client: several noises around one sum.
    if found != message.content.config_records[RECORD].get("summands"):
        raise PolicyError("the sum holds another number of clients than the server says")
    return to_content(DECRYPT, number, total.astype("<f8").tobytes())
