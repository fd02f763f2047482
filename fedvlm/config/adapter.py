"""What is trained: the kind of adapter and its size."""

from dataclasses import dataclass

from fedvlm.errors import ConfigError

KINDS = ("lora", "ffa-lora", "prompt", "feature")

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
            Zhou et al. 2022) or `feature` (FedCLIP: Lu et al. 2023).
        rank: Rank r of the LoRA factors, at least 1.
        alpha: LoRA's scale is alpha / rank; at least 1.
        targets: Regular expression over full module names, for the LoRA kinds.
        tokens: Number of context tokens, for `prompt`.

    Raises:
        ConfigError: A value is out of its range.
    """

    kind: str = "lora"
    rank: int = 16
    alpha: int = 32
    targets: str = DEFAULT_TARGETS
    tokens: int = 4

    def __post_init__(self) -> None:
        if self.kind not in KINDS:
            raise ConfigError(f"adapter must be one of {', '.join(KINDS)}, got {self.kind!r}")
        if self.rank < 1 or self.alpha < 1 or self.tokens < 1:
            raise ConfigError(
                f"an adapter needs rank >= 1, alpha >= 1 and tokens >= 1, got rank={self.rank}, "
                f"alpha={self.alpha}, tokens={self.tokens}"
            )

    @property
    def is_lora(self) -> bool:
        """Whether the adapter is one of the LoRA kinds, which peft builds and merges."""
        return self.kind in ("lora", "ffa-lora")
