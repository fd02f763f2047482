"""How updates are summed: the seam behind which secure aggregation or HE takes its place."""

import hashlib
import logging
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from functools import lru_cache
from pathlib import Path
from typing import Any

from flwr.app import ConfigRecord, Context, Error, Message
from flwr.serverapp.strategy import Strategy

from fedvlm.config import SimulationConfig, config_from
from fedvlm.errors import BudgetExceeded, ConfigError
from fedvlm.federation.floor import REFUSALS, RefusedError
from fedvlm.federation.node import Node, node_of, simulated
from fedvlm.federation.roll import QUERY

log = logging.getLogger("fedvlm")

# Keys of the run config that say where and how it runs, and decide no result.
PLACES = ("out", "identities", "resume")
# File of the clients' common key in the folder that `identities` names.
HE_KEY = "he.key"
_POLICY = "secagg-policy"
_QUANTISATION_ERROR = 1e-5
_MAX_EXAMPLES = 1_000
_LEAST_SECURE = 3


@dataclass(frozen=True)
class Protected:
    """A strategy whose summing is protected in some way, or not at all.

    Attributes:
        strategy: What runs the round.
        name: Name of the protection, as in the configuration.
        parameters: What an expert wants to know of it.
        round_report: Returns what to add to a round's entry.
    """

    strategy: Strategy
    name: str
    parameters: dict[str, Any] = field(default_factory=dict)
    round_report: Callable[[], dict[str, Any]] = dict

    def describe(self) -> dict[str, Any]:
        """Return the entry `protection` of a result."""
        return {"name": self.name, "mode": self.name, "parameters": self.parameters}


def settings_of(context: Context) -> SimulationConfig:
    """Return the configuration that a run config carries."""
    return _settings(tuple(sorted(context.run_config.items())))


@lru_cache(maxsize=4)
def _settings(items: tuple[tuple[str, Any], ...]) -> SimulationConfig:
    return config_from({key: value for key, value in items if key not in PLACES})


def _max_weight(config: SimulationConfig) -> int:
    """Return where a client's weight is clamped: under DP every client weighs 1, and tells that."""
    return _MAX_EXAMPLES if config.dp == "none" else 1


def secure_policy(config: SimulationConfig, size: int | None = None):
    """Return the terms of secure aggregation for a configuration.

    Args:
        config: The federation's configuration.
        size: Parameters P of the adapter, for distributed DP; loaded where None.

    Every party derives them from its own copy of the configuration: to a client they are the
    floor below which it refuses. The mean is weighted by examples, clamped at 1,000; under
    example-level DP it is uniform, and under distributed DP also of integers that the clients
    have noised.

    Raises:
        ConfigError: Fewer than three clients.
    """
    from secure.aggregation import Policy, plan

    if config.clients < _LEAST_SECURE:
        raise ConfigError(f"secure aggregation needs at least 3 clients; got {config.clients}")
    mode = "active" if config.protect == "secagg-active" else "semi-honest"
    if config.shares_noise:
        from fedvlm.federation.distributed import distributed_policy

        if size is None:
            from fedvlm.federation.task import load_task

            size = load_task(config).view.size
        return replace(distributed_policy(config, size), mode=mode)
    _fits(config, _LEAST_SECURE)
    terms = Policy(
        plan(config.clients, config.update_bound, _QUANTISATION_ERROR),
        mode=mode,
        clip=False,
        weighting="examples",
        max_weight=_max_weight(config),
    )
    # The planned cohort's quorum: whom a server picks for a smaller one may be all on its side.
    return replace(terms, min_clients=terms.sharing(config.cohort).quorum)


def he_policy(config: SimulationConfig):
    """Return the terms of summing under encryption for a configuration.

    As under secure aggregation, `update_bound` holds for each of the P parameters, so that the
    Euclidean norm of an update is at most `update_bound * sqrt(P)`.

    Raises:
        ConfigError: Fewer than three clients.
    """
    from secure.he.policy import HEPolicy

    if config.clients < 3:
        raise ConfigError(f"sums under encryption need at least 3 clients; got {config.clients}")
    weight = _max_weight(config)
    policy = HEPolicy(config.clients, config.update_bound, config.rounds, max_weight=weight)
    _fits(config, policy.quorum)
    return policy


def _fits(config: SimulationConfig, least: int) -> None:
    """Refuse what no round could ever satisfy, before a message is sent.

    Raises:
        ConfigError: Fewer clients are asked in a round than the protection sums.
    """
    if config.cohort < least:
        raise ConfigError(
            f"protect = {config.protect!r} sums at least {least} clients, and a round asks "
            f"{config.cohort} (fraction {config.fraction:g} of {config.nodes}); raise fraction or "
            "clients"
        )


def protect_client(
    message: Message, context: Context, call_next: Callable[[Message, Context], Message]
) -> Message:
    """Answer as the node's floor allows and the run's protection asks; a mod for a `ClientApp`.

    Whatever goes wrong on a node leaves it as one of the fixed codes of `REFUSALS`: the text of an
    exception may hold data. In a simulation it is raised, and shown.
    """
    if message.metadata.message_type.partition(".")[0] == QUERY:
        return call_next(message, context)  # the app tells its number there, and nothing else
    try:
        node = node_of(context)
        try:
            config = settings_of(context)
        except ConfigError as error:
            raise RefusedError("terms", f"the run's configuration is none: {error}") from error
        node.agree(config)
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
    config: SimulationConfig,
    message: Message,
    context: Context,
    call_next: Callable[[Message, Context], Message],
) -> Message:
    if config.protect == "plain":
        return call_next(message, context)
    place = str(context.run_config.get("identities", "")) if node.simulated else ""
    if config.protect == "he":
        from secure.he.flower import he_mod

        mod = he_mod(he_policy(config), Path(place) / HE_KEY if place else node.he_key)
        return mod(message, context, call_next)
    from secure.aggregation.flower import secagg_mod

    if node.identity is not None and node.roster is not None:
        # Where the mod looks for them: the node's own configuration, which no message reaches.
        context.node_config["secagg-identity"] = str(node.identity)
        context.node_config["secagg-roster"] = str(node.roster)
    mod = secagg_mod(client_policy(config, context), Path(place) if place else None)
    return mod(message, context, call_next)


