"""Bias distance between embeddings: WEAT, SEAT and iEAT are this on words, sentences, images."""

from itertools import combinations
from math import comb

import numpy as np
from numpy.typing import ArrayLike, NDArray

from fedvlm.trust.contrasts import bootstrap
from fedvlm.trust.estimate import Estimate, UnresolvedError

Floats = NDArray[np.float64]
_MOST_EXACT = 20_000


def _unit(rows: ArrayLike, name: str) -> Floats:
    found = np.atleast_2d(np.asarray(rows, dtype=np.float64))
    norms = np.linalg.norm(found, axis=1, keepdims=True)
    if len(found) < 2 or not np.isfinite(found).all() or not norms.all():
        raise UnresolvedError(f"{name} needs at least 2 finite rows that are not zero")
    return found / norms


def associations(rows: ArrayLike, first: ArrayLike, second: ArrayLike) -> Floats:
    """Return s(w) = mean cosine with `first` − mean cosine with `second`, shape (N,).

    Args:
        rows: Shape (N, D).
        first: Shape (A, D), attributes.
        second: Shape (B, D), attributes.
    """
    a, b = _unit(first, "an attribute"), _unit(second, "an attribute")
    found = _unit(rows, "a target")
    return (found @ a.T).mean(axis=1) - (found @ b.T).mean(axis=1)


def _effect(one: Floats, other: Floats) -> float:
    spread = float(np.concatenate([one, other]).std(ddof=1))
    difference = float(one.mean() - other.mean())
    return difference / spread if spread > 0 else 0.0


def permutation_p(
    one: Floats, other: Floats, rng: np.random.Generator, draws: int = 10_000
) -> float:
    """Return the two-sided p of a difference of means under relabelling of the targets.

    All partitions where they are at most 20,000, else drawn ones with (1 + hits) / (1 + draws).
    """
    values = np.concatenate([one, other])
    count, total = len(one), float(values.sum())
    seen = abs(one.mean() - other.mean())

    def far(sums: Floats) -> Floats:
        return np.abs(sums / count - (total - sums) / len(other)) >= seen - 1e-12

    if comb(len(values), count) <= _MOST_EXACT:
        chosen = np.array(list(combinations(range(len(values)), count)))
        return float(far(values[chosen].sum(axis=1)).mean())
    sums = np.array([rng.permutation(values)[:count].sum() for _ in range(draws)])
    return float((1 + far(sums).sum()) / (1 + draws))


def bias_distance(
    x: ArrayLike,
    y: ArrayLike,
    first: ArrayLike,
    second: ArrayLike,
    rng: np.random.Generator,
    clusters: tuple[ArrayLike, ArrayLike] | None = None,
) -> Estimate:
    """Measure WEAT's effect d = (mean_X s − mean_Y s) / sd s (Caliskan et al. 2017).

    An effect is in standard deviations, at most 2, and says nothing of how large a difference of
    cosines is: two sets that differ a little and consistently have a large d.

    Args:
        x: Shape (N, D), targets.
        y: Shape (M, D), targets of the other kind.
        first: Shape (A, D), attributes that x might lie nearer to.
        second: Shape (B, D), attributes that y might lie nearer to.
        rng: Relabels, and resamples targets for the interval.
        clusters: What resamples go by: concepts of x and of y; each row where None.

    Returns:
        The effect with a two-sided permutation p. An effect of p above 0.05 is no finding.

    Raises:
        UnresolvedError: Fewer than two rows of anything, or rows that aren't finite.
    """
    one, other = associations(x, first, second), associations(y, first, second)
    values = np.concatenate([one, other])
    kind = np.arange(len(values)) < len(one)
    groups = np.arange(len(values)) if clusters is None else np.concatenate(clusters)

    def effect(rows: NDArray[np.int64]) -> float:
        chosen, inside = values[rows], kind[rows]
        if inside.all() or not inside.any():
            return float("nan")
        return _effect(chosen[inside], chosen[~inside])

    found = bootstrap(effect, groups, rng)
    p = permutation_p(one, other, rng)
    return Estimate(found.value, found.low, found.high, found.rows, found.clusters, p)
