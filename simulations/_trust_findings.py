"""What was expected of the trust grid, claim by claim, beside what its cells say."""

from collections.abc import Callable
from dataclasses import dataclass

from fedvlm.trust.estimate import Estimate
from simulations._trust_table import NOT_RUN, Cell, markdown, of, spread, summary

REPRODUCED, OTHERWISE = "reproduced", "not reproduced"
Numbers = dict[str, Estimate]


@dataclass(frozen=True)
class Claim:
    """One expectation, from a pilot of one seed or from the literature.

    Attributes:
        text: What was claimed.
        read: Label → row, measure and which model ("before" is zero-shot).
        holds: Whether the numbers bear it out; intervals decide where the claim is of a sign.
    """

    text: str
    read: dict[str, tuple[str, str, str]]
    holds: Callable[[Numbers], bool]


def _row(measure: str, *rows: str) -> dict[str, tuple[str, str, str]]:
    return {
        row: ("plain", measure, "before") if row == "zero-shot" else (row, measure, "after")
        for row in rows
    }


def _apart(one: Estimate, other: Estimate) -> bool:
    """Whether one lies above the other, intervals apart."""
    return one.low > other.high


CLAIMS = (
    Claim(
        "Federated training helps retrieval; example-level DP at ε = 8 gives that away",
        _row("one_of_100", "zero-shot", "plain", "example-8"),
        lambda n: _apart(n["plain"], n["zero-shot"]) and not _apart(n["example-8"], n["zero-shot"]),
    ),
    Claim(
        "Dark drawings are found less often than yellow ones, before training too",
        _row("tone_gap", "zero-shot"),
        lambda n: n["zero-shot"].low > 0,
    ),
    Claim(
        "Training widens that gap (.080 → .140): dark tones get less of the gain",
        _row("tone_gap", "zero-shot", "plain")
        | {"gap of gains": ("plain", "gap_of_gains", "after")},
        lambda n: n["gap of gains"].low > 0,
    ),
    Claim(
        "Under DP the gap is as small as before training, because nothing was learned",
        _row("gap_of_gains", "example-8"),
        lambda n: n["example-8"].low <= 0 <= n["example-8"].high,
    ),
    Claim(
        "The untouched model is too sure, and training cures it",
        _row("overconfidence", "zero-shot", "plain"),
        lambda n: n["zero-shot"].low > 0 and _apart(n["zero-shot"], n["plain"]),
    ),
    Claim(
        "After training noise looks more familiar than test images (AUROC .60 → .28, MCM at τ = 1)",
        _row("auroc_noise_mcm_at_1", "zero-shot", "plain"),
        lambda n: n["plain"].high < 0.5,
    ),
    Claim(
        "Withheld concepts are told from known ones better after training (.53 → .63)",
        _row("auroc_withheld_mcm", "zero-shot", "plain"),
        lambda n: n["plain"].low > 0.5 and n["plain"].value > n["zero-shot"].value,
    ),
    Claim(
        "No run withstands PGD: the median image falls within ½/255",
        _row("least_radius", "zero-shot", "plain", "example-8"),
        lambda n: all(one.value <= 0.5 for one in n.values()),
    ),
    Claim(
        "DP masks gradients, so that an attack without them does better than PGD",
        _row("masking_square", "example-8")
        | {"transfer": ("example-8", "masking_transfer", "after")},
        lambda n: any(one.low > 0 for one in n.values()),
    ),
    Claim(
        "Searches for unsafe things find more of them after training (.20 → .27)",
        _row("unsafe_queries", "zero-shot", "plain"),
        lambda n: n["plain"].value > n["zero-shot"].value and n["plain"].low > 0,
    ),
    Claim(
        "The embedded model can't read: a written word does no more than its letters scrambled",
        _row("typographic", "zero-shot", "plain"),
        lambda n: all(one.low <= 0 <= one.high for one in n.values()),
    ),
    Claim(
        "A filter holds dark tones back more often than light ones by mistake",
        _row("filter_tones", "zero-shot", "plain"),
        lambda n: any(one.low > 0 for one in n.values()),
    ),
    Claim(
        "LEACE takes the probe to chance (.48 → .18 of .17) …",
        _row("tone_probe", "plain+leace"),
        lambda n: n["plain+leace"].value < 0.03,
    ),
    Claim(
        "… and hardly moves the gap: what can't be decoded isn't fair",
        _row("tone_gap", "plain+leace"),
        lambda n: n["plain+leace"].low > 0,
    ),
    Claim(
        "The calibrated projection shrinks the gap at no more than two points of retrieval",
        {
            "gap": ("plain+calibrated", "tone_gap", "after"),
            "retrieval": ("plain+calibrated", "one_of_100", "after"),
        },
        lambda n: (
            n["gap"].high < n["gap without it"].value
            and n["retrieval"].value > n["retrieval without it"].value - 0.02
        ),
    ),
    Claim(
        "Adversarial training raises membership",
        _row("membership", "plain", "plain+robust"),
        lambda n: n["plain+robust"].value > n["plain"].value,
    ),
)


def _unrepaired(cells: list[Cell], row: str) -> list[Cell]:
    return [{**cell, "columns": cell["unrepaired"]} for cell in of(cells, row)]


def _numbers(cells: list[Cell], claim: Claim) -> Numbers | None:
    found = {}
    for label, (row, measure, which) in claim.read.items():
        one = summary(of(cells, row), measure, which)
        if one is None:
            return None
        found[label] = one
        there = of(cells, row)
        if there and there[0]["kind"] == "posthoc":
            without = summary(_unrepaired(cells, row), measure)
            if without is not None:
                found[f"{label} without it"] = without
    return found


def findings(cells: list[Cell]) -> str:
    """Return the table of claims: what was expected, what is measured here, and the verdict."""
    rows = []
    for claim in CLAIMS:
        found = _numbers(cells, claim)
        seeds = min((len(of(cells, row)) for row, _, _ in claim.read.values()), default=0)
        if found is None:
            rows.append([claim.text, "–", NOT_RUN, str(seeds)])
            continue
        told = "; ".join(f"{label} {spread(one)}" for label, one in found.items())
        holds = claim.holds(found)
        rows.append([claim.text, told, REPRODUCED if holds else OTHERWISE, str(seeds)])
    return markdown(["expected", "measured", "verdict", "seeds"], rows)
