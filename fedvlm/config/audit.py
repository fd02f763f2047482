"""What a run keeps and plants so that its leakage can be measured."""

from dataclasses import dataclass
from typing import ClassVar

from fedvlm.config._section import Section, setting
from fedvlm.errors import ConfigError

_MIN_CANARIES = 8


@dataclass(frozen=True)
class AuditConfig(Section):
    """What an audit needs of the run."""

    table: ClassVar[str] = "audit"

    transcript: bool = setting(
        False, "Whether to keep what each party saw, for an audit.", server=True
    )
    canaries: int = setting(
        0,
        f"Canaries planted for an audit, 0 for none, else at least {_MIN_CANARIES}: random "
        "directions, each in by a fair coin. Under client and distributed DP each is a client of "
        "its own; else client 0 plants them all, under example-level DP as examples.",
        low=0,
        high=100_000,
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        if 0 < self.canaries < _MIN_CANARIES:
            raise ConfigError(
                f"audit.canaries must be 0, or at least {_MIN_CANARIES}; got {self.canaries}"
            )
