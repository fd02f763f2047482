"""The configuration of a federation: one frozen, flat dataclass, read from TOML or run config."""

import difflib
import tomllib
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from typing import Any

from fedvlm.config.adapter import DEFAULT_TARGETS, HEADS, KINDS, AdapterSpec
from fedvlm.config.head import check_head
from fedvlm.config.rules import COMPRESSIONS, RULES, SHARES, check_rules
from fedvlm.config.training import LocalSettings
from fedvlm.errors import ConfigError

_CHOICES = {
    "partition": ("designer-topic", "dirichlet", "iid", "quantity"),
    "membership": ("all", "half"),
    "adapter": KINDS,
    "share": SHARES,
    "rule": RULES,
    "compression": COMPRESSIONS,
    "server_optimizer": ("fedavg", "fedavgm", "fedadam", "fedyogi", "fedadagrad"),
    "protect": ("plain", "secagg", "secagg-active", "he"),
    "noise": ("own", "shared"),
    "dp": ("none", "example", "client", "distributed"),
}

AUTO = "auto"
"""What an optional setting is called where nothing was asked."""
_MIN_CANARIES = 8


@dataclass(frozen=True)
class _Range:
    """Where a number may lie."""

    low: float
    high: float
    above: bool = False  # whether `low` itself is out
    below: bool = False  # whether `high` itself is out

    def check(self, key: str, value: Any, kind: type) -> None:
        """Refuse what isn't a number of this kind in the range; a NaN is in none."""
        whole = isinstance(value, int) and not isinstance(value, bool)
        if not whole and (kind is int or not isinstance(value, float)):
            raise ConfigError(f"{key} must be of type {kind.__name__}; got {value!r}")
        if value < self.low or (self.above and value == self.low):
            least = "above" if self.above else "at least"
            raise ConfigError(f"{key} must be {least} {self.low:g}; got {value}")
        if not (value < self.high or (value == self.high and not self.below)):
            most = "below" if self.below else "at most"
            raise ConfigError(f"{key} must be a number {most} {self.high:g}; got {value}")


_RANGES = {
    "seed": _Range(0, 2**63 - 1),
    "clients": _Range(2, 100_000),
    "alpha": _Range(0, 1e6, above=True),
    "rank": _Range(1, 4096),
    "lora_alpha": _Range(1, 1e6),
    "tokens": _Range(1, 1024),
    "head_rows": _Range(2, 1 << 20),
    "head_rate": _Range(0, 1e6, above=True),
    "rounds": _Range(1, 1_000_000),
    "fraction": _Range(0, 1, above=True),
    "local_epochs": _Range(1, 100_000),
    "batch_size": _Range(2, 1_000_000),
    "learning_rate": _Range(0, 1e3, above=True),
    "proximal_mu": _Range(0, 1e6),
    "sketch": _Range(0, 4096),
    "kept": _Range(0, 1, above=True),
    "rounding_bits": _Range(2, 24),
    "server_learning_rate": _Range(0, 1e6, above=True),
    "server_momentum": _Range(0, 1, below=True),
    "min_clients": _Range(0, 100_000),
    "update_bound": _Range(0, 1e6, above=True),
    "epsilon": _Range(0, 1e6, above=True),
    "delta": _Range(0, 1, above=True, below=True),
    "clip_norm": _Range(0, 1e9, above=True),
    "weight_cap": _Range(0, 2**31),
    "mean_pairs": _Range(0, 2**31),
    "reference_epochs": _Range(1, 100_000),
    "reference_learning_rate": _Range(0, 1e3, above=True),
    "canaries": _Range(0, 100_000),
    "workers": _Range(0, 4096),
    "round_timeout": _Range(0, 1e6, above=True),
    "trip_timeout": _Range(0, 1e6, above=True),
    "join_timeout": _Range(0, 1e6),
}