def client_policy(config: SimulationConfig, context: Context):
    """Return a client's terms of secure aggregation, made once in a round.

    Under distributed DP they depend on the adapter's size, for which the model must be loaded; so
    the terms of the first trip are kept in the client's own state for the others.
    """
    if not config.shares_noise:
        return secure_policy(config)
    from secure.aggregation import Policy

    name = hashlib.sha256(repr(config).encode()).hexdigest()
    kept = context.state.config_records.get(_POLICY)
    if kept is not None and kept.get("config") == name:
        return Policy.from_fields({k: v for k, v in kept.items() if k != "config"})
    policy = secure_policy(config, node_of(context).task(config).view.size)
    context.state[_POLICY] = ConfigRecord({**policy.to_fields(), "config": name})
    return policy


def _report(history: list[Any]) -> dict[str, Any]:
    """Return bytes and seconds of every trip of the last round, for one client in the mean."""
    record = history[-1]
    trips = [
        {
            "trip": trip.name,
            "sent": trip.sent,
            "answered": trip.answered,
            "upload_bytes": trip.upload_bytes,
            "download_bytes": trip.download_bytes,
            "wait_seconds": trip.wall_s,
            "server_seconds": trip.server_s,
        }
        for trip in record.trips
    ]
    return {
        "clients": record.summed,
        "upload_bytes_per_client": round(record.upload_bytes / record.asked),
        "download_bytes_per_client": round(record.download_bytes / record.asked),
        "trips": trips,
        "abandoned": record.reason or None,
    }


def _changed(config: SimulationConfig, most: int) -> dict[str, Any]:
    """Say what a protection does to weights and updates that plain FedAvg doesn't."""
    if config.dp == "example" and config.shares_noise:
        return {"weights": "a sum", "clip": "each image to norm 1, by each client"}
    if config.dp == "distributed":
        return {"weights": "uniform", "clip": f"to norm {config.clip_norm:g}, by each client"}
    weights = f"by examples, up to {most:,}" if config.dp == "none" else "uniform"
    clip = f"none; beyond {config.update_bound:g} in a parameter a client is left out"
    return {"weights": weights, "clip": clip}


def protected(inner: Strategy, config: SimulationConfig) -> Protected:
    """Wrap a Flower strategy in the protection that the configuration asks for.

    `plain` hides nothing from the server: it is the oracle that every other one must equal.
    `secagg` shows the server the sum alone as long as it follows the protocol, `secagg-active`
    also when it doesn't. Under `he` the server adds ciphertexts, and one client decrypts the sum.
    """
    if config.protect == "plain":
        weights = "by examples" if config.dp == "none" else "uniform"
        if config.dp == "client" and config.weight_cap:
            weights = f"by examples, up to {config.weight_cap}"
        clip = f"to norm {config.clip_norm:g}" if config.dp == "client" else "none"
        told = {"server_sees": "every client's adapter", "weights": weights, "clip": clip}
        return Protected(inner, config.protect, told)
    if config.protect == "he":
        return _encrypted(inner, config)
    from secure.aggregation.flower import SecAggStrategy

    policy = secure_policy(config)
    strategy = SecAggStrategy(inner, policy, trip_timeout_s=config.trip_timeout)
    if config.shares_noise:  # the protocol counts its summands, not the clients' metrics
        inner.summed = lambda: strategy.history[-1].summed  # pyright: ignore
    sharing = policy.sharing(config.nodes)
    return Protected(
        strategy,
        config.protect,
        {
            "server_sees": "the weighted sum",
            "mode": policy.mode,
            "update_bound": policy.plan.bound,
            "levels": policy.plan.levels,
            "lane_bits": policy.plan.lane,
            "bytes_per_parameter": policy.plan.bytes_per_parameter,
            "neighbours": sharing.neighbours,
            "threshold": sharing.threshold,
            "quorum": sharing.quorum,
            "min_clients": policy.min_clients,
            "max_examples": policy.max_weight,
            **_changed(config, policy.max_weight),
        },
        lambda: _report(strategy.history),
    )


def _encrypted(inner: Strategy, config: SimulationConfig) -> Protected:
    from secure.he.aggregation import LABEL
    from secure.he.flower import HESumStrategy

    policy = he_policy(config)
    strategy = HESumStrategy(inner, policy, config.trip_timeout)
    params = policy.params
    return Protected(
        strategy,
        config.protect,
        {
            "server_sees": "the weighted sum, noised by the client that decrypts it",
            "trust": LABEL,
            "lying_server": "can have a single client's update decrypted, and read it",
            "mode": "semi-honest",
            "update_bound": policy.bound,
            "degree": params.poly_modulus_degree,
            "modulus_bits": list(params.coeff_bits),
            "scale_bits": params.scale_bits,
            "bytes_per_parameter": policy.bytes_per_parameter,
            "quorum": policy.quorum,
            "max_examples": policy.max_weight,
            **_changed(config, policy.max_weight),
        },
        lambda: _report(strategy.history) | {"noise_of_sum": strategy.noise},
    )
