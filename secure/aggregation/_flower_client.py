"""The client's half of secure aggregation under Flower: a mod that no plain answer passes."""

from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

from secure.aggregation import _messages as wire
from secure.aggregation._client import Client
from secure.aggregation._drive import log
from secure.aggregation._flower_reply import Base, Reply, base_of, reply_of
from secure.aggregation._flower_wire import CLOSE, RECORD, WORDS, closing, to_records
from secure.aggregation._node import Node, node_of
from secure.aggregation._payload import Layout, encode, encode_blank
from secure.aggregation._policy import Policy
from secure.aggregation._state import ClientState
from secure.errors import IntegrityError, MissingExtraError, ParameterError, PolicyError
from secure.flower._frame import CallNext, Mod, ask_app, framed
from secure.flower._question import question
from secure.flower._refusals import KeysError, StageError
from secure.random import SecureRandom

try:
    from flwr.app import Array, ArrayRecord, ConfigRecord, Context, Message, RecordDict
except ImportError:
    raise MissingExtraError("flwr", "sim") from None

SESSION_BYTES = 32
_ASKS: dict[str, tuple[type, Callable[[Client, Any], Any]]] = {
    "share": (wire.Cohort, Client.share),
    "mask": (wire.Inbox, Client.mask),
    "commit": (wire.Survivors, Client.commit),
    "unmask": (wire.UnmaskRequest, Client.unmask),
}


def secagg_mod(
    policy: Policy | None = None,
    identities: Path | str | None = None,
    weighted_by_key: str = "num-examples",
    *,
    local: Callable[[Context], Node] | None = None,
    queries: Collection[str] = (),
) -> Mod:
    """Make the mod that lets a ClientApp answer under secure aggregation, and only so.

    Args:
        policy: The client's floor; it comes with the client's code, never from the server.
        identities: Directory that `provision` wrote, for simulations: a client takes the key of
            its `partition-id`. Without it the node's own configuration names the files:
            `secagg-identity`, `secagg-roster`, and the folder `secagg-state`.
        weighted_by_key: Metric that holds the number of examples.
        local: In the place of `policy` and `identities`: gives the node's own terms and keys. It
            must read them from the node's files or `context.node_config`, NEVER from
            `context.run_config` or a message: those are the server's.
        queries: Actions of `query` messages that pass to the app; what such a handler answers
            goes to the server as it is.

    Returns:
        A mod for `ClientApp(mods=[...])`; it comes first.

    Guarantees:
        Nothing leaves the client but masked words, keys, signatures, shares, names and shapes; an
        error leaves as one of the fixed codes of `REFUSALS`. A message without secure
        aggregation, or of another type, is refused. Once a client has agreed to the terms, what
        it answers doesn't depend on its update's values: where they can't be summed it sends
        zeros that weigh nothing, and says why in its own log.

    Raises:
        ParameterError: Neither a policy nor `local` is given, or both are.

    Example:
        >>> from flwr.clientapp import ClientApp
        >>> from secure.aggregation import Policy, plan
        >>> app = ClientApp(mods=[secagg_mod(Policy(plan(10, clip_norm=1.0, error=1e-4)))])
    """
    if (policy is None) == (local is None) or (local is not None and identities is not None):
        raise ParameterError("give secagg_mod a policy (and identities), or local, and not both")
    directory = None if identities is None else Path(identities)

    def node(context: Context) -> Node:
        if local is not None:
            return local(context)
        if policy is None:
            raise ParameterError("secagg_mod has no policy")
        return node_of(context.node_config, directory, policy)

    def answer(kind: str, message: Message, context: Context, call_next: CallNext) -> RecordDict:
        with _client(node(context), context) as (client, floor):
            return _answer(client, floor, kind, message, context, call_next, weighted_by_key)

    return framed("secagg", log, answer, queries)


@contextmanager
def _client(node: Node, context: Context) -> Iterator[tuple[Client, Policy]]:
    """Take the client up where the last message left it, and put it down again."""
    kept = context.state.config_records.get(RECORD)
    array = context.state.array_records.get(WORDS)
    try:
        client = Client(
            node.identity,
            node.roster,
            node.policy,
            str(context.run_id),
            SecureRandom(),
            None if kept is None else ClientState.from_fields(dict(kept)),
            None if array is None else array["words"].numpy(),
            spent=node.spent(),
        )
    except ParameterError as error:
        raise KeysError(str(error)) from None
    try:
        yield client, node.policy
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
    call_next: CallNext,
    weighted_by_key: str,
) -> RecordDict:
    record = message.content.config_records.get(RECORD)
    if record is None:
        raise PolicyError("the server asks for a plain answer; this client gives masked ones only")
    flat = dict(record)
    trip = flat.pop("trip", None)
    if trip == CLOSE:
        return _close(client, flat)
    if isinstance(trip, str) and trip in _ASKS:
        ask, step = _ASKS[trip]
        return to_records(trip, step(client, wire.from_fields(ask, flat)))
    if trip != "advertise":
        raise IntegrityError("the server's message names no trip of the protocol")
    setup = wire.Setup.from_fields(flat)
    if setup.kind != kind:
        raise StageError(f"a {setup.kind} session can't be opened by a {kind} message")
    meta = message.metadata
    asked = question(message.content, meta.message_type, meta.group_id, context.run_config, RECORD)
    base = base_of(message.content, kind, policy.update)
    # Agreed: from here on only a failing app can keep this client from answering.
    client.open(setup)
    reply = _reply(client, base, kind, message, context, call_next, weighted_by_key)
    words = _words(reply, policy)
    client.state = replace(client.state, **{f"known_{kind}": reply.layout.to_json()})
    return to_records("advertise", client.advertise(words, reply.layout, asked))


def _close(client: Client, flat: dict[str, Any]) -> RecordDict:
    """Forget the session that the server gives up, if it is this client's."""
    session = flat.get("session")
    if not isinstance(session, bytes) or len(session) != SESSION_BYTES:
        raise IntegrityError("the session to be closed is none")
    if session == client.state.session:
        client.wipe()
    return closing(session)


def _reply(
    client: Client,
    base: Base,
    kind: str,
    message: Message,
    context: Context,
    call_next: CallNext,
    weighted_by_key: str,
) -> Reply:
    """Ask the app; where it fails, answer as the last time, with nothing in it."""
    try:
        _, content = ask_app(message, context, call_next, RECORD)
        return reply_of(content, base, weighted_by_key)
    except Exception as error:
        text = getattr(client.state, f"known_{kind}")
        known = Layout.from_json(text) if text else None
        if known is None or not base.fits(known):
            raise
        log.error("the app failed, zeros take its place: %s", error, exc_info=True)
        return Reply(known, None, 0.0, {})


def _words(reply: Reply, policy: Policy):
    """Encode a reply, or zeros where it can't be summed; the reason stays in this log."""
    rng = SecureRandom()
    why = reply.why
    if reply.vector is not None:
        try:
            return encode(reply.vector, reply.weight, reply.metrics, policy, rng)
        except ParameterError as error:
            why = str(error)
    log.warning("this client's update is not in the sum, zeros take its place: %s", why)
    return encode_blank(reply.layout, policy, rng)