@dataclass(frozen=True)
class SimulationConfig:
    """Everything that decides the result of a federation.

    Attributes:
        data: "emoji", or the path of a folder with images and captions.
        model: "embedded", or a folder or hub name of a CLIP, SigLIP or SigLIP 2.
        seed: Seed of the experiment, at least 0. Secrets never depend on it.
        clients: Number of clients, at least 2.
        partition: How pairs are dealt out: designer-topic, dirichlet, iid, quantity.
        alpha: Concentration of the Dirichlet draws, above 0; small is skewed.
        membership: "all", or "half": each image is a member by a fair coin, for audits.
        adapter: lora, ffa-lora, prompt, feature, prototypes or head.
        rank: Rank of the LoRA factors.
        lora_alpha: LoRA's scale is lora_alpha / rank.
        targets: Regular expression over module names for LoRA.
        tokens: Context tokens of the prompt adapter.
        head_rows: Rows of the sum that prototypes' captions are hashed to.
        head_captions: Captions that the federation declares it may hold, one a line: prototypes
            then have a row for each, and no other caption is summed. Empty hashes captions to
            rows, and infers from the release which hold data.
        head_rate: Rate of a linear head's steps, over the number of images.
        rounds: Number of rounds, at least 1.
        fraction: Share of clients in each round, in (0, 1].
        local_epochs: Passes of a client over its data in a round.
        batch_size: Pairs a step, at least 2.
        learning_rate: The adapter's rate in the first round; it falls linearly to a tenth.
        proximal_mu: Weight of FedProx's term, 0 for none.
        share: Which LoRA factors are averaged: both; A or B (the other one never leaves its
            node); or alternate (B in odd rounds, A in even ones, the other one frozen).
        rule: How: average (factor by factor), flexlora (the product, cut back to the rank) or
            fedex (factor by factor, and what that misses of the product goes to the base weights).
        site_ranks: Ranks of the clients by number, separated by commas, for flexlora; empty where
            all have `rank`. LoRA's scale is lora_alpha / rank for all.
        sketch: Width of the sketch by which products are summed, 0 for twice the rank.
        compression: none, mask (a share of the coordinates a round, drawn by the public seed) or
            rounding (few bits a coordinate under secure aggregation, rounded at random).
        kept: Share of the coordinates that a mask keeps, in (0, 1].
        rounding_bits: Bits of an update's coordinate within `update_bound` under rounding.
        server_optimizer: fedavg, fedavgm, fedadam, fedyogi or fedadagrad.
        server_learning_rate: The server's rate; ignored by fedavg.
        server_momentum: Momentum of fedavgm, in [0, 1).
        protect: How updates are summed: plain; secagg (the server sees the sum alone, if it
            follows the protocol); secagg-active (also if it doesn't); he (sums under encryption:
            the clients share one key and must not collude with the server).
        update_bound: Largest change of a parameter in a round under secagg and he; a client
            whose update is beyond it refuses to send.
        min_clients: Fewest clients in a sum under secure aggregation, for nodes whose floor asks
            for more than the quorum that follows from the cohort; 0 takes that.
        dp: none, example (clients train with DP-SGD), client (a trusted server noises the sum) or
            distributed (clients noise integers that only secure aggregation sums).
        noise: Who hides an example under example-level DP: own (each client's noise alone does) or
            shared (each adds a share, and only secure aggregation's sum is seen).
        epsilon: Budget that the noise is solved for, over all rounds; above 0.
        delta: δ that it holds at, in (0, 1).
        clip_norm: L2 norm that an example's gradient or a client's update is clipped to.
        adaptive: Whether the clip of client-level DP follows the median of the updates' norms.
        weight_cap: Examples at which a client's weight under client-level DP is full: it weighs
            min(examples, cap) / cap, so that the clip stays the sensitivity; 0 weighs all alike.
        mean_pairs: The clients' mean number of pairs, a public fact that example-level DP is
            planned from; 0 counts them, which only a simulation can.
        simulated_noise: Draw noise from the seed, for experiments: reproducible, protects nobody.
        references: Whether to compute local-only and central training beside the federation.
            None does without DP only: they are trained without noise, on the same pairs.
        reference_epochs: Passes of the local-only and the central reference over their data.
        reference_learning_rate: Their rate in the first pass; it falls linearly to a tenth.
        transcript: Whether to keep what each party saw, for an audit.
        canaries: Canaries planted for an audit, 0 for none, else at least 8: random directions,
            each in by a fair coin. Under client and distributed DP each is a client of its own;
            else client 0 plants them all, under example-level DP as examples.
        workers: Clients that train at the same time, 0 for one a core. Does not change a result.
        round_timeout: Seconds that clients have to train in a round; who is later is left out.
        trip_timeout: Seconds that they have for each further message of a protection.
        join_timeout: Seconds to wait for all nodes before the first round.
    """

    data: str = "emoji"
    model: str = "embedded"
    seed: int = 0
    clients: int = 10
    partition: str = "designer-topic"
    alpha: float = 0.3
    membership: str = "all"
    adapter: str = "lora"
    rank: int = 16
    lora_alpha: int = 32
    targets: str = DEFAULT_TARGETS
    tokens: int = 4
    head_rows: int = 4096
    head_captions: str = ""
    head_rate: float = 20.0
    rounds: int = 6
    fraction: float = 1.0
    local_epochs: int = 2
    batch_size: int = 64
    learning_rate: float = 8e-3
    proximal_mu: float = 0.0
    share: str = "both"
    rule: str = "average"
    site_ranks: str = ""
    sketch: int = 0
    compression: str = "none"
    kept: float = 0.25
    rounding_bits: int = 8
    server_optimizer: str = "fedavg"
    server_learning_rate: float = 1.0
    server_momentum: float = 0.9
    protect: str = "plain"
    update_bound: float = 1.0
    min_clients: int = 0
    dp: str = "none"
    noise: str = "own"
    epsilon: float = 8.0
    delta: float = 1e-5
    clip_norm: float = 1.0
    adaptive: bool = False
    weight_cap: int = 0
    mean_pairs: int = 0
    simulated_noise: bool = False
    references: bool | None = None
    reference_epochs: int = 6
    reference_learning_rate: float = 4e-3
    transcript: bool = False
    canaries: int = 0
    workers: int = 0
    round_timeout: float = 600.0
    trip_timeout: float = 120.0
    join_timeout: float = 60.0

    def __post_init__(self) -> None:
        for key, kind in _KINDS.items():
            value = getattr(self, key)
            if value is None and key in _OPTIONAL:
                continue
            if kind in (str, bool) and type(value) is not kind:
                raise ConfigError(f"{key} must be of type {kind.__name__}; got {value!r}")
        for key, allowed in _CHOICES.items():
            if getattr(self, key) not in allowed:
                raise ConfigError(
                    f"{key} must be one of {', '.join(allowed)}; got {getattr(self, key)!r}"
                )
        for key, allowed in _RANGES.items():
            allowed.check(key, getattr(self, key), _KINDS[key])
        if 0 < self.canaries < _MIN_CANARIES:
            raise ConfigError(
                f"canaries must be 0, or at least {_MIN_CANARIES}; got {self.canaries}"
            )
        if self.dp == "client" and self.protect != "plain":
            raise ConfigError(
                'dp = "client" clips single updates at a trusted server, which secure summing '
                'hides from it; use protect = "plain"'
            )
        if self.dp == "distributed" and self.protect not in ("secagg", "secagg-active"):
            raise ConfigError(
                'dp = "distributed" leaves each client\'s own noise far too weak to be seen alone; '
                f'it needs protect = "secagg", got {self.protect!r}'
            )
        check_rules(self)
        check_head(self)
        self.adapter_spec()
        self.local_settings(1)

    @property
    def computes_references(self) -> bool:
        """Whether references are computed: where asked for, and by default without DP."""
        if self.references is None:
            return self.dp == "none" and not self.has_head
        return self.references

    @property
    def has_head(self) -> bool:
        """Whether the adapter is a head on a frozen model, which needs sums of terms alone."""
        return self.adapter in HEADS

    @property
    def shares_noise(self) -> bool:
        """Whether clients add shares of noise to integers that only secure aggregation sums."""
        return self.dp == "distributed" or (self.dp == "example" and self.noise == "shared")

    @property
    def canary_clients(self) -> int:
        """Clients that are canaries and nothing else: where a client is what DP hides."""
        return self.canaries if self.dp in ("client", "distributed") else 0

    @property
    def nodes(self) -> int:
        """All that take part in the protocol: clients, and canaries that are clients."""
        return self.clients + self.canary_clients

    @property
    def cohort(self) -> int:
        """How many are asked in a round, as long as all are there; at least 2."""
        return max(2, round(self.fraction * self.nodes))

    def adapter_spec(self) -> AdapterSpec:
        """Return the adapter's kind and size."""
        return AdapterSpec(
            self.adapter, self.rank, self.lora_alpha, self.targets, self.tokens, self.head_rows
        )

    def local_settings(self, server_round: int) -> LocalSettings:
        """Return how a client trains in a round, counted from 1: the rate falls to a tenth."""
        done = (server_round - 1) / self.rounds
        return LocalSettings(
            epochs=self.local_epochs,
            batch_size=self.batch_size,
            learning_rate=self.learning_rate * (1 - 0.9 * done),
            proximal_mu=self.proximal_mu,
        )

    def to_dict(self) -> dict[str, Any]:
        """Return every setting by name."""
        return asdict(self)

    def to_run_config(self) -> dict[str, Any]:
        """Return every setting as Flower's run config names it, with hyphens."""
        settings = {key.replace("_", "-"): value for key, value in self.to_dict().items()}
        return {key: AUTO if value is None else value for key, value in settings.items()}


