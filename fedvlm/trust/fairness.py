"""Gaps between groups, each with a sign, and the group metrics of fairlearn with their null."""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from fedvlm.errors import ConfigError
from fedvlm.trust.contrasts import (
    bootstrap,
    cluster_means,
    holm,
    mean_estimate,
    paired,
    paired_differences,
    unpaired,
)
from fedvlm.trust.contrasts import estimate_of as _estimate_of
from fedvlm.trust.estimate import MIN_ROWS, Estimate, UnresolvedError

Floats = NDArray[np.float64]


def check_groups(groups: ArrayLike, labels: ArrayLike | None = None, name: str = "group") -> None:
    """Refuse groups that nothing can be compared by.

    Args:
        groups: Shape (N,), any values.
        labels: Shape (N,), what the model is asked for, where there is such a thing.
        name: What the groups are called in the message.

    Raises:
        UnresolvedError: One group alone; or groups that are the labels by another name, whose
            difference is that of the labels.
    """
    groups = np.asarray(groups)
    names = np.unique(groups)
    if len(names) < 2:
        raise UnresolvedError(f"{name}: one group only ({names[0] if len(names) else 'no rows'})")
    if labels is None:
        return
    pairs = {*zip(groups.tolist(), np.asarray(labels).tolist(), strict=True)}
    if len(pairs) == len({p[0] for p in pairs}) == len({p[1] for p in pairs}):
        raise UnresolvedError(
            f"{name} is the label by another name: a gap between groups would be one between labels"
        )


def group_means(values: ArrayLike, groups: ArrayLike, clusters: ArrayLike) -> dict[str, Estimate]:
    """Estimate each group's mean; a group of fewer than 20 rows is unresolved.

    Args:
        values: Shape (N,), for example 1 where the right caption was first.
        groups: Shape (N,).
        clusters: Shape (N,), concepts.
    """
    values, groups, clusters = map(np.asarray, (values, groups, clusters))
    return {
        str(name): mean_estimate(values[groups == name], clusters[groups == name])
        for name in np.unique(groups)
    }


def gap(
    values: ArrayLike,
    groups: ArrayLike,
    clusters: ArrayLike,
    first: object,
    second: object,
    rng: np.random.Generator,
) -> Estimate:
    """Estimate the signed gap of two groups named before: mean of `first` less that of `second`.

    Paired by cluster where at least 20 clusters hold both groups (tones of one concept), by
    Welch's test over clusters where they don't (patients of one hospital or the other).

    Args:
        values: Shape (N,).
        groups: Shape (N,).
        clusters: Shape (N,).
        first: A value of `groups`.
        second: Another one.
        rng: Draws signs for the p-value.

    Raises:
        UnresolvedError: A group has no rows.
    """
    values, groups, clusters = map(np.asarray, (values, groups, clusters))
    sides = []
    for name in (first, second):
        chosen = groups == name
        if not chosen.any():
            raise UnresolvedError(f"no row is of group {name}")
        sides.append((values[chosen], clusters[chosen]))
    shared = np.intersect1d(sides[0][1], sides[1][1])
    if len(shared) >= MIN_ROWS:
        return paired(sides[0], sides[1], rng)
    return unpaired(sides[0], sides[1])


def gaps_to(
    values: ArrayLike,
    groups: ArrayLike,
    clusters: ArrayLike,
    reference: object,
    rng: np.random.Generator,
) -> dict[str, tuple[Estimate, float]]:
    """Estimate the gap of each group to a reference, with p-values adjusted by Holm.

    The chance that any adjusted p is at most 0.05 where all groups are equal is at most 5 %.

    Args:
        values: Shape (N,).
        groups: Shape (N,).
        clusters: Shape (N,).
        reference: A value of `groups`.
        rng: Draws signs.

    Returns:
        Group → (group − reference, adjusted p); groups of fewer than 20 rows have p = 1.

    Raises:
        UnresolvedError: One group only, or no row of the reference.
    """
    groups = np.asarray(groups)
    check_groups(groups)
    others = [name for name in np.unique(groups) if name != reference]
    found = {str(n): gap(values, groups, clusters, n, reference, rng) for n in others}
    p = {n: (one.p if one.resolved and one.p is not None else 1.0) for n, one in found.items()}
    adjusted = holm(p)
    return {name: (found[name], adjusted[name]) for name in found}


