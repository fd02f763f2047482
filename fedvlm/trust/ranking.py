"""Skew of what a query retrieves, less what chance would give."""

import numpy as np
from numpy.typing import ArrayLike, NDArray

from fedvlm.trust.contrasts import t_interval
from fedvlm.trust.estimate import Estimate, UnresolvedError

Floats = NDArray[np.float64]


def _counts(ranked: ArrayLike, values: int, k: int) -> Floats:
    top = np.asarray(ranked)[:, :k]
    return (top[:, :, None] == np.arange(values)).sum(axis=1).astype(np.float64)


def max_skew(ranked: ArrayLike, wanted: ArrayLike, k: int) -> Floats:
    """Return MaxSkew@k = max_a ln(p_a@k / q_a) of each query (Geyik et al. 2019, equation 2).

    It is above 0 for a fair ranking too, and the more so the smaller k is: see `skew_excess`.

    Args:
        ranked: Shape (Q, N), the attribute's number 0 … A − 1 of each item, best first.
        wanted: Shape (A,), the shares q that would be fair, above 0.
        k: How many are looked at.

    Returns:
        Shape (Q,), in nats.

    Example:
        >>> max_skew([[0, 0, 1, 1]], [0.5, 0.5], 2).round(3).tolist()
        [0.693]
    """
    q = np.asarray(wanted, dtype=np.float64)
    p = _counts(ranked, len(q), k) / min(k, np.shape(ranked)[1])
    with np.errstate(divide="ignore"):
        return np.log(p / q).max(axis=1)


def ndkl(ranked: ArrayLike, wanted: ArrayLike) -> Floats:
    """Return NDKL = Z⁻¹ Σ_i KL(D_i ‖ q) / log2(i + 1) of each query (Geyik et al. 2019, eq. 4).

    D_i is the distribution of attributes among the first i, Z = Σ_i 1 / log2(i + 1).

    Args:
        ranked: Shape (Q, N).
        wanted: Shape (A,), above 0.

    Returns:
        Shape (Q,), in nats.
    """
    q = np.asarray(wanted, dtype=np.float64)
    shown = np.asarray(ranked)[:, :, None] == np.arange(len(q))
    place = np.arange(1, shown.shape[1] + 1)
    p = shown.cumsum(axis=1) / place[:, None]
    with np.errstate(divide="ignore", invalid="ignore"):
        kl = np.where(p > 0, p * np.log(p / q), 0.0).sum(axis=2)
    weight = 1 / np.log2(place + 1)
    return (kl * weight).sum(axis=1) / weight.sum()


def skew_excess(
    scores: ArrayLike,
    attributes: ArrayLike,
    rng: np.random.Generator,
    *,
    k: int | None = 10,
    draws: int = 200,
) -> Estimate:
    """Measure how far rankings are skewed beyond chance.

    The fair shares q are the gallery's own. Under the null the attributes are shuffled over the
    gallery; what the measure is then, on average, is subtracted.

    Args:
        scores: Shape (Q, N), of Q queries that name no attribute with N gallery items.
        attributes: Shape (N,), any values.
        rng: Shuffles.
        k: For MaxSkew@k; None measures NDKL.
        draws: Shuffles.

    Returns:
        Mean over queries less that of the null, with Student's interval over queries and the
        permutation p of the mean.

    Raises:
        UnresolvedError: One attribute only, scores that aren't finite, or fewer items than k.
    """
    found = np.asarray(scores, dtype=np.float64)
    names, codes = np.unique(np.asarray(attributes), return_inverse=True)
    if len(names) < 2:
        raise UnresolvedError("the gallery has one attribute only: no ranking of it is skewed")
    if not np.isfinite(found).all() or not found.size:
        raise UnresolvedError("scores are not all finite numbers: nothing is ranked by them")
    if k is not None and k > found.shape[1]:
        raise UnresolvedError(f"the gallery has {found.shape[1]} items, fewer than k = {k}")
    wanted = np.bincount(codes) / len(codes)
    # A gallery's order must not break ties, or a sorted one is skewed without any score.
    order = np.argsort(-found, axis=1, kind="stable") if not _ties(found) else _jittered(found, rng)

    order = order if k is None else order[:, :k]  # the rest is never looked at

    def measure(labels: NDArray[np.int64]) -> Floats:
        ranked = labels[order]
        return ndkl(ranked, wanted) if k is None else max_skew(ranked, wanted, k)

    values = measure(codes)
    null = np.array([measure(rng.permutation(codes)).mean() for _ in range(draws)])
    chance = float(null.mean())
    low, high = t_interval(values - chance)
    p = float((1 + (null >= values.mean() - 1e-12).sum()) / (1 + draws))
    excess = float(values.mean()) - chance
    return Estimate(excess, low, high, found.shape[1], len(values), p)


def _ties(scores: Floats) -> bool:
    return any(len(np.unique(row)) < len(row) for row in scores)


def _jittered(scores: Floats, rng: np.random.Generator) -> NDArray[np.int64]:
    return np.lexsort((rng.random(scores.shape), -scores), axis=1)
