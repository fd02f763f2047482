"""Is one group's data remembered more than another's: membership by group."""

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.special import logsumexp

from fedvlm.trust.contrasts import bootstrap
from fedvlm.trust.estimate import MIN_ROWS, Estimate, UnresolvedError
from fedvlm.trust.fairness import check_groups
from fedvlm.trust.ood import auroc


def margins(
    images: NDArray[np.float64],
    own: NDArray[np.float64],
    negatives: NDArray[np.float64],
    scale: float,
) -> NDArray[np.float64]:
    """Return by how much each image's own caption beats public ones, in nats, shape (N,).

    How much that rose in training is what whoever holds the released adapter can compute.

    Args:
        images: Shape (N, D), unit rows.
        own: Shape (N, D), the images' own captions.
        negatives: Shape (M, D), captions that are nobody's own.
        scale: The model's inverse temperature.
    """
    return scale * (images * own).sum(axis=1) - logsumexp(scale * images @ negatives.T, axis=1)


def membership_auc(scores: ArrayLike, members: ArrayLike, rng: np.random.Generator) -> Estimate:
    """Estimate the AUC of a membership score; fewer than 20 of either side are unresolved.

    Args:
        scores: Shape (N,), higher for what looks like a member.
        members: Shape (N,), bool: fair coins.
        rng: Resamples rows, members and non-members each among themselves.

    Raises:
        UnresolvedError: Scores that aren't finite.
    """
    found, inside = np.asarray(scores, dtype=np.float64), np.asarray(members).astype(bool)
    if not np.isfinite(found).all():
        raise UnresolvedError("membership scores are not all finite")
    rows = int(min(inside.sum(), (~inside).sum()))
    if rows < MIN_ROWS:
        return Estimate(np.nan, np.nan, np.nan, rows, rows)
    a, b = found[inside], found[~inside]
    scored = np.concatenate([a, b])

    def auc(rows: np.ndarray) -> float:
        first = rows < len(a)
        if first.all() or not first.any():
            return float("nan")
        return auroc(scored[rows[first]], scored[rows[~first]])

    one = bootstrap(auc, np.arange(len(scored)), rng)
    return Estimate(one.value, one.low, one.high, rows, rows)


def membership_by_group(
    scores: ArrayLike,
    members: ArrayLike,
    groups: ArrayLike,
    rng: np.random.Generator,
) -> dict[str, Estimate]:
    """Estimate the AUC of a membership score within each group.

    Within a group, members are told from non-members of that same group. A single threshold over
    all groups would count a group whose scores are higher as remembered more (Chang and Shokri
    2021; Yaghini et al. 2019).

    Args:
        scores: Shape (N,), higher for what looks like a member.
        members: Shape (N,), bool: fair coins.
        groups: Shape (N,).
        rng: Resamples rows, members and non-members each among themselves.

    Returns:
        Group → AUC; a group with fewer than 20 members or non-members is unresolved.

    Raises:
        UnresolvedError: One group only, scores that aren't finite, or a group that is membership
            by another name.
    """
    found, inside = np.asarray(scores, dtype=np.float64), np.asarray(members).astype(bool)
    groups = np.asarray(groups)
    check_groups(groups, inside)
    if not np.isfinite(found).all():
        raise UnresolvedError("membership scores are not all finite")
    out = {}
    for name in np.unique(groups):
        chosen = groups == name
        out[str(name)] = membership_auc(found[chosen], inside[chosen], rng)
    return out
