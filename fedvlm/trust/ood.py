"""Does the model know what it doesn't know: scores for what no caption fits, and how well."""

from collections.abc import Callable

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.special import logsumexp, softmax
from scipy.stats import rankdata

from fedvlm.trust.contrasts import bootstrap
from fedvlm.trust.estimate import Estimate, UnresolvedError

Floats = NDArray[np.float64]


def mcm(cosines: ArrayLike, temperature: float = 1.0) -> Floats:
    """Return the maximum concept match, max softmax(cos / τ) (Ming et al. 2022), shape (N,).

    Args:
        cosines: Shape (N, C), with the captions that are known.
        temperature: τ, above 0; the paper's is 1 on cosines, CLIP's own is about 0.01.
    """
    return softmax(np.asarray(cosines, dtype=np.float64) / temperature, axis=1).max(axis=1)


def max_logit(cosines: ArrayLike) -> Floats:
    """Return the largest cosine, shape (N,)."""
    return np.asarray(cosines, dtype=np.float64).max(axis=1)


def energy(cosines: ArrayLike, temperature: float) -> Floats:
    """Return τ·logsumexp(cos / τ) (Liu et al. 2020), shape (N,); higher for what is known."""
    found = np.asarray(cosines, dtype=np.float64)
    return temperature * logsumexp(found / temperature, axis=1)


def auroc(inside: ArrayLike, outside: ArrayLike) -> float:
    """Return the chance that a known item scores above an unknown one; ties count half.

    Example:
        >>> auroc([2.0, 3.0], [1.0, 2.0])
        0.875
    """
    a, b = np.asarray(inside, dtype=np.float64), np.asarray(outside, dtype=np.float64)
    if not len(a) or not len(b) or not np.isfinite(np.concatenate([a, b])).all():
        raise UnresolvedError("an AUROC needs finite scores of both known and unknown items")
    ranks = rankdata(np.concatenate([a, b]))[: len(a)]
    return float((ranks.sum() - len(a) * (len(a) + 1) / 2) / (len(a) * len(b)))


def fpr_at_tpr(inside: ArrayLike, outside: ArrayLike, tpr: float = 0.95) -> float:
    """Return the share of unknown items taken for known where a share `tpr` of the known is.

    The threshold is the largest score that keeps at least that share; ties are taken.
    """
    known = np.sort(np.asarray(inside, dtype=np.float64))[::-1]
    unknown = np.asarray(outside, dtype=np.float64)
    if not len(known) or not len(unknown) or not np.isfinite([known.sum(), unknown.sum()]).all():
        raise UnresolvedError("an FPR needs finite scores of both known and unknown items")
    threshold = known[int(np.ceil(tpr * len(known) - 1e-9)) - 1]
    return float((unknown >= threshold).mean())


def detection(
    inside: tuple[ArrayLike, ArrayLike],
    outside: tuple[ArrayLike, ArrayLike],
    rng: np.random.Generator,
    metric: Callable[[ArrayLike, ArrayLike], float] = auroc,
) -> Estimate:
    """Estimate AUROC (or FPR95) with an interval by concept.

    Args:
        inside: Scores and clusters of known items, shapes (N,).
        outside: Scores and clusters of unknown ones, shapes (M,).
        rng: Resamples known and unknown clusters, each among themselves.
        metric: `auroc` or `fpr_at_tpr`.
    """
    (a, a_clusters), (b, b_clusters) = inside, outside
    a, b = np.asarray(a, dtype=np.float64), np.asarray(b, dtype=np.float64)
    value = metric(a, b)
    split = len(np.unique(a_clusters))
    draws_a = _resamples(np.asarray(a_clusters), rng)
    draws_b = _resamples(np.asarray(b_clusters), rng)
    found = [metric(a[i], b[j]) for i, j in zip(draws_a, draws_b, strict=True)]
    low, high = np.percentile(found, (2.5, 97.5))
    clusters = min(split, len(np.unique(b_clusters)))
    return Estimate(value, float(low), float(high), min(len(a), len(b)), clusters)


def _resamples(
    clusters: NDArray, rng: np.random.Generator, draws: int = 300
) -> list[NDArray[np.int64]]:
    """Return rows of resampled clusters, draw by draw."""
    rows: list[NDArray[np.int64]] = []

    def keep(chosen: NDArray[np.int64]) -> float:
        rows.append(chosen)
        return 0.0

    bootstrap(keep, clusters, rng, draws)
    return rows[:draws]
