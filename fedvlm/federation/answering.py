"""How a node answers: as its floor allows, and as the run's protection asks."""

import hashlib
import logging
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from flwr.app import ConfigRecord, Context, Error, Message

from fedvlm.config import Config
from fedvlm.errors import BudgetExceeded, ConfigError
from fedvlm.federation.floor import REFUSALS, RefusedError
from fedvlm.federation.node import Node, node_of, simulated
from fedvlm.federation.roll import AGREE, QUERY
from fedvlm.federation.terms import he_policy, secure_policy, settings_of

if TYPE_CHECKING:
    from secure.aggregation import Policy
    from secure.aggregation.flower import Node as SumNode
    from secure.he.flower import HENode

log = logging.getLogger("fedvlm")

# File of the clients' common key in the folder that `identities` names.
HE_KEY = "he.key"
_POLICY = "secagg-policy"


def protect_client(
    message: Message, context: Context, call_next: Callable[[Message, Context], Message]
) -> Message:
    """Answer as the node's floor allows and the run's protection asks; a mod for a `ClientApp`.

    Whatever goes wrong on a node leaves it as one of the fixed codes of `REFUSALS`: the text of an
    exception may hold data. In a simulation it is raised, and shown.
    """
    try:
        kind, _, action = message.metadata.message_type.partition(".")
        if kind == QUERY and action != AGREE:
            return call_next(message, context)  # the app tells its number there, and nothing else
        node = node_of(context)
        try:
            config = settings_of(context)
        except ConfigError as error:
            raise RefusedError("terms", f"the run's configuration is none: {error}") from error
        node.agree(config)
        if kind == QUERY:
            if config.protection.secure:
                check_members(config, _members(node))
            return call_next(message, context)
        return _answer(node, config, message, context, call_next)
    except Exception as error:
        if simulated(context):
            raise
        code = refusal(error)
        log.error("this node refused (%s): %s", code, error, exc_info=code == "node")
        return Message(Error(REFUSALS[code], f"node: {code}"), reply_to=message)


def refusal(error: Exception) -> str:
    """Return the code that an error leaves a node as."""
    if isinstance(error, RefusedError):
        return error.code
    if isinstance(error, BudgetExceeded):
        return "budget"
    return "node"


def _answer(
    node: Node,
    config: Config,
    message: Message,
    context: Context,
    call_next: Callable[[Message, Context], Message],
) -> Message:
    if config.protection.protect == "plain":
        return call_next(message, context)
    refused: list[Exception] = []

    def answer(message: Message, context: Context) -> Message:
        try:
            return call_next(message, context)
        except (RefusedError, BudgetExceeded) as error:
            refused.append(error)
            raise

    if config.protection.protect == "he":
        from secure.he.flower import he_mod

        mod = he_mod(local=lambda context: he_node(node, config, context))
    else:
        from secure.aggregation.flower import secagg_mod

        check_members(config, _members(node))
        mod = secagg_mod(local=lambda context: sum_node(node, config, context))
    reply = mod(message, context, answer)
    # A protocol answers any error of its app by a code of its own: a node's reason is told by name.
    if refused and not node.simulated:
        raise refused[0]
    return reply


def _folder(node: Node, context: Context) -> Path | None:
    """Return the folder of everybody's keys that a simulation on Ray is given.

    In a deployment the run config, which names it, is the server's: it is not looked at.
    """
    place = str(context.run_config.get("identities", "")) if node.simulated else ""
    return Path(place) if place else None


def _state(node: Node) -> Path | None:
    # A simulation that is resumed runs rounds again, under the same number of the run.
    return None if node.simulated else node.state


def sum_node(node: Node, config: Config, context: Context) -> "SumNode":
    """Return what a node brings to secure aggregation: its own keys, terms and folder.

    Raises:
        KeysError: It has no keys, or they can't be read.
    """
    from secure.aggregation import Roster, load_identity
    from secure.aggregation.flower import Node as SumNode
    from secure.errors import ParameterError
    from secure.flower import KeysError

    identity, roster, folder = node.identity, node.roster, _folder(node, context)
    if folder is not None:
        identity, roster = folder / f"{node.number}.key", folder / "roster.json"
    if identity is None or roster is None:
        raise KeysError("this node has no keys; name identity and roster in its node.toml")
    try:
        key, members = load_identity(identity), Roster.load(roster)
    except ParameterError as error:
        raise KeysError(str(error)) from None
    return SumNode(key, members, client_policy(config, context, node), _state(node))


def _members(node: Node) -> int:
    """Return how many members a node's roster has.

    None where it can't be read, which `sum_node` then says; a simulation's has just its nodes.
    """
    from secure.aggregation import Roster
    from secure.errors import ParameterError

    if node.roster is None or node.simulated:
        return 0
    try:
        return len(Roster.load(node.roster).keys)
    except ParameterError:
        return 0


def check_members(config: Config, members: int) -> None:
    """Refuse a run that is planned for fewer members than a node's own roster has.

    Quorum and noise are planned for a share of colluders of the run's nodes. A server that says
    there are fewer, of a large roster, would have all of the roster's colluders in one cohort.

    Args:
        config: The run's configuration, as the server sent it.
        members: Members of the node's roster.

    Raises:
        RefusedError: The run is for fewer nodes.
    """
    if config.nodes < members:
        raise RefusedError(
            "cohort",
            f"the run is for {config.nodes} nodes, and this node's roster has {members} members; "
            "set clients to the roster's size (fraction says how many are asked in a round)",
        )


def he_node(node: Node, config: Config, context: Context) -> "HENode":
    """Return what a node brings to sums under encryption: the clients' key, terms and folder.

    Raises:
        KeysError: It has no key.
    """
    from secure.flower import KeysError
    from secure.he.flower import HENode

    folder = _folder(node, context)
    key = node.he_key if folder is None else folder / HE_KEY
    if key is None:
        raise KeysError("this node has no key for encrypted sums; name he_key in its node.toml")
    return HENode(he_policy(config), key, _state(node))


def client_policy(config: Config, context: Context, node: Node | None = None) -> "Policy":
    """Return a client's terms of secure aggregation, made once in a round.

    Under distributed DP they depend on the adapter's size, for which the model must be loaded; so
    the terms of the first trip are kept in the client's own state for the others. The owner's
    floor may ask for more clients in a sum than the run does; it never asks for fewer.
    """
    node = node or node_of(context)
    policy = _run_policy(config, context, node)
    return replace(policy, min_clients=max(policy.fewest, node.floor.min_clients))


def _run_policy(config: Config, context: Context, node: Node) -> "Policy":
    if not config.privacy.shares_noise:
        return secure_policy(config)
    from secure.aggregation import Policy

    name = hashlib.sha256(repr(config).encode()).hexdigest()
    kept = context.state.config_records.get(_POLICY)
    if kept is not None and kept.get("config") == name:
        return Policy.from_fields({k: v for k, v in kept.items() if k != "config"})
    policy = secure_policy(config, node.task(config).view.size)
    context.state[_POLICY] = ConfigRecord({**policy.to_fields(), "config": name})
    return policy
