"""The columns of a comparison, in groups that are measured together."""

from fedvlm.leakage.vantage import Vantage
from fedvlm.reporting.comparison import (
    ACCURACY,
    CLIENT_S,
    EPSILON,
    EPSILON_AUDITED,
    GAIN_KEPT,
    SERVER_S,
    UPLOAD,
    WORST_DOMAIN,
    Column,
)

UNSEEN = "unseen"
FORGOTTEN = "forgotten"
TRUST = ("tone_gap", "overconfidence", "backdoor")
"""The trust audit's primary measures, one a pillar."""

_FRACTION = "fraction"
_UTILITY = (
    Column(
        ACCURACY, "accuracy", _FRACTION, "high", "The task's metric on the test part, 95 % over "
        "images; over seeds where there are several.",
    ),
    Column(
        WORST_DOMAIN, "worst domain", _FRACTION, "high", "The domain of the test part with the "
        "lowest accuracy; the lowest of several is low by chance too.",
    ),
    Column(
        GAIN_KEPT, "gain kept", _FRACTION, "high", "Gain over zero-shot as a share of the gain "
        "without protection; 95 % by resampling concepts, both runs paired.",
    ),
    Column(
        UNSEEN, "unseen domain", _FRACTION, "high", "Accuracy on a domain that nobody trains on.",
    ),
    Column(
        FORGOTTEN, "forgotten", _FRACTION, "low", "Accuracy on public concepts that training cost: "
        "zero-shot less the run, paired by concept.",
    ),
)  # fmt: skip
_ATTACK = tuple(
    Column(
        f"{key}_{vantage}",
        f"{title} {vantage}",
        "" if key == "auc" else _FRACTION,
        "low",
        f"Best membership attack of the {vantage.title}; 95 % over all its attacks.",
    )
    for vantage in Vantage
    for key, title in (("auc", "AUC"), ("tpr", "TPR@1 %"))
)
_EPSILON = (
    Column(EPSILON, "ε claimed", "", "low", "At the run's δ, over all rounds."),
    Column(
        EPSILON_AUDITED, "ε audited", "", "low", "Largest lower bound that attacks or canaries "
        "give at the claim's own unit and at a vantage that it covers; 95 % at each vantage.",
    ),
)  # fmt: skip
_TRUST = (
    Column("tone_gap", "tone gap", "", "none", "First places of default-yellow drawings less those "
           "of dark ones; above 0, dark ones are found less often."),
    Column("overconfidence", "confidence − accuracy", "", "none", "Above 0: too sure."),
    Column("backdoor", "patch answered", _FRACTION, "low", "How often a stamped image is answered "
           "with the patch's target; nobody planted it, so this is an attack's floor."),
)  # fmt: skip
_COST = (
    Column(UPLOAD, "upload", "bytes", "low", "From a client in a round, all trips."),
    Column(CLIENT_S, "client", "s", "low", "Of a client in a round, on this machine: median over "
           "clients and rounds, all trips."),
    Column(SERVER_S, "server", "s", "low", "Of the server in a round, scoring left out."),
)  # fmt: skip

GROUPS: dict[str, tuple[Column, ...]] = {
    "utility": _UTILITY,
    "attack": _ATTACK,
    "epsilon": _EPSILON,
    "trust": _TRUST,
    "cost": _COST,
    "inference": (),
}
"""Name → columns. `inference` is a table of its own."""


def columns_of(groups: tuple[str, ...]) -> tuple[Column, ...]:
    """Return the columns of some groups, in the order of the table."""
    return tuple(column for name in GROUPS if name in groups for column in GROUPS[name])
