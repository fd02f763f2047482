"""The client of an encrypted sum under Flower: a mod."""

import logging
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from pathlib import Path

from secure.aggregation._client import StageError
from secure.aggregation._flower_client import Mod, ask_app, only_arrays, only_metrics
from secure.aggregation._payload import Layout
from secure.aggregation._refusals import REFUSALS, refusal
from secure.aggregation._tensors import difference, flatten
from secure.errors import IntegrityError, MissingExtraError, ParameterError, PolicyError
from secure.he._flower_wire import DECRYPT, ENCRYPT, RECORD, payload_of, to_content
from secure.he.ciphertext import Encrypted
from secure.he.client import HEClient
from secure.he.errors import LayoutError
from secure.he.plans import SumPlan
from secure.he.policy import HEPolicy, load_key
from secure.he.wire import require_same_parameters

try:
    from flwr.app import ConfigRecord, Context, Error, Message, RecordDict
except ImportError:
    raise MissingExtraError("flwr", "sim") from None

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
    received, reply = ask_app(message, context, call_next, RECORD)
    weight, metrics = only_metrics(reply, weighted_by_key)
    update = difference(
        only_arrays(reply, "a train reply"), only_arrays(received, "a train message")
    )
    vector, shapes = flatten(update)
    entries = policy.encode(vector, weight, metrics)
    encrypted = client.encrypt(entries, SumPlan(policy.params, len(entries)))
    replace(state, sent=number, parameters=len(vector), length=len(entries)).keep(context)
    layout = Layout(shapes, tuple(sorted(metrics)))
    return to_content(ENCRYPT, number, encrypted.to_bytes(), layout.to_json())


def _decrypt(
    client: HEClient, policy: HEPolicy, number: int, message: Message, context: Context
) -> RecordDict:
    """Decrypt what says that it is the sum of this round, once, and noise it."""
    state = _State.of(context)
    if number != state.sent or number == state.answered:
        raise StageError("a sum is decrypted once, in a round that this client takes part in")
    if state.released >= policy.rounds:
        raise PolicyError(f"this client has decrypted {state.released} sums, all it may")
    encrypted = Encrypted.from_bytes(payload_of(message.content), policy.params)
    plan = SumPlan(policy.params, state.length)
    if not encrypted.is_result or encrypted.plan.tag != plan.tag:
        raise LayoutError("this is no sum of vectors like this client's own")
    total = client.release(encrypted, policy.release(state.length))[0]
    if not policy.quorum <= policy.count(total, state.parameters) <= policy.clients:
        raise PolicyError("the sum says that it holds too few clients, or too many")
    replace(state, answered=number, released=state.released + 1).keep(context)
    return to_content(DECRYPT, number, total.astype("<f8").tobytes())


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
