"""Intervals: Clopper–Pearson for rates, DeLong for an AUC, bootstrap over clusters."""

from collections.abc import Callable

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.stats import beta, norm, rankdata, t

from fedvlm.errors import ConfigError
from fedvlm.leakage.inputs import finite
from fedvlm.leakage.units import Interval

_RESAMPLES = 1000
_ENOUGH = 20  # clusters that may agree exactly
Scores = NDArray[np.float64]


def clopper_pearson_upper(successes: ArrayLike, trials: int, alpha: float) -> Scores:
    """Return the one-sided upper limit of a rate (Clopper and Pearson 1934).

    Args:
        successes: Counts in [0, trials].
        trials: Independent trials, at least 1.
        alpha: Chance that the rate is above the limit, in (0, 1).

    Returns:
        Limits in (0, 1], of the shape of `successes`.

    Example:
        >>> round(float(clopper_pearson_upper(0, 1000, 0.05)), 5)
        0.00299
    """
    k = np.asarray(successes, dtype=np.float64)
    limit = beta.ppf(1 - alpha, k + 1, np.maximum(trials - k, 1e-300))
    return np.where(k >= trials, 1.0, limit)


def clopper_pearson_lower(successes: ArrayLike, trials: int, alpha: float) -> Scores:
    """Return the one-sided lower limit of a rate; see `clopper_pearson_upper`."""
    return 1 - clopper_pearson_upper(trials - np.asarray(successes), trials, alpha)


def auc_of(members: Scores, others: Scores) -> float:
    """Return P(member > other) + ½ P(equal), the area under the ROC (Mann and Whitney 1947).

    Raises:
        ConfigError: A score isn't finite.
    """
    finite("scores", members, others)
    ranks = rankdata(np.concatenate([members, others]))
    n, m = len(members), len(others)
    return float((ranks[:n].sum() - n * (n + 1) / 2) / (n * m))


def auc_interval(members: Scores, others: Scores, alpha: float = 0.05) -> Interval:
    """Return the AUC with DeLong's interval on the logit scale (DeLong et al. 1988).

    Where DeLong's variance vanishes it says nothing: for a perfect separation the interval is
    Clopper–Pearson's over min(n, m) disjoint pairs, and else Hoeffding's, both valid.

    Args:
        members: Shape (n,), scores of members, independent of each other.
        others: Shape (m,), scores of non-members.
        alpha: One less the confidence, in (0, 1).
    """
    n, m = len(members), len(others)
    area = auc_of(members, others)
    ranks = rankdata(np.concatenate([members, others]))
    of_members = (ranks[:n] - rankdata(members)) / m
    of_others = 1 - (ranks[n:] - rankdata(others)) / n
    pairs = min(n, m)
    if area in (0.0, 1.0):
        margin = (alpha / 2) ** (1 / pairs)
        low, high = (margin, 1.0) if area else (0.0, 1 - margin)
        return Interval(area, low, high, 1 - alpha)
    variance = 0.0
    if pairs > 1:
        variance = float(of_members.var(ddof=1) / n + of_others.var(ddof=1) / m)
    if variance <= 0:
        margin = float(np.sqrt(np.log(2 / alpha) / (2 * pairs)))
        return Interval(area, max(0.0, area - margin), min(1.0, area + margin), 1 - alpha)
    middle = np.log(area / (1 - area))
    reach = float(norm.isf(alpha / 2)) * np.sqrt(variance) / (area * (1 - area))
    low, high = (float(1 / (1 + np.exp(-end))) for end in (middle - reach, middle + reach))
    return Interval(area, low, high, 1 - alpha)


def mean_difference(one: Scores, other: Scores, alpha: float = 0.05) -> Interval:
    """Return mean(one) − mean(other) with Welch's interval.

    Args:
        one: Shape (n,), n >= 2, independent.
        other: Shape (m,), m >= 2, independent.
        alpha: One less the confidence, in (0, 1).

    Raises:
        ConfigError: A value isn't finite.
    """
    finite("values", one, other)
    value = float(one.mean() - other.mean())
    parts = np.array([one.var(ddof=1) / len(one), other.var(ddof=1) / len(other)])
    weights = parts**2 / np.array([len(one) - 1, len(other) - 1])
    freedom = parts.sum() ** 2 / max(float(weights.sum()), 1e-300)
    reach = float(t.isf(alpha / 2, max(freedom, 1.0)) * np.sqrt(parts.sum()))
    return Interval(value, value - reach, value + reach, 1 - alpha)


def cluster_bootstrap(
    statistic: Callable[[Scores, Scores], float],
    scores: Scores,
    membership: NDArray[np.bool_],
    clusters: NDArray[np.int64],
    rng: np.random.Generator,
    alpha: float = 0.05,
) -> Interval:
    """Return any statistic with an interval over resampled clusters.

    Scores of one client, or of one training run, move together; resampling whole clusters keeps
    that (Davison and Hinkley 1997, section 3.8). A percentile interval over K clusters is too
    narrow, by far where K is small: it is widened to Student's interval of the jackknife over
    clusters. For an AUC or a TPR see `fedvlm.leakage.clusters`, which knows more.

    Args:
        statistic: Function of members' and non-members' scores.
        scores: Shape (n,).
        membership: Shape (n,).
        clusters: Shape (n,), the client or run of each score; at least two distinct.
        rng: Draws the resamples.
        alpha: One less the confidence, in (0, 1).

    Raises:
        ConfigError: Fewer than two clusters, one without which nobody is left of a kind, or fewer
            than 20 that agree exactly: they don't tell how much another would differ.
    """
    finite("scores", scores)
    names = np.unique(clusters)
    if len(names) < 2:
        raise ConfigError(
            f"a bootstrap over clusters needs at least 2 of them, got {len(names)}; "
            "leave clusters out where scores are independent"
        )
    inside = [scores[(clusters == name) & membership] for name in names]
    outside = [scores[(clusters == name) & ~membership] for name in names]

    def over(picks: NDArray[np.int64]) -> float | None:
        members = np.concatenate([inside[pick] for pick in picks])
        others = np.concatenate([outside[pick] for pick in picks])
        return statistic(members, others) if len(members) and len(others) else None

    value, count = statistic(scores[membership], scores[~membership]), len(names)
    without = [over(np.delete(np.arange(count), number)) for number in range(count)]
    left = np.array([one for one in without if one is not None])
    spread = float(np.sqrt((count - 1) ** 2 / count * left.var(ddof=1))) if len(left) > 1 else 0.0
    if len(left) < count or (spread == 0 and count < _ENOUGH):
        raise ConfigError(
            f"{count} clusters don't tell how far another would be from them; use more clusters"
        )
    found = [over(rng.integers(0, count, count)) for _ in range(_RESAMPLES)]
    kept = np.array([one for one in found if one is not None])
    low, high = np.quantile(kept, [alpha / 2, 1 - alpha / 2])
    reach = float(t.isf(alpha / 2, count - 1)) * spread
    return Interval(
        value, min(float(low), value - reach), max(float(high), value + reach), 1 - alpha
    )