_OPTIONAL = ("references",)
_KINDS = {
    field.name: bool if field.name in _OPTIONAL else type(field.default)
    for field in fields(SimulationConfig)
}


def _convert(key: str, value: Any) -> Any:
    """Convert a value to the type of its setting, or say what was wrong with it."""
    kind = _KINDS[key]
    if key in _OPTIONAL and (value is None or value == AUTO):
        return None
    if isinstance(value, str) and kind is not str:
        text = value.strip().lower()
        if kind is bool and text in ("true", "false"):
            return text == "true"
        try:
            if kind in (int, float):
                return kind(text)
        except ValueError:
            pass
    elif kind is float and isinstance(value, int) and not isinstance(value, bool):
        return float(value)
    elif type(value) is kind:
        return value
    raise ConfigError(f"{key} must be of type {kind.__name__}; got {value!r}")


def config_from(
    settings: Mapping[str, Any], base: SimulationConfig | None = None
) -> SimulationConfig:
    """Build a configuration from settings by name, over a base.

    Args:
        settings: Name → value; hyphens count as underscores, and text is converted.
        base: What holds where `settings` says nothing; the defaults where None.

    Raises:
        ConfigError: An unknown name (the message suggests the nearest), a value of another type
            or out of its range.

    Example:
        >>> config_from({"rounds": "3", "proximal-mu": 0.1}).rounds
        3
    """
    base = base or SimulationConfig()
    known = [field.name for field in fields(SimulationConfig)]
    changes = {}
    for given, value in settings.items():
        key = given.replace("-", "_")
        if key not in known:
            near = difflib.get_close_matches(key, known, n=1, cutoff=0.5)
            hint = f"; did you mean {near[0]!r}?" if near else f"; known: {', '.join(known)}"
            raise ConfigError(f"unknown configuration key {given!r}{hint}")
        changes[key] = _convert(key, value)
    return replace(base, **changes)


def load_config(path: Path, base: SimulationConfig | None = None) -> SimulationConfig:
    """Read a configuration from a TOML file of flat keys.

    Raises:
        ConfigError: The file is missing, isn't TOML, or holds a wrong setting.
    """
    try:
        settings = tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise ConfigError(f"can't read {path}: {error.strerror}") from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path} is not TOML: {error}") from error
    try:
        return config_from(settings, base)
    except ConfigError as error:
        raise ConfigError(f"{path}: {error}") from error
