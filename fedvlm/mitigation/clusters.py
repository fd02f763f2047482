"""Weak clusters drawn more often: what a client may do with its own pairs before it trains."""

import numpy as np
from numpy.typing import ArrayLike, NDArray

from fedvlm.errors import ConfigError


def resampled(
    rows: ArrayLike,
    embeddings: ArrayLike,
    errors: ArrayLike,
    rng: np.random.Generator,
    clusters: int = 8,
) -> NDArray[np.int64]:
    """Draw as many rows again, each cluster of embeddings in proportion to its mean error.

    Clusters are found by k-means, so that no group needs a name. A pair that is drawn several times
    counts several times: under example-level DP its ε grows with that, and it is refused there.

    Args:
        rows: Shape (n,), the client's pairs.
        embeddings: Shape (n, D), of the model before training.
        errors: Shape (n,), at least 0: how wrong that model is about each.
        rng: Seeds k-means, and draws.
        clusters: At most this many, and at most one for five pairs.

    Returns:
        Shape (n,), with repeats, ascending. Where no cluster has an error, the rows as they are.

    Raises:
        ConfigError: Other lengths, or errors that are negative or not finite.
    """
    from sklearn.cluster import KMeans

    own = np.asarray(rows, dtype=np.int64)
    found = np.asarray(embeddings, dtype=np.float64)
    wrong = np.asarray(errors, dtype=np.float64)
    if not len(own) == len(found) == len(wrong) or not (np.isfinite(wrong) & (wrong >= 0)).all():
        raise ConfigError("need an embedding and an error of 0 or more for each row")
    count = max(1, min(clusters, len(own) // 5))
    seed = int(rng.integers(2**31))
    place = KMeans(count, n_init=4, random_state=seed).fit_predict(found)
    sizes = np.bincount(place, minlength=count)
    mean = np.bincount(place, weights=wrong, minlength=count) / np.maximum(sizes, 1)
    if not mean.sum() > 0:
        return np.sort(own)
    # Each cluster gets its error's share of the draws, and its pairs share that alike.
    chance = (mean / mean.sum() / np.maximum(sizes, 1))[place]
    return np.sort(rng.choice(own, size=len(own), p=chance / chance.sum()))
