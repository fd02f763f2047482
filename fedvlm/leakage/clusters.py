"""Intervals where scores of one cluster (a client, a run) move together.

The unit of evidence is the cluster: with two of them no statistic of a thousand scores knows more
than two numbers. Variances come from leaving out whole clusters; they are estimated from few
numbers themselves, and Student's t says how much that costs.
"""

from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray
from scipy.stats import beta, norm, rankdata, t

from fedvlm.leakage.units import Interval

Scores = NDArray[np.float64]
_LEVELS = 64  # thresholds that are tried for a false-positive rate
# Few clusters may agree by chance where a rare one leaks: below this many their variance counts as
# at least a quarter of the largest that independent values in [0, 1] can have.
_FEW = 10


@dataclass(frozen=True, eq=False)
class Clustered:
    """Scores with the cluster of each.

    Attributes:
        scores: Shape (n,), finite.
        membership: Shape (n,), bool; both kinds occur.
        clusters: Shape (n,), int64, from 0 without gaps.
    """

    scores: Scores
    membership: NDArray[np.bool_]
    clusters: NDArray[np.int64]

    @cached_property
    def sizes(self) -> NDArray[np.int64]:
        """Scores a cluster: shape (K,)."""
        return np.bincount(self.clusters)

    @cached_property
    def inside(self) -> NDArray[np.int64]:
        """Members a cluster: shape (K,)."""
        return np.bincount(self.clusters[self.membership], minlength=len(self.sizes))

    @cached_property
    def by_cluster(self) -> bool:
        """Whether each cluster is in or out as a whole: then the coin is the cluster's."""
        return bool(((self.inside == 0) | (self.inside == self.sizes)).all())

    def reduced(self) -> tuple[Scores, NDArray[np.bool_]]:
        """Return each cluster's mean score and its coin, where coins are thrown by cluster."""
        means = np.bincount(self.clusters, self.scores) / self.sizes
        return means, self.inside > 0


def effective_limits(
    rate: Scores, variance: Scores, freedom: float, most: Scores, alpha: float
) -> tuple[Scores, Scores]:
    """Return lower and upper limits of rates whose variance was estimated from few clusters.

    Clopper–Pearson with the number of independent trials that the variance is worth, less what
    the estimate of the variance costs (Korn and Graubard 1998). It is never narrower than a
    symmetric t interval would be, and stays in [0, 1].

    Args:
        rate: In [0, 1].
        variance: Of `rate`, estimated; 0 where all clusters agree.
        freedom: Degrees of freedom of the variance, at least 1.
        most: Trials that are assumed where clusters agree: the number of clusters. A mean of K
            independent values in [0, 1] that are all 1 is limited like a rate of K successes.
        alpha: Chance of being outside, half for each limit.
    """
    cost = (norm.isf(alpha / 2) / t.isf(alpha / 2, freedom)) ** 2
    worst = rate * (1 - rate)
    agreed = (variance <= 0) | (worst <= 0)
    trials = np.where(agreed, most, worst / np.where(agreed, 1.0, variance) * cost)
    trials = np.maximum(trials, 1e-3)
    hits = rate * trials
    low = np.where(hits <= 0, 0.0, beta.ppf(alpha / 2, np.maximum(hits, 1e-12), trials - hits + 1))
    missed = trials - hits
    high = np.where(missed <= 1e-12, 1.0, beta.isf(alpha / 2, hits + 1, np.maximum(missed, 1e-12)))
    return low, high


def _floor(rate: Scores, clusters: float) -> Scores:
    """Return the least variance of a rate that so few clusters may show."""
    return rate * (1 - rate) / (4 * clusters) * min(1.0, (_FEW / clusters) ** 2)


def _spread(values: Scores, kind: NDArray[np.bool_] | None) -> tuple[float, float]:
    """Return the jackknife's variance over left-out clusters, and its degrees of freedom.

    Args:
        values: Shape (K,), the statistic without each cluster.
        kind: Shape (K,), members or not, where the clusters are two samples; else None.
    """
    groups = [values] if kind is None else [values[kind], values[~kind]]
    parts = [(len(g) - 1) ** 2 / len(g) * float(g.var(ddof=1)) for g in groups]
    total = sum(parts)
    if total <= 0:
        return 0.0, float(min(len(g) for g in groups) - 1)
    # Welch and Satterthwaite's degrees of freedom.
    return total, total**2 / sum(p**2 / (len(g) - 1) for p, g in zip(parts, groups, strict=True))