def gap_of_gains(
    before: ArrayLike,
    after: ArrayLike,
    groups: ArrayLike,
    clusters: ArrayLike,
    first: object,
    second: object,
    rng: np.random.Generator,
) -> Estimate:
    """Estimate the gap of what training gave: (after − before) of `first` less that of `second`.

    A model that learned nothing has small gaps: it gave nothing to anyone. This asks who got how
    much of what was given.

    Args:
        before: Shape (N,), values of the model before training, same rows as `after`.
        after: Shape (N,).
        groups: Shape (N,).
        clusters: Shape (N,).
        first: A value of `groups`.
        second: Another one.
        rng: Draws signs.
    """
    gains = np.asarray(after, dtype=np.float64) - np.asarray(before, dtype=np.float64)
    return gap(gains, groups, clusters, first, second, rng)


def difference_of_gaps(
    ours: tuple[ArrayLike, ArrayLike, ArrayLike],
    theirs: tuple[ArrayLike, ArrayLike, ArrayLike],
    first: object,
    second: object,
    rng: np.random.Generator,
) -> Estimate:
    """Estimate how much wider a gap is under one model than another, paired by cluster.

    Args:
        ours: Values, groups and clusters under one model.
        theirs: The same under the other.
        first: A value of the groups.
        second: Another one.
        rng: Draws signs.
    """

    def by_cluster(values: ArrayLike, groups: ArrayLike, clusters: ArrayLike) -> dict[int, float]:
        values, groups, clusters = map(np.asarray, (values, groups, clusters))
        a, b = (cluster_means(values[groups == n], clusters[groups == n]) for n in (first, second))
        return {key: a[key] - b[key] for key in a.keys() & b.keys()}

    return _estimate_of(
        paired_differences(by_cluster(*ours), by_cluster(*theirs)), np.size(ours[0]), rng
    )


def swap_rate(own: ArrayLike, twin: ArrayLike, clusters: ArrayLike) -> Estimate:
    """Estimate how often a twin caption (man for woman) beats the right one; ties count as swaps.

    Args:
        own: Shape (N,), score of an image with its caption.
        twin: Shape (N,), with the twin caption.
        clusters: Shape (N,).
    """
    own, twin = np.asarray(own), np.asarray(twin)
    return mean_estimate(np.asarray(~(own > twin), dtype=np.float64), clusters)


@dataclass(frozen=True)
class GroupMetric:
    """A largest-less-smallest metric beside what it is where groups don't matter.

    Attributes:
        value: The metric.
        null: Its mean where groups are shuffled: the part of it that is chance.
        p: Share of shuffles with a metric at least as large.
        excess: value − null, with an interval by concept.
    """

    value: float
    null: float
    p: float
    excess: Estimate


def _range_of_means(values: NDArray, groups: NDArray) -> float:
    """Return what fairlearn's differences are, without its tables: a null asks often."""
    _, place = np.unique(groups, return_inverse=True)
    means = np.bincount(place, weights=values) / np.bincount(place)
    return float(means.max() - means.min())


def _against_null(
    value: float,
    metric: Callable[[NDArray[np.int64], NDArray], float],
    groups: NDArray,
    clusters: NDArray,
    rng: np.random.Generator,
    draws: int,
) -> GroupMetric:
    rows = np.arange(len(groups))
    # Rows of one concept go together in the data, and so they do in a shuffle: where concepts
    # hold several groups labels are shuffled within them, else whole concepts are.
    null = np.array([metric(rows, _shuffled(groups, clusters, rng)) for _ in range(draws)])
    spread = bootstrap(lambda r: metric(r, groups[r]), clusters, rng, draws)
    excess = value - float(null.mean())
    # A resample's largest-less-smallest is biased as the metric is; only its spread is used.
    middle = (spread.low + spread.high) / 2
    estimate = Estimate(
        excess,
        excess + spread.low - middle,
        excess + spread.high - middle,
        len(groups),
        spread.clusters,
    )
    p = float((1 + (null >= value - 1e-12).sum()) / (1 + draws))
    return GroupMetric(value, float(null.mean()), p, estimate)


def _shuffled(groups: NDArray, clusters: NDArray, rng: np.random.Generator) -> NDArray:
    """Shuffle groups within clusters, or whole clusters where each has one group."""
    names, place = np.unique(clusters, return_inverse=True)
    first = np.zeros(len(names), dtype=np.int64)
    first[place[::-1]] = np.arange(len(groups))[::-1]
    if (groups == groups[first][place]).all():
        return groups[first][rng.permutation(len(names))][place]
    order = np.lexsort((rng.random(len(groups)), place))
    out = np.empty_like(groups)
    out[np.argsort(place, kind="stable")] = groups[order]
    return out


