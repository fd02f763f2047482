"""Signed contrasts: paired by concept, resampled by concept and then by seed.

The largest less the smallest of several groups is above 0 even where all are equal. What is told
here instead is a difference with a sign, of two groups that were named before.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy import stats

from fedvlm.errors import ConfigError
from fedvlm.trust.estimate import COVERAGE, Estimate, UnresolvedError

Floats = NDArray[np.float64]
_TAILS = (50 * (1 - COVERAGE), 50 * (1 + COVERAGE))


def _finite(values: ArrayLike, name: str) -> Floats:
    out = np.asarray(values, dtype=np.float64)
    if not np.isfinite(out).all():
        raise UnresolvedError(f"{name} are not all finite numbers: nothing can be told from them")
    return out


def cluster_means(values: ArrayLike, clusters: ArrayLike) -> dict[int, float]:
    """Return the mean of each cluster's values, by cluster."""
    values, clusters = _finite(values, "values"), np.asarray(clusters)
    names, place = np.unique(clusters, return_inverse=True)
    sums = np.bincount(place, weights=values) / np.bincount(place)
    return dict(zip(names.tolist(), sums.tolist(), strict=True))


def t_interval(differences: Floats) -> tuple[float, float]:
    """Return Student's 95 % interval of a mean; without width only where nothing varies."""
    if len(differences) < 2:
        return float("-inf"), float("inf")
    half = stats.t.ppf((1 + COVERAGE) / 2, len(differences) - 1) * stats.sem(differences)
    mean = float(differences.mean())
    return mean - float(half), mean + float(half)


def sign_flip_p(differences: ArrayLike, rng: np.random.Generator, draws: int = 4000) -> float:
    """Return a two-sided p that paired differences are as often + as −.

    Fisher's randomisation test of the mean, with drawn signs:
    p = (1 + #(abs(flipped) >= abs(mean))) / (1 + draws), which keeps its level at any number of
    draws.

    Args:
        differences: Shape (C,), one a pair.
        rng: Draws signs.
        draws: At least 1.
    """
    found = _finite(differences, "differences")
    flips = rng.integers(0, 2, size=(draws, len(found))) * 2 - 1
    beyond = np.abs(flips @ found) >= abs(found.sum()) * (1 - 1e-12)
    return float((1 + beyond.sum()) / (1 + draws))


def mean_estimate(values: ArrayLike, clusters: ArrayLike) -> Estimate:
    """Estimate a mean in which every cluster counts alike.

    Args:
        values: Shape (N,).
        clusters: Shape (N,): values of one cluster may move together.
    """
    means = np.array(list(cluster_means(values, clusters).values()))
    if not len(means):
        raise UnresolvedError("no rows: there is nothing to take a mean of")
    low, high = t_interval(means)
    return Estimate(float(means.mean()), low, high, np.size(values), len(means))


def paired_differences(first: Mapping[int, float], second: Mapping[int, float]) -> Floats:
    """Return first − second for each cluster that both have, in the clusters' order."""
    shared = sorted(first.keys() & second.keys())
    return np.array([first[key] - second[key] for key in shared], dtype=np.float64)


def estimate_of(differences: ArrayLike, rows: int, rng: np.random.Generator) -> Estimate:
    """Estimate the mean of paired differences, with Student's interval and a sign-flip p."""
    found = _finite(differences, "differences")
    if not len(found):
        raise UnresolvedError("the two groups share no concept, so that nothing can be paired")
    low, high = t_interval(found)
    p = sign_flip_p(found, rng)
    return Estimate(float(found.mean()), low, high, rows, len(found), p)


def paired(
    first: tuple[ArrayLike, ArrayLike],
    second: tuple[ArrayLike, ArrayLike],
    rng: np.random.Generator,
) -> Estimate:
    """Estimate first − second over the clusters that both have.

    Args:
        first: Values and clusters, shapes (N,).
        second: Values and clusters, shapes (M,).
        rng: Draws signs for the p-value.

    Raises:
        UnresolvedError: They share no cluster, or values aren't finite.
    """
    differences = paired_differences(cluster_means(*first), cluster_means(*second))
    return estimate_of(differences, min(np.size(first[0]), np.size(second[0])), rng)


def unpaired(first: tuple[ArrayLike, ArrayLike], second: tuple[ArrayLike, ArrayLike]) -> Estimate:
    """Estimate first − second where the groups share few clusters: Welch's t over clusters.

    Raises:
        UnresolvedError: A group has fewer than two clusters.
    """
    a, b = (np.array(list(cluster_means(*one).values())) for one in (first, second))
    if min(len(a), len(b)) < 2:
        raise UnresolvedError("a group has fewer than two concepts: no interval can be had")
    found: Any = stats.ttest_ind(a, b, equal_var=False)
    interval = found.confidence_interval(COVERAGE)
    value = float(a.mean() - b.mean())
    low, high, p = float(interval.low), float(interval.high), float(found.pvalue)
    if not np.isfinite((low, high)).all():  # neither group varies
        low, high, p = value, value, float(value == 0)
    rows = min(np.size(first[0]), np.size(second[0]))
    return Estimate(value, low, high, rows, min(len(a), len(b)), p)


