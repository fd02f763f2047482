"""What is trained: the kind of adapter and its size."""

import math
from dataclasses import dataclass

from fedvlm.config.targets import ALL_LINEAR, target_pattern
from fedvlm.errors import ConfigError

KINDS = ("lora", "ffa-lora", "prompt", "feature", "prototypes", "head")
HEADS = ("prototypes", "head")
"""Kinds that leave both towers as they are, and need sums of bounded terms alone."""

# All the linear layers of both towers by Hugging Face's names. A bare `q_proj` would do too, but
# says nothing about which tower it hits; the pattern is matched against the full module path.
DEFAULT_TARGETS = (
    r"(text_model|vision_model)\..*(q_proj|k_proj|v_proj|out_proj|fc1|fc2)"
    r"|visual_projection|text_projection"
)


@dataclass(frozen=True)
class AdapterSpec:
    """The adapter that clients train and exchange.

    Attributes:
        kind: `lora` (Hu et al. 2021), `ffa-lora` (A frozen: Sun et al. 2024), `prompt` (CoOp:
            Zhou et al. 2022), `feature` (FedCLIP: Lu et al. 2023), `prototypes` (a sum of frozen
            features by caption, in one round) or `head` (a linear map of frozen features, one
            clipped full-batch step a round).
        rank: Rank r of the LoRA factors, at least 1.
        alpha: LoRA's scale is alpha / rank; above 0.
        targets: Where LoRA goes: a regular expression over full module names, or names separated
            by commas (`q_proj,v_proj`), each for all modules whose name ends so. The default, and
            `all-linear`, leave out modules that the model doesn't use; elsewhere such a module is
            refused.
        tokens: Number of context tokens, for `prompt`.
        rows: Rows of the sum that captions are hashed to, for `prototypes`.

    Raises:
        ConfigError: A value is out of its range.
    """

    kind: str = "lora"
    rank: int = 16
    alpha: float = 32
    targets: str = DEFAULT_TARGETS
    tokens: int = 4
    rows: int = 4096

    def __post_init__(self) -> None:
        if self.kind not in KINDS:
            raise ConfigError(f"adapter must be one of {', '.join(KINDS)}, got {self.kind!r}")
        if not 2 <= self.rows <= 1 << 20:
            raise ConfigError(f"an adapter's rows must be in [2, 2^20], got {self.rows}")
        if not (self.rank >= 1 and 0 < self.alpha < math.inf and self.tokens >= 1):
            raise ConfigError(
                f"an adapter needs rank >= 1, alpha > 0 and tokens >= 1, got rank={self.rank}, "
                f"alpha={self.alpha}, tokens={self.tokens}"
            )
        if self.is_lora:
            target_pattern(self.targets)

    @property
    def is_lora(self) -> bool:
        """Whether the adapter is one of the LoRA kinds, which peft builds and merges."""
        return self.kind in ("lora", "ffa-lora")

    @property
    def picks_for_itself(self) -> bool:
        """Whether unused modules are left out of the targets, and not refused."""
        return self.targets.strip() in (DEFAULT_TARGETS, ALL_LINEAR)
