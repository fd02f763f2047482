"""The terms of a protected sum, which every party derives from its own copy of the run.

To a client they are the floor below which it refuses, so nothing here asks the other side.
"""

from dataclasses import replace
from functools import lru_cache
from typing import TYPE_CHECKING, Any

from flwr.app import Context

from fedvlm.config import Config, from_run_config
from fedvlm.errors import ConfigError

if TYPE_CHECKING:
    from secure.aggregation import LanePlan, Policy
    from secure.he.policy import HEPolicy

_QUANTISATION_ERROR = 1e-5
_MAX_EXAMPLES = 1_000
_LEAST_SECURE = 3
# Four million parameters (32 MB a client) hold a head of 4,096 rows by 768 numbers and LoRA of a
# billion-parameter model; each doubling of the root costs a bit of scale, and so doubles the noise.
_MOST_ENCRYPTED = 1 << 22


def settings_of(context: Context) -> Config:
    """Return the configuration that a run config carries."""
    return _settings(tuple(sorted(context.run_config.items())))


@lru_cache(maxsize=4)
def _settings(items: tuple[tuple[str, Any], ...]) -> Config:
    return from_run_config(dict(items))


def max_weight(config: Config) -> int:
    """Return where a client's weight is clamped: under DP every client weighs 1, and tells that."""
    return _MAX_EXAMPLES if config.privacy.dp == "none" else 1


def secure_policy(config: Config, size: int | None = None) -> "Policy":
    """Return the terms of secure aggregation for a configuration.

    Args:
        config: The federation's configuration.
        size: Parameters P of the adapter, for distributed DP; loaded where None.

    Every party derives them from its own copy of the configuration: to a client they are the
    floor below which it refuses. The mean is weighted by examples, clamped at 1,000; under
    example-level DP it is uniform, and under distributed DP also of integers that the clients
    have noised.

    Raises:
        ConfigError: Fewer than three clients, or no sum of a round's clients is safe.
    """
    from secure.aggregation import Policy

    if config.data.clients < _LEAST_SECURE:
        raise ConfigError(f"secure aggregation needs at least 3 clients; got {config.data.clients}")
    mode = "active" if config.protection.protect == "secagg-active" else "semi-honest"
    if config.privacy.shares_noise:
        from fedvlm.federation.distributed import distributed_policy

        if size is None:
            from fedvlm.federation.task import load_task

            size = load_task(config).view.size
        terms = replace(distributed_policy(config, size), mode=mode)
        return _least(config, terms, terms.plan.clients)
    _fits(config, _LEAST_SECURE)
    terms = Policy(
        _lanes(config),
        mode=mode,
        clip="none",
        weighting="examples",
        max_weight=max_weight(config),
        roster=config.nodes,
    )
    # The planned cohort's quorum: whom a server picks for a smaller one may be all on its side.
    return _least(config, terms, config.cohort)


def _lanes(config: Config) -> "LanePlan":
    """Return how fine a secure sum is: as fine as ever, or as few bits as were asked for."""
    from secure.aggregation import plan

    weight = max_weight(config)
    if config.protection.compression == "rounding":
        from fedvlm.federation.rules.rounding import rounding_error

        error = rounding_error(
            config.protection.rounding_bits, config.protection.update_bound, config.data.clients
        )
        # That of clients of full weight: bits, and not weights, decide.
        return plan(
            config.data.clients, config.protection.update_bound, error, weight, examples=weight
        )
    # How many pairs the clients hold is public where it is given, and 1 holds for everybody.
    examples = float(min(weight, max(1, config.privacy.mean_pairs)))
    return plan(
        config.data.clients, config.protection.update_bound, _QUANTISATION_ERROR, weight, examples
    )


def _least(config: Config, terms: "Policy", cohort: int) -> "Policy":
    """Put in the fewest clients of a sum: the cohort's quorum, or more where the run asks so.

    Never fewer than the roster's colluders and three honest ones, whatever the cohort.
    """
    from secure.errors import PolicyError

    try:
        quorum = terms.sharing(cohort).quorum
    except PolicyError as error:
        raise ConfigError(
            f"no sum of {cohort} of {config.nodes} clients is safe: {error}; raise fraction"
        ) from None
    if config.protection.min_clients > cohort:
        raise ConfigError(
            f"min_clients is {config.protection.min_clients}, and a round asks {cohort}; raise "
            "fraction or clients"
        )
    honest = replace(terms, min_clients=None).fewest
    return replace(terms, min_clients=max(quorum, honest, config.protection.min_clients))


def he_policy(config: Config) -> "HEPolicy":
    """Return the terms of summing under encryption for a configuration.

    As under secure aggregation, `update_bound` holds for each of the P parameters, so that the
    Euclidean norm of an update is at most `update_bound * sqrt(P)`.

    Raises:
        ConfigError: Fewer than three clients.
    """
    from secure.he.policy import HEPolicy

    if config.data.clients < 3:
        raise ConfigError(
            f"sums under encryption need at least 3 clients; got {config.data.clients}"
        )
    policy = HEPolicy(
        config.data.clients,
        config.protection.update_bound,
        config.training.rounds,
        max_weight=max_weight(config),
        entries=_MOST_ENCRYPTED,
    )
    _fits(config, policy.quorum)
    return policy


def _fits(config: Config, least: int) -> None:
    """Refuse what no round could ever satisfy, before a message is sent.

    Raises:
        ConfigError: Fewer clients are asked in a round than the protection sums.
    """
    if config.cohort < least:
        raise ConfigError(
            f"protect = {config.protection.protect!r} sums at least {least} clients, and a round "
            f"asks {config.cohort} (fraction {config.server.fraction:g} of {config.nodes}); raise "
            "fraction or clients"
        )
