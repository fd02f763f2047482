"""Which mitigation goes with which protection, and why not."""

from dataclasses import dataclass

from fedvlm.errors import ConfigError

SECURE = ("secagg", "secagg-active", "he")


@dataclass(frozen=True)
class Rule:
    """What a mitigation needs.

    Attributes:
        under_sums: How it works where only sums are seen; None where it can't.
        under_example_dp: How it works under example-level DP; None where it can't.
        why_not: The reason, where one of them is None.
    """

    under_sums: str | None
    under_example_dp: str | None
    why_not: str = ""


COMPOSITION: dict[str, Rule] = {
    "leace": Rule("sums of moments", "noised moments, or public drawings"),
    "calibrated-projection": Rule("sums of moments", "noised moments, or public drawings"),
    "temperature": Rule("sums of counts", "noised counts"),
    "rerank": Rule("at the query; under HE after decryption", "post-processing"),
    "flags": Rule("at the query; under HE after decryption", "post-processing"),
    "counterfactual": Rule("local", "views averaged before the clip: one unit"),
    "robust": Rule("local", "from the example's own gradient"),
    "anchor": Rule("local", "public bank"),
    "redirect": Rule("local", "public bank"),
    "sanitise": Rule("local", "public refusal"),
    "mixgen": Rule("local", "partner public"),
    "flood": Rule("local", "a floor under each example's own loss"),
    "dear": Rule("public drawings", "public drawings"),
    "resample": Rule(
        "local",
        None,
        "a pair that is drawn twice counts twice, and its ε is larger than the rest's",
    ),
    "pseudonyms": Rule("before training", "before training, caption by caption"),
    "deduplicate": Rule(
        "before training",
        None,
        "whether a pair is kept depends on the others, so that one example moves more than itself",
    ),
    "fairclip": Rule(
        "local", None, "a distance of distributions couples examples, and no clip bounds it"
    ),
    "adversary": Rule(
        "local", None, "a head that all examples train couples them, and no clip bounds it"
    ),
    "loss-weights": Rule(
        "Σ wΔ with Σ w",
        None,
        "a weight by loss would be a release of the pairs that no noise covers",
    ),
    "krum": Rule(None, "any", "it compares single updates, which secure sums hide"),
    "median": Rule(None, "any", "it compares single updates, which secure sums hide"),
}
"""Mitigation → how it goes with secure sums and with example-level DP."""


def require_composition(mitigation: str, protect: str, dp: str) -> None:
    """Refuse a mitigation that a protection can't hold together with.

    Args:
        mitigation: A name in `COMPOSITION`, or "none".
        protect: plain, secagg, secagg-active or he.
        dp: none, example, client or distributed.

    Raises:
        ConfigError: An unknown mitigation, or one that doesn't compose; the message says why.
    """
    if mitigation == "none":
        return
    if mitigation not in COMPOSITION:
        raise ConfigError(f"no mitigation {mitigation!r}; one of {', '.join(COMPOSITION)}")
    rule = COMPOSITION[mitigation]
    if rule.under_sums is None and protect in SECURE:
        raise ConfigError(f"{mitigation} doesn't go with protect = {protect!r}: {rule.why_not}")
    if rule.under_example_dp is None and dp == "example":
        raise ConfigError(f"{mitigation} doesn't go with dp = 'example': {rule.why_not}")
