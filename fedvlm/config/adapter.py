"""What is trained: the kind of adapter and its size."""

import math
from dataclasses import dataclass
from typing import ClassVar

from fedvlm.config._section import Section, setting
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


@dataclass(frozen=True)
class AdapterConfig(Section):
    """The adapter, as a run names it."""

    table: ClassVar[str] = "adapter"

    kind: str = setting(
        "lora",
        "What is trained: a low-rank change (lora; ffa-lora with A frozen), context tokens "
        "(prompt), a gate on the image features (feature), a sum of frozen features by caption "
        "in one round (prototypes), or a linear map of frozen features, one clipped full-batch "
        "step a round (head).",
        choices=KINDS,
        flat="adapter",
    )
    rank: int = setting(16, "Rank of the LoRA factors.", low=1, high=4096)
    alpha: int = setting(
        32, "LoRA's scale is adapter.alpha / rank.", low=1, high=1e6, flat="lora_alpha"
    )
    targets: str = setting(
        DEFAULT_TARGETS,
        "Where LoRA goes: a regular expression over full module names, names separated by "
        'commas, or "all-linear".',
    )
    tokens: int = setting(4, "Context tokens of the prompt adapter.", low=1, high=1024)
    rows: int = setting(
        4096,
        "Rows of the sum that prototypes' captions are hashed to.",
        low=2,
        high=1 << 20,
        flat="head_rows",
    )
    captions: str = setting(
        "",
        "Captions that the federation declares it may hold, one a line: prototypes then have a "
        "row for each, and no other caption is summed. Empty hashes captions to rows, and infers "
        "from the release which hold data.",
        flat="head_captions",
    )
    rate: float = setting(
        20.0,
        "Rate of a linear head's steps, over the number of images.",
        low=0,
        high=1e6,
        above=True,
        flat="head_rate",
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        _ = self.spec

    @property
    def spec(self) -> AdapterSpec:
        """The adapter's kind and size."""
        return AdapterSpec(self.kind, self.rank, self.alpha, self.targets, self.tokens, self.rows)
