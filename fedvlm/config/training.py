"""How a client trains, apart from the code that does it."""

from dataclasses import dataclass

from fedvlm.errors import ConfigError

LOSSES = ("softmax", "sigmoid")


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
