"""How a client trains, apart from the code that does it."""

from dataclasses import dataclass
from typing import ClassVar

from fedvlm.config._section import Section, setting
from fedvlm.errors import ConfigError


@dataclass(frozen=True)
class LocalSettings:
    """How a client trains.

    Attributes:
        epochs: Passes over its data, at least 1.
        batch_size: Pairs a step, at least 2 (a contrastive loss needs another pair).
        learning_rate: AdamW's, above 0.
        proximal_mu: Weight of FedProx's term (Li et al. 2020, equation 2), at least 0.
    """

    epochs: int = 2
    batch_size: int = 64
    learning_rate: float = 3e-3
    proximal_mu: float = 0.0

    def __post_init__(self) -> None:
        if self.epochs < 1 or self.batch_size < 2 or self.learning_rate <= 0:
            raise ConfigError(
                f"training needs epochs >= 1, batch_size >= 2, learning_rate > 0; got "
                f"{self.epochs}, {self.batch_size}, {self.learning_rate}"
            )
        if self.proximal_mu < 0:
            raise ConfigError(f"proximal_mu must be at least 0, got {self.proximal_mu}")


@dataclass(frozen=True)
class TrainingConfig(Section):
    """What all train by, and what the federation is compared with."""

    table: ClassVar[str] = "training"

    seed: int = setting(
        0, "Seed of the experiment. Secrets never depend on it.", low=0, high=2**63 - 1
    )
    rounds: int = setting(6, "Number of rounds.", low=1, high=1_000_000)
    local_epochs: int = setting(
        2, "Passes of a client over its data in a round.", low=1, high=100_000
    )
    batch_size: int = setting(64, "Pairs a step.", low=2, high=1_000_000)
    learning_rate: float = setting(
        8e-3,
        "The adapter's rate in the first round; it falls linearly to a tenth.",
        low=0,
        high=1e3,
        above=True,
    )
    proximal_mu: float = setting(0.0, "Weight of FedProx's term, 0 for none.", low=0, high=1e6)
    references: bool | None = setting(
        None,
        "Whether to compute local-only and central training beside the federation. Left at auto, "
        "they are computed without DP only: they are trained without noise, on the same pairs.",
        server=True,
    )
    reference_epochs: int = setting(
        6,
        "Passes of the local-only and the central reference over their data.",
        low=1,
        high=100_000,
        server=True,
    )
    reference_learning_rate: float = setting(
        4e-3,
        "Their rate in the first pass; it falls linearly to a tenth.",
        low=0,
        high=1e3,
        above=True,
        server=True,
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