def _fairlearn():
    try:
        from fairlearn import metrics
    except ImportError as error:
        raise ConfigError(
            'fairlearn is not installed; install it with: pip install "fedvlm[trust]"'
        ) from error
    return metrics


def _rows_of(groups: NDArray) -> None:
    check_groups(groups)
    names, counts = np.unique(groups, return_counts=True)
    if counts.min() < MIN_ROWS:
        raise UnresolvedError(
            f"group {names[counts.argmin()]} has {counts.min()} rows; group metrics need "
            f"{MIN_ROWS} of each"
        )


def demographic_parity(
    predicted: ArrayLike,
    groups: ArrayLike,
    clusters: ArrayLike,
    rng: np.random.Generator,
    draws: int = 200,
) -> GroupMetric:
    """Measure the largest less the smallest selection rate (fairlearn), and its null.

    Args:
        predicted: Shape (N,), bool: what was selected.
        groups: Shape (N,).
        clusters: Shape (N,).
        rng: Shuffles and resamples.
        draws: Of each.

    Raises:
        UnresolvedError: One group only, or a group of fewer than 20 rows.
    """
    metrics = _fairlearn()
    chosen = np.asarray(predicted).astype(np.int64)
    groups, clusters = np.asarray(groups), np.asarray(clusters)
    _rows_of(groups)
    value = metrics.demographic_parity_difference(chosen, chosen, sensitive_features=groups)

    def spread(rows: NDArray[np.int64], names: NDArray) -> float:
        return _range_of_means(chosen[rows], names)

    return _against_null(float(value), spread, groups, clusters, rng, draws)


def equalized_odds(
    truth: ArrayLike,
    predicted: ArrayLike,
    groups: ArrayLike,
    clusters: ArrayLike,
    rng: np.random.Generator,
    draws: int = 200,
) -> GroupMetric:
    """Measure the larger of the gaps in true and in false positive rate (fairlearn).

    Args:
        truth: Shape (N,), bool.
        predicted: Shape (N,), bool.
        groups: Shape (N,).
        clusters: Shape (N,).
        rng: Shuffles and resamples.
        draws: Of each.

    Raises:
        UnresolvedError: One group only, one of fewer than 20 rows, or one without a positive or
            a negative; groups that are the label by another name.
    """
    metrics = _fairlearn()
    right, chosen = (np.asarray(one).astype(np.int64) for one in (truth, predicted))
    groups, clusters = np.asarray(groups), np.asarray(clusters)
    check_groups(groups, right)
    _rows_of(groups)
    for name in np.unique(groups):
        if len(np.unique(right[groups == name])) < 2:
            raise UnresolvedError(f"group {name} has positives alone, or none: no odds to compare")
    value = metrics.equalized_odds_difference(right, chosen, sensitive_features=groups)

    def spread(rows: NDArray[np.int64], names: NDArray) -> float:
        kinds = [right[rows] == truth for truth in (0, 1)]
        return max(_range_of_means(chosen[rows][kind], names[kind]) for kind in kinds)

    return _against_null(float(value), spread, groups, clusters, rng, draws)


def _auc(truth: NDArray, scores: NDArray) -> float:
    from fedvlm.trust.ood import auroc

    inside, outside = scores[truth], scores[~truth]
    return auroc(inside, outside) if len(inside) and len(outside) else float("nan")


def equity_scaled_auc(
    truth: ArrayLike, scores: ArrayLike, groups: ArrayLike
) -> tuple[float, dict[str, float]]:
    """Return ES-AUC = AUC / (1 + Σ_g abs(AUC − AUC_g)) and each group's AUC (FairVLMed, 2024).

    Args:
        truth: Shape (N,), bool.
        scores: Shape (N,), higher for what is true.
        groups: Shape (N,).

    Raises:
        UnresolvedError: One group only, one of fewer than 20 rows, or one without a positive or
            a negative.
    """
    right, found, groups = np.asarray(truth).astype(bool), np.asarray(scores), np.asarray(groups)
    _rows_of(groups)
    by_group = {}
    for name in np.unique(groups):
        rows = groups == name
        by_group[str(name)] = _auc(right[rows], found[rows])
        if not np.isfinite(by_group[str(name)]):
            raise UnresolvedError(f"group {name} has positives alone, or none: it has no AUC")
    whole = _auc(right, found)
    return whole / (1 + sum(abs(whole - one) for one in by_group.values())), by_group
