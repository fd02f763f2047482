"""How updates are summed: the seam behind which secure aggregation or HE takes its place."""

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from flwr.serverapp.strategy import Strategy

from fedvlm.config import Config
from fedvlm.errors import ProtocolError
from fedvlm.federation.terms import he_policy, max_weight, secure_policy

if TYPE_CHECKING:
    from secure.aggregation import Roster
    from secure.flower._strategy import SummingStrategy


@dataclass(frozen=True)
class Protected:
    """A strategy whose summing is protected in some way, or not at all.

    Attributes:
        strategy: What runs the round.
        name: Name of the protection, as in the configuration.
        parameters: What an expert wants to know of it.
        round_report: Returns what to add to a round's entry.
        require_success: Raises ProtocolError if it ran rounds and none succeeded.
    """

    strategy: Strategy
    name: str
    parameters: dict[str, Any] = field(default_factory=dict)
    round_report: Callable[[], dict[str, Any]] = dict
    require_success: Callable[[], None] = lambda: None

    def describe(self) -> dict[str, Any]:
        """Return the entry `protection` of a result."""
        return {"name": self.name, "mode": self.name, "parameters": self.parameters}


def _report(history: list[Any]) -> dict[str, Any]:
    """Return bytes and seconds of every trip of the last round, for one client in the mean.

    Beside them what the sum tells of its clients: how many refused, by code, and how many updates
    it had to scale down or could not use.
    """
    record = next(each for each in reversed(history) if getattr(each, "kind", "train") == "train")
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
        "refused": dict(sorted(Counter(record.refusals.values()).items())),
        "updates_scaled_down": record.clipped,
        "updates_unusable": record.unusable,
        "abandoned": record.reason or None,
    }


def _weights(config: Config) -> str:
    power = config.mitigation.loss_power
    return f"by examples times loss^{power:g}" if power else "by examples"


def _changed(config: Config, most: int) -> dict[str, Any]:
    """Say what a protection does to weights and updates that plain FedAvg doesn't."""
    if config.privacy.dp == "example" and config.privacy.shares_noise:
        return {"weights": "a sum", "clip": "each image to norm 1, by each client"}
    if config.privacy.dp == "distributed":
        return {
            "weights": "uniform",
            "clip": f"to norm {config.privacy.clip_norm:g}, by each client",
        }
    weights = f"{_weights(config)}, up to {most:,}" if config.privacy.dp == "none" else "uniform"
    clip = f"none; beyond {config.protection.update_bound:g} in a parameter a client is left out"
    return {"weights": weights, "clip": clip}


def _succeeded(strategy: "SummingStrategy") -> None:
    """Raise as the strategy's own `start` would, which a strategy around it doesn't call."""
    from secure.errors import PeerError

    try:
        strategy.require_success()
    except PeerError as error:
        raise ProtocolError(str(error)) from error


def protected(inner: Strategy, config: Config, roster: "Roster | None" = None) -> Protected:
    """Wrap a Flower strategy in the protection that the configuration asks for.

    `plain` hides nothing from the server: it is the oracle that every other one must equal.
    `secagg` shows the server the sum alone as long as it follows the protocol, `secagg-active`
    also when it doesn't. Under `he` the server adds ciphertexts, and one client decrypts the sum.

    Args:
        inner: What averages.
        config: The federation's configuration.
        roster: The clients' public keys, where the server has them: a client whose signature is
            wrong is then left out at once, and doesn't cost the others their round.
    """
    if config.protection.protect == "plain":
        weights = _weights(config) if config.privacy.dp == "none" else "uniform"
        if config.mitigation.loss_power:
            weights += f", up to {max_weight(config):,}"
        if config.privacy.dp == "client" and config.privacy.weight_cap:
            weights = f"by examples, up to {config.privacy.weight_cap}"
        clip = f"to norm {config.privacy.clip_norm:g}" if config.privacy.dp == "client" else "none"
        told = {"server_sees": "every client's adapter", "weights": weights, "clip": clip}
        return Protected(inner, config.protection.protect, told)
    if config.protection.protect == "he":
        return _encrypted(inner, config)
    from secure.aggregation.flower import SecAggStrategy

    policy = secure_policy(config)
    strategy = SecAggStrategy(
        inner, policy, trip_timeout_s=config.server.trip_timeout, roster=roster
    )
    if config.privacy.shares_noise:  # the protocol counts its summands, not the clients' metrics
        inner.summed = lambda: strategy.history[-1].summed  # pyright: ignore
    sharing = policy.sharing(config.nodes)
    return Protected(
        strategy,
        config.protection.protect,
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
        lambda: _succeeded(strategy),
    )


def _encrypted(inner: Strategy, config: Config) -> Protected:
    from secure.he.aggregation import LABEL
    from secure.he.flower import HESumStrategy

    policy = he_policy(config)
    strategy = HESumStrategy(inner, policy, config.server.trip_timeout)
    params = policy.params
    return Protected(
        strategy,
        config.protection.protect,
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
        lambda: _succeeded(strategy),
    )