def bootstrap(
    statistic: Callable[[NDArray[np.int64]], float],
    clusters: ArrayLike,
    rng: np.random.Generator,
    draws: int = 500,
) -> Estimate:
    """Estimate any statistic of rows by resampling whole clusters (percentile interval).

    Args:
        statistic: Of row numbers, which may repeat.
        clusters: Shape (N,).
        rng: Resamples.
        draws: Number of resamples.
    """
    clusters = np.asarray(clusters)
    order = np.argsort(clusters, kind="stable")
    members = np.split(order, np.flatnonzero(np.diff(clusters[order])) + 1)
    found = []
    for _ in range(draws):
        chosen = rng.integers(0, len(members), len(members))
        found.append(statistic(np.concatenate([members[c] for c in chosen])))
    low, high = np.nanpercentile(found, _TAILS)
    value = float(statistic(np.arange(len(clusters))))
    return Estimate(value, float(low), float(high), len(clusters), len(members))


def over_seeds(
    by_seed: Sequence[Mapping[int, float]], rng: np.random.Generator, draws: int = 4000
) -> Estimate:
    """Estimate a mean over concepts and seeds: resampled by concept, then by seed.

    A concept is drawn for all seeds that have it at once. With S seeds a resample of seeds spreads
    by (S − 1)/S too little; what a seed moves is stretched by √(S/(S − 1)) to make up for it. One
    seed: concepts alone, and nothing is said of other seeds.

    Args:
        by_seed: For each seed its value (or paired difference) by concept. Seeds may have other
            concepts than each other, as where each draws its own.
        rng: Resamples.
        draws: Number of resamples.

    Returns:
        The mean of the seeds' means; its clusters are the fewest concepts that a seed has.

    Raises:
        UnresolvedError: There is no seed, or one without a concept.
    """
    if not by_seed or not all(by_seed):
        raise UnresolvedError("a seed has no concept: nothing can be averaged")
    names = sorted(set().union(*by_seed))
    held = np.array([[key in one for key in names] for one in by_seed], dtype=np.float64)
    values = _finite([[one.get(key, 0.0) for key in names] for one in by_seed], "values")
    (seeds, concepts), fewest = values.shape, int(held.sum(axis=1).min())
    stretch = np.sqrt(seeds / (seeds - 1)) if seeds > 1 else 1.0
    found = np.empty(draws)
    for number in range(draws):
        while True:
            counts = np.bincount(rng.integers(0, concepts, concepts), minlength=concepts)
            weights = held @ counts
            if weights.all():  # a seed with few of many concepts may have none of those drawn
                break
        means = (values @ counts) / weights
        centre = means.mean()
        rows = rng.integers(0, seeds, seeds)
        found[number] = centre + stretch * (means[rows].mean() - centre)
    low, high = np.percentile(found, _TAILS)
    tail = min((found <= 0).mean(), (found >= 0).mean())
    p = float(min(1.0, 2 * (tail * draws + 1) / (draws + 1)))
    value = float((values.sum(axis=1) / held.sum(axis=1)).mean())
    return Estimate(value, float(low), float(high), int(held.sum()), fewest, p)


def holm(p_values: Mapping[str, float]) -> dict[str, float]:
    """Return Holm's adjusted p-values: reject those at most α, and any error has chance ≤ α.

    Example:
        >>> holm({"a": 0.01, "b": 0.04, "c": 0.03})
        {'a': 0.03, 'c': 0.06, 'b': 0.06}
    """
    adjusted, least = {}, 0.0
    for place, (name, p) in enumerate(sorted(p_values.items(), key=lambda item: item[1])):
        least = max(least, min(1.0, (len(p_values) - place) * p))
        adjusted[name] = least
    return adjusted


@dataclass(frozen=True)
class Equivalence:
    """What two one-sided tests say (Schuirmann 1987).

    Attributes:
        difference: The mean difference.
        margin: What was called equal before anything was measured.
        low: Lower end of the 90 % interval, which decides.
        high: Its upper end.
        p: The larger of the two one-sided p-values.
    """

    difference: float
    margin: float
    low: float
    high: float
    p: float

    @property
    def equivalent(self) -> bool:
        """Whether the difference is within the margin, with 5 % for a wrong yes."""
        return -self.margin < self.low and self.high < self.margin


def tost(differences: ArrayLike, margin: float) -> Equivalence:
    """Test that paired differences are equal to 0 within a margin.

    "Not significantly different" is no evidence of equality; this is.

    Args:
        differences: Shape (C,), one a concept, C at least 2.
        margin: Above 0, stated before the difference is seen.

    Raises:
        ConfigError: The margin isn't positive.
        UnresolvedError: Fewer than two differences.
    """
    if not margin > 0:
        raise ConfigError(f"an equivalence needs a margin above 0, got {margin}")
    found = _finite(differences, "differences")
    if len(found) < 2:
        raise UnresolvedError(f"an equivalence needs at least 2 differences, got {len(found)}")
    mean, error, free = float(found.mean()), float(stats.sem(found)), len(found) - 1
    if error == 0:
        inside = abs(mean) < margin
        return Equivalence(mean, margin, mean, mean, 0.0 if inside else 1.0)
    upper, lower = (mean - margin) / error, (mean + margin) / error
    p = max(float(stats.t.cdf(upper, free)), float(stats.t.sf(lower, free)))
    half = float(stats.t.ppf(0.95, free)) * error
    return Equivalence(mean, margin, mean - half, mean + half, p)