def cluster_auc(data: Clustered, alpha: float = 0.05) -> Interval:
    """Return the AUC with an interval for other clusters of the same kind.

    Leaves out one cluster after the other, and limits the rate as `effective_limits` does; never
    narrower than if the scores were independent.

    Args:
        data: Scores with their clusters.
        alpha: One less the confidence, in (0, 1).

    Guarantees:
        [0, 1] where there are fewer than two clusters of a kind. Nominal otherwise: covers in 93
        to 100 % of draws at 95 % from two clusters on, for clusters that are independent, alike
        in law, and not so uneven that one of them decides.
    """
    from fedvlm.leakage.intervals import auc_interval

    scores, inside, names = data.scores, data.membership, data.clusters
    count = len(data.sizes)
    members, others = scores[inside], scores[~inside]
    naive = auc_interval(members, others, alpha)
    unknown = Interval(naive.value, 0.0, 1.0, 1 - alpha)
    m, n = data.inside, data.sizes - data.inside
    if count < 2 or ((m > 0).sum() < 2) or ((n > 0).sum() < 2):
        return unknown
    ranks = rankdata(scores)
    place = np.empty(len(scores))
    # Wins of each member against all others, and of all members against each other.
    place[inside] = ranks[inside] - rankdata(members)
    place[~inside] = len(members) - (ranks[~inside] - rankdata(others))
    rows = np.bincount(names[inside], place[inside], minlength=count)
    columns = np.bincount(names[~inside], place[~inside], minlength=count)
    within = np.zeros(count)
    order = np.argsort(names, kind="stable")
    for k, part in enumerate(np.split(order, np.cumsum(data.sizes)[:-1])):
        if m[k] and n[k]:
            own = scores[part]
            found = rankdata(own)[inside[part]].sum() - m[k] * (m[k] + 1) / 2
            within[k] = found
    left = (len(members) - m) * (len(others) - n)
    without = (rows.sum() - rows - columns + within) / left
    kind = data.inside > 0 if data.by_cluster else None
    variance, freedom = _spread(without, kind)
    most = float(min(m.astype(bool).sum(), n.astype(bool).sum()))
    area = np.array(naive.value)
    if variance > 0:
        variance = max(variance, float(_floor(area, most)))
    low, high = effective_limits(area, np.array(variance), freedom, np.array(most), alpha)
    return Interval(
        naive.value, min(float(low), naive.low), max(float(high), naive.high), 1 - alpha
    )


def _rate_limits(hits: NDArray, totals: NDArray, alpha: float) -> tuple[Scores, Scores]:
    """Return limits of rates by cluster: hits (L, K) of totals (K,)."""
    some = totals > 0
    hits, totals = hits[:, some], totals[some]
    count = len(totals)
    rate = hits.sum(axis=1) / totals.sum()
    residual = hits - rate[:, None] * totals
    variance = (residual**2).sum(axis=1) * count / (count - 1) / totals.sum() ** 2
    # Not less than if all were independent: few clusters may agree by chance.
    variance = np.maximum(variance, rate * (1 - rate) / totals.sum())
    variance = np.maximum(variance, _floor(rate, count))
    variance = np.where((residual == 0).all(axis=1), 0.0, variance)
    return effective_limits(rate, variance, count - 1, np.full(len(rate), float(count)), alpha)


def cluster_tpr(data: Clustered, fpr: float, alpha: float = 0.05) -> tuple[float, float]:
    """Return limits of the TPR at an FPR for other clusters of the same kind.

    The thresholds whose false-positive rate can be `fpr`, at α/2, and the least and the largest
    rate of members beyond them, at α/2.

    Args:
        data: Scores with their clusters.
        fpr: In (0, 1).
        alpha: One less the confidence, in (0, 1).

    Returns:
        Lower and upper limit; (0, 1) with fewer than two clusters of a kind.
    """
    inside, names = data.membership, data.clusters
    outside, count = data.sizes - data.inside, len(data.sizes)
    if (data.inside > 0).sum() < 2 or (outside > 0).sum() < 2:
        return 0.0, 1.0
    ordered = np.sort(np.unique(data.scores))
    picks = np.unique(np.linspace(0, len(ordered) - 1, min(_LEVELS, len(ordered))).astype(int))
    tail = np.sort(data.scores[~inside])[::-1]
    near = tail[np.unique(np.geomspace(1, len(tail), _LEVELS).astype(int)) - 1]
    levels = np.unique(np.concatenate([ordered[picks], near]))

    def hits(kind: NDArray[np.bool_], strict: bool) -> NDArray:
        out = np.zeros((len(levels) + 1, count))
        side = "left" if strict else "right"
        # How many levels a score is beyond: it counts for all of those.
        reached = np.searchsorted(levels, data.scores[kind], side=side)
        np.add.at(out, (reached, names[kind]), 1.0)
        return np.cumsum(out[::-1], axis=0)[::-1][1:]

    low, high = _rate_limits(hits(~inside, False), outside, alpha / 2)
    at, _ = _rate_limits(hits(inside, False), data.inside, alpha / 2)
    _, past = _rate_limits(hits(inside, True), data.inside, alpha / 2)
    # The threshold is at most the first level that too few reach, and above the last level that
    # too many do.
    few, many = np.flatnonzero(high < fpr), np.flatnonzero(low > fpr)
    lower = float(at[few[0]]) if len(few) else 0.0
    upper = float(past[many[-1]]) if len(many) else 1.0
    return lower, upper
