"""What clients train with beside the loss, against what the trust audit finds."""

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from fedvlm.config._section import Section, setting
from fedvlm.errors import ConfigError
from fedvlm.mitigation.composition import require_composition

if TYPE_CHECKING:
    from fedvlm.config.whole import Config

KINDS = (
    "counterfactual",
    "robust",
    "anchor",
    "redirect",
    "sanitise",
    "mixgen",
    "flood",
    "resample",
    "adversary",
)
"""Mitigations in training that a run may ask of its clients: these, and no code of the server's."""
LISTING = ("redirect", "sanitise")
"""Kinds that a list of captions is for."""
NEED_PUBLIC = ("anchor", "redirect", "sanitise", "mixgen", "flood")
"""Kinds that need public pairs beside a client's own."""
OF_IMAGES = ("robust", "adversary")
"""Kinds whose term is one of image embeddings alone."""
LOSS_WEIGHTS = "loss-weights"
"""What weights by loss are called where a node's floor names what it takes part in."""
_MOST_WEIGHT = 10.0
_MOST_POWER = 5.0


@dataclass(frozen=True)
class MitigationConfig(Section):
    """A mitigation that clients train with, and weights by loss; a node's floor may refuse them."""

    table: ClassVar[str] = "mitigation"

    kind: str = setting(
        "none",
        "What each client adds to its loss, or does with its pairs: counterfactual (recoloured "
        "views), robust (adversarial features), anchor (the nearest public pair), redirect "
        "(listed captions are led to the nearest safe one), sanitise (to a refusal), mixgen (a "
        "public partner), flood (a floor under the loss), resample (weak clusters more often) or "
        "adversary (hides an attribute from a classifier that keeps up).",
        choices=("none", *KINDS),
        flat="mitigate",
    )
    weight: float = setting(
        1.0,
        "λ of the term that is added to the loss.",
        low=0,
        high=_MOST_WEIGHT,
        above=True,
        flat="mitigation_weight",
    )
    listed: str = setting(
        "",
        "A text file of captions, one a line, for redirect and sanitise; empty for the embedded "
        "unsafe list. A simulation's: each node of a deployment names its own in its `node.toml`.",
        flat="mitigation_listed",
        server=True,
    )
    attribute: str = setting(
        "",
        "Column of the clients' tables that an adversary is to be unable to read off an image: "
        "domain, topic, or any other. A deployed node's floor must name it.",
        flat="mitigation_attribute",
    )
    loss_power: float = setting(
        0.0,
        "q of weights by loss: a client weighs its pairs times F^q, with F the loss of the adapter "
        "that it was sent, over a guesser's; 0 weighs by pairs.",
        low=0,
        high=_MOST_POWER,
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.listed and self.kind not in LISTING:
            raise ConfigError(
                f"mitigation.listed is for mitigation.kind = {' or '.join(LISTING)}; got "
                f"{self.kind!r}"
            )
        if (self.kind == "adversary") != bool(self.attribute):
            raise ConfigError(
                'mitigation.attribute names the column that mitigation.kind = "adversary" hides, '
                f"and nothing else needs one; got kind = {self.kind!r}, attribute = "
                f"{self.attribute!r}"
            )
        if self.kind == "resample" and self.weight != 1:
            raise ConfigError(
                "resample draws pairs and adds no term, so that mitigation.weight says nothing; "
                f"leave it at 1, got {self.weight:g}"
            )

    @property
    def trains(self) -> bool:
        """Whether clients train with one."""
        return self.kind != "none"

    @property
    def asked(self) -> tuple[str, ...]:
        """What a node must allow, by the names that a floor has for it."""
        kinds = (self.kind,) if self.trains else ()
        return (*kinds, LOSS_WEIGHTS) if self.loss_power else kinds


def check_mitigation(config: "Config") -> None:
    """Refuse a mitigation that doesn't go with the protection, the noise or the adapter.

    Raises:
        ConfigError: Saying why, and what to change.
    """
    asked, dp = config.mitigation, config.privacy.dp
    require_composition(asked.kind, config.protection.protect, dp)
    if asked.asked and config.has_head:
        raise ConfigError(
            f"mitigation: {config.adapter.kind} are sums of frozen features, which no loss trains "
            "and none weighs; use a kind of LoRA, prompt or feature"
        )
    if asked.kind in OF_IMAGES and config.adapter.kind == "prompt":
        raise ConfigError(
            f"{asked.kind} changes how images are embedded, and a prompt adapter trains captions "
            "alone; use another adapter"
        )
    if asked.loss_power and dp != "none":
        raise ConfigError(
            f"mitigation.loss_power doesn't go with dp = {dp!r}: a weight by loss would be a "
            "release of the pairs that no noise covers; set it to 0"
        )
    if asked.loss_power and config.training.loss != "softmax":
        raise ConfigError(
            "mitigation.loss_power compares a client's loss with a guesser's, which is known for "
            f'training.loss = "softmax"; got {config.training.loss!r}'
        )
