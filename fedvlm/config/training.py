"""How a client trains, apart from the code that does it."""

from dataclasses import dataclass
from typing import ClassVar

from fedvlm.config._section import Section, setting
from fedvlm.errors import ConfigError

LOSSES = ("softmax", "sigmoid")
DTYPES = ("float32", "bfloat16")


def check_device(name: str) -> None:
    """Refuse a name that no device has, here or elsewhere.

    Raises:
        ConfigError: It is none of auto, cpu, cuda, cuda:N, mps.
    """
    kind, sign, number = name.partition(":")
    plain = not sign and kind in ("auto", "cpu", "cuda", "mps")
    # `isdecimal` alone would take other alphabets' digits, which torch doesn't.
    numbered = kind == "cuda" and number.isascii() and number.isdecimal() and len(number) < 4
    if not (plain or numbered):
        raise ConfigError(f"device must be one of auto, cpu, cuda, cuda:N or mps; got {name!r}")


@dataclass(frozen=True)
class LocalSettings:
    """How a client trains.

    Attributes:
        epochs: Passes over its data, at least 1.
        batch_size: Pairs a step, at least 2 (a contrastive loss needs another pair).
        learning_rate: AdamW's, above 0.
        proximal_mu: Weight of FedProx's term (Li et al. 2020, equation 2), at least 0.
        loss: "softmax" (CLIP's) or "sigmoid" (SigLIP's); both contrast a step's pairs.
        micro_batch: Pairs whose activations are held at a time, 0 for a whole step's. The
            gradients are the same; a step costs a third more time.
        checkpointing: Whether each layer of a tower is computed again in the backward pass.
    """

    epochs: int = 2
    batch_size: int = 64
    learning_rate: float = 3e-3
    proximal_mu: float = 0.0
    loss: str = "softmax"
    micro_batch: int = 0
    checkpointing: bool = False

    def __post_init__(self) -> None:
        if self.epochs < 1 or self.batch_size < 2 or self.learning_rate <= 0:
            raise ConfigError(
                f"training needs epochs >= 1, batch_size >= 2, learning_rate > 0; got "
                f"{self.epochs}, {self.batch_size}, {self.learning_rate}"
            )
        if self.proximal_mu < 0:
            raise ConfigError(f"proximal_mu must be at least 0, got {self.proximal_mu}")
        if self.loss not in LOSSES:
            raise ConfigError(f"loss must be one of {', '.join(LOSSES)}; got {self.loss!r}")
        if self.micro_batch < 0:
            raise ConfigError(f"micro_batch must be at least 0, got {self.micro_batch}")


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
    loss: str = setting(
        "softmax",
        "What contrasts a step's pairs: softmax (CLIP's loss) or sigmoid (SigLIP's).",
        choices=LOSSES,
    )
    device: str = setting(
        "cpu",
        "Where this machine trains: cpu, cuda, cuda:1, mps, or auto for the first that is there. "
        "A node of a deployment has its own in its `node.toml`.",
        server=True,
    )
    dtype: str = setting(
        "float32",
        "Precision of the base weights here: float32 or bfloat16. What trains is float32.",
        choices=DTYPES,
        server=True,
    )
    micro_batch: int = setting(
        0,
        "Pairs whose activations are held at a time, 0 for a whole step's; the gradients are "
        "those of the whole step.",
        low=0,
        high=1_000_000,
        server=True,
    )
    checkpointing: bool = setting(
        False,
        "Whether each layer is computed again in the backward pass, to hold less.",
        server=True,
    )
    loaders: int = setting(
        0,
        "Processes that read and prepare images before the first epoch, 0 for one a core.",
        low=0,
        high=256,
        server=True,
    )
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

    def __post_init__(self) -> None:
        super().__post_init__()
        check_device(self.device)

    def local_settings(self, server_round: int) -> LocalSettings:
        """Return how a client trains in a round, counted from 1: the rate falls to a tenth."""
        done = (server_round - 1) / self.rounds
        return LocalSettings(
            epochs=self.local_epochs,
            batch_size=self.batch_size,
            learning_rate=self.learning_rate * (1 - 0.9 * done),
            proximal_mu=self.proximal_mu,
            loss=self.loss,
            micro_batch=self.micro_batch,
            checkpointing=self.checkpointing,
        )
