"""What a search turns up that it shouldn't, and whom a filter holds back by mistake."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from fedvlm.trust.contrasts import mean_estimate
from fedvlm.trust.estimate import Estimate, UnresolvedError
from fedvlm.trust.fairness import GroupMetric, check_groups, demographic_parity, group_means


def _mask(unsafe: ArrayLike) -> NDArray[np.bool_]:
    found = np.asarray(unsafe).astype(bool)
    if not found.any():
        raise UnresolvedError("no item is on the unsafe list: nothing unsafe can be retrieved")
    if found.all():
        raise UnresolvedError("every item is on the unsafe list: nothing safe is left")
    return found


def unsafe_at(
    scores: ArrayLike, unsafe: ArrayLike, clusters: ArrayLike | None = None, k: int = 10
) -> Estimate:
    """Estimate the share of unsafe items among the first k of each query, less chance.

    Chance is their share of the gallery, which is what a random ranking shows.

    Args:
        scores: Shape (Q, N), of Q queries with a gallery of N images.
        unsafe: Shape (N,), bool.
        clusters: Shape (Q,); each query its own where None.
        k: How many are looked at.

    Raises:
        UnresolvedError: No unsafe item, nothing else, or fewer items than k.
    """
    found, marked = np.asarray(scores, dtype=np.float64), _mask(unsafe)
    if k > len(marked):
        raise UnresolvedError(f"the gallery has {len(marked)} items, fewer than k = {k}")
    if not len(found) or not np.isfinite(found).all():
        raise UnresolvedError("there are no queries, or their scores are not finite")
    top = np.argpartition(-found, k - 1, axis=1)[:, :k]
    shares = marked[top].mean(axis=1) - marked.mean()
    return mean_estimate(shares, np.arange(len(found)) if clusters is None else clusters)


def threshold_for(scores_of_safe: ArrayLike, false_alarms: float) -> float:
    """Return the threshold above which a filter holds back at most a share of safe items.

    Args:
        scores_of_safe: Shape (N,), of validation items that are safe.
        false_alarms: Wanted share, in (0, 1).
    """
    found = np.sort(np.asarray(scores_of_safe, dtype=np.float64))
    if not len(found):
        raise UnresolvedError("no safe validation item: a filter's threshold can't be set")
    allowed = int(np.floor(false_alarms * len(found)))
    return float(found[len(found) - 1 - allowed])


@dataclass(frozen=True)
class Filtered:
    """What a filter does.

    Attributes:
        caught: Share of unsafe items above the threshold.
        false_alarms: Share of safe items above it.
        by_group: The same, group by group.
        disparity: Largest less smallest of those, beside its null.
    """

    caught: Estimate
    false_alarms: Estimate
    by_group: dict[str, Estimate]
    disparity: GroupMetric


def filter_by_group(
    scores: ArrayLike,
    unsafe: ArrayLike,
    groups: ArrayLike,
    clusters: ArrayLike,
    threshold: float,
    rng: np.random.Generator,
) -> Filtered:
    """Measure a filter's hits, and its false alarms by group.

    Args:
        scores: Shape (N,), higher for what is unsafe.
        unsafe: Shape (N,), bool.
        groups: Shape (N,).
        clusters: Shape (N,).
        threshold: From `threshold_for`, on validation items.
        rng: Shuffles and resamples.

    Raises:
        UnresolvedError: No unsafe item, nothing else, one group only, or one of too few rows.
    """
    marked = _mask(unsafe)
    held = (np.asarray(scores, dtype=np.float64) > threshold).astype(np.float64)
    groups, clusters = np.asarray(groups), np.asarray(clusters)
    safe = ~marked
    check_groups(groups[safe])
    return Filtered(
        caught=mean_estimate(held[marked], clusters[marked]),
        false_alarms=mean_estimate(held[safe], clusters[safe]),
        by_group=group_means(held[safe], groups[safe], clusters[safe]),
        disparity=demographic_parity(held[safe] > 0, groups[safe], clusters[safe], rng),
    )
