"""The whole configuration: its sections, and what holds between them."""

from dataclasses import asdict, dataclass, field, fields
from typing import Any

from fedvlm.config._section import Entry, Section
from fedvlm.config.adapter import HEADS, AdapterConfig
from fedvlm.config.audit import AuditConfig
from fedvlm.config.data import DataConfig
from fedvlm.config.head import check_head
from fedvlm.config.mitigation import MitigationConfig, check_mitigation
from fedvlm.config.model import ModelConfig
from fedvlm.config.privacy import PrivacyConfig
from fedvlm.config.protection import ProtectionConfig
from fedvlm.config.rules import check_rules
from fedvlm.config.scores import check_scores
from fedvlm.config.server import ServerConfig
from fedvlm.config.training import TrainingConfig
from fedvlm.errors import ConfigError


@dataclass(frozen=True)
class Config:
    """Everything that decides the result of a federation.

    Each section is checked by itself; what spans sections is checked here.

    Attributes:
        data: Whose pairs, and how they are dealt out.
        model: What is adapted.
        adapter: What is trained.
        training: By what all train.
        server: Whom the server asks, and what it makes of the answers.
        protection: What the server sees of an update.
        privacy: What is hidden by noise.
        audit: What is kept and planted for an audit.
        mitigation: What clients train with beside the loss.

    Raises:
        ConfigError: Two settings don't go together.

    Example:
        >>> Config(training=TrainingConfig(rounds=3)).training.rounds
        3
    """

    data: DataConfig = field(default_factory=DataConfig)
    model: ModelConfig = field(default_factory=ModelConfig)
    adapter: AdapterConfig = field(default_factory=AdapterConfig)
    training: TrainingConfig = field(default_factory=TrainingConfig)
    server: ServerConfig = field(default_factory=ServerConfig)
    protection: ProtectionConfig = field(default_factory=ProtectionConfig)
    privacy: PrivacyConfig = field(default_factory=PrivacyConfig)
    audit: AuditConfig = field(default_factory=AuditConfig)
    mitigation: MitigationConfig = field(default_factory=MitigationConfig)

    def __post_init__(self) -> None:
        if self.privacy.dp == "client" and self.protection.protect != "plain":
            raise ConfigError(
                'dp = "client" clips single updates at a trusted server, which secure summing '
                'hides from it; use protect = "plain"'
            )
        if self.privacy.dp == "distributed" and not self.protection.secure:
            raise ConfigError(
                'dp = "distributed" leaves each client\'s own noise far too weak to be seen alone; '
                f'it needs protect = "secagg", got {self.protection.protect!r}'
            )
        check_rules(self)
        check_head(self)
        check_scores(self)
        check_mitigation(self)
        self._check_device()

    def _check_device(self) -> None:
        """Refuse what is computed on the CPU in float32 only."""
        training = self.training
        elsewhere = training.device not in ("cpu", "auto") or training.dtype != "float32"
        alone = (
            'dp = "example"'
            if self.privacy.dp == "example"
            else f'adapter = "{self.adapter.kind}"'
            if self.has_head
            else f'mitigation.kind = "{self.mitigation.kind}"'
            if self.mitigation.trains
            else None
        )
        if alone and elsewhere:
            raise ConfigError(
                f'{alone} is computed on the CPU in float32; set training.device = "cpu" and '
                f'training.dtype = "float32", got {training.device!r} and {training.dtype!r}'
            )
        if self.server.rule == "fedex" and training.dtype != "float32":
            raise ConfigError(
                'rule = "fedex" adds small corrections to the base weights, which '
                f'{training.dtype} would round away; set training.dtype = "float32"'
            )

    @property
    def on_cpu(self) -> bool:
        """Whether something asks for the CPU, so that `auto` means it."""
        return self.privacy.dp == "example" or self.has_head or self.mitigation.trains

    @property
    def has_head(self) -> bool:
        """Whether the adapter is a head on a frozen model, which needs sums of terms alone."""
        return self.adapter.kind in HEADS

    @property
    def computes_references(self) -> bool:
        """Whether references are computed: where asked for, and by default without DP."""
        if self.training.references is None:
            return self.privacy.dp == "none" and not self.has_head
        return self.training.references

    @property
    def canary_clients(self) -> int:
        """Clients that are canaries and nothing else: where a client is what DP hides."""
        return self.audit.canaries if self.privacy.dp in ("client", "distributed") else 0

    @property
    def nodes(self) -> int:
        """All that take part in the protocol: clients, and canaries that are clients."""
        return self.data.clients + self.canary_clients

    @property
    def cohort(self) -> int:
        """How many are asked in a round, as long as all are there; at least 2."""
        return max(2, round(self.server.fraction * self.nodes))

    def scores_after(self, server_round: int) -> bool:
        """Return whether nodes score the adapter after a round, counted from 1."""
        asked = self.server.node_scores
        last = asked == "last" and server_round == self.training.rounds
        return server_round >= 1 and (last or asked == "each")

    def value(self, entry: Entry) -> Any:
        """Return the value of a setting."""
        return getattr(getattr(self, entry.table), entry.key)

    def by_name(self) -> dict[str, Any]:
        """Return every setting by its name with the table, such as `training.rounds`."""
        return {name: self.value(entry) for name, entry in SETTINGS.items()}

    def to_dict(self) -> dict[str, dict[str, Any]]:
        """Return every setting by section and key, as `config_from` reads it."""
        return asdict(self)


SECTIONS: dict[str, type[Section]] = {
    one.name: one.default_factory  # pyright: ignore[reportAssignmentType]  each is its section
    for one in fields(Config)
}
"""Table → section."""
SETTINGS: dict[str, Entry] = {
    entry.name: entry for section in SECTIONS.values() for entry in section.entries()
}
"""Name with its table, such as `training.rounds` → setting."""
UNDECIDED = {
    *("server.workers", "server.round_timeout", "server.trip_timeout", "server.join_timeout"),
    *("audit.transcript", "training.references"),
    *("training.device", "training.micro_batch", "training.checkpointing", "training.loaders"),
    *("training.reference_epochs", "training.reference_learning_rate"),
}
"""Settings that don't decide the adapter: they may change where a run goes on."""
