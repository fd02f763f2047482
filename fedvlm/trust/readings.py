"""What a measure reads off one model, and the column that two readings make."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import ArrayLike

from fedvlm.trust.contrasts import cluster_means, estimate_of, mean_estimate, paired_differences
from fedvlm.trust.estimate import Estimate

PILLARS = ("utility", "fairness", "robustness", "safety", "privacy")


@dataclass(frozen=True, eq=False)
class Reading:
    """One measure of one model.

    Attributes:
        estimate: The number with its interval.
        by_concept: What it is a mean of, by concept, so that two models can be paired; None where
            it is no mean.
    """

    estimate: Estimate
    by_concept: Mapping[int, float] | None = None


def reading_of(values: ArrayLike, concepts: ArrayLike) -> Reading:
    """Return the reading of a mean over concepts."""
    return Reading(mean_estimate(values, concepts), cluster_means(values, concepts))


def reading_of_gap(
    first: tuple[ArrayLike, ArrayLike],
    second: tuple[ArrayLike, ArrayLike],
    rng: np.random.Generator,
) -> Reading:
    """Return the reading of a signed gap of two groups, paired by concept."""
    a, b = cluster_means(*first), cluster_means(*second)
    differences = paired_differences(a, b)
    shared = sorted(a.keys() & b.keys())
    estimate = estimate_of(differences, min(np.size(first[0]), np.size(second[0])), rng)
    return Reading(estimate, dict(zip(shared, differences.tolist(), strict=True)))


@dataclass(frozen=True, eq=False)
class Column:
    """One column of the trust table.

    Attributes:
        pillar: One of `PILLARS`.
        name: Short and stable, for JSON.
        title: What it is, in a few words.
        before: Of the model before training (zero-shot); None where only a trained one has it.
        after: Of the run's model.
        change: after − before, paired by concept where both are means.
        why_not: Why there is no number, in one line; None where there is.
        primary: Whether it is its pillar's primary measure.
        by_concept: The run's values by concept, for contrasts between runs.
    """

    pillar: str
    name: str
    title: str
    before: Estimate | None = None
    after: Estimate | None = None
    change: Estimate | None = None
    why_not: str | None = None
    primary: bool = False
    by_concept: Mapping[int, float] = field(default_factory=dict)

    def to_dict(self) -> dict[str, Any]:
        """Return the column as JSON takes it."""
        told = {"pillar": self.pillar, "name": self.name, "title": self.title}
        if self.why_not is not None:
            return {**told, "why_not": self.why_not}
        numbers = {
            key: one.to_dict()
            for key in ("before", "after", "change")
            if (one := getattr(self, key)) is not None
        }
        out = {**told, "primary": self.primary, **numbers}
        if self.by_concept and self.after is not None and self.after.resolved:
            out["by_concept"] = {str(key): value for key, value in self.by_concept.items()}
        return out


def change_of(before: Reading, after: Reading, rng: np.random.Generator) -> Estimate:
    """Estimate what changed from one model to another.

    Paired by concept where both are means over concepts. Else the two intervals are added in
    squares as if they were independent; readings of the same images rarely are, so that this is
    too wide rather than too narrow.
    """
    one, other = before.estimate, after.estimate
    if before.by_concept is not None and after.by_concept is not None:
        shared = paired_differences(after.by_concept, before.by_concept)
        if len(shared):
            return estimate_of(shared, min(one.rows, other.rows), rng)
    low = np.hypot(other.value - other.low, one.high - one.value)
    high = np.hypot(other.high - other.value, one.value - one.low)
    value = other.value - one.value
    rows, clusters = min(one.rows, other.rows), min(one.clusters, other.clusters)
    return Estimate(value, float(value - low), float(value + high), rows, clusters)
