"""Re-ranking after a search, where nothing of the model changes."""

import numpy as np
from numpy.typing import ArrayLike, NDArray


def bias_at(ranked: ArrayLike, k: int) -> float:
    """Return (m − f)/(m + f) among the first k, mean over queries; 0 where neither is there.

    Args:
        ranked: Shape (Q, N): +1, −1 or 0 for an item of either kind or none, best first.
        k: How many are looked at.
    """
    top = np.asarray(ranked)[:, :k]
    plus, minus = (top > 0).sum(axis=1), (top < 0).sum(axis=1)
    total = np.maximum(plus + minus, 1)
    return float(((plus - minus) / total).mean())


def interleaved(
    scores: ArrayLike, predicted: ArrayLike, shares: ArrayLike | None = None
) -> NDArray[np.int64]:
    """Rank by turns of the predicted groups (post-hoc bias mitigation, Kong et al. 2023).

    Each place goes to the group that is furthest behind its share; within a group the scores'
    order stands. What is predicted wrongly is balanced wrongly: report the predictor's accuracy.

    Args:
        scores: Shape (Q, N).
        predicted: Shape (N,), group 0 … G − 1 of each item.
        shares: Shape (G,), wanted shares; alike where None.

    Returns:
        Shape (Q, N): item numbers, best first.
    """
    found, groups = np.asarray(scores, dtype=np.float64), np.asarray(predicted)
    count = int(groups.max()) + 1
    wanted = np.full(count, 1 / count) if shares is None else np.asarray(shares, dtype=np.float64)
    out = np.empty(found.shape, dtype=np.int64)
    for query, row in enumerate(found):
        order = np.argsort(-row, kind="stable")
        queues = [order[groups[order] == group].tolist()[::-1] for group in range(count)]
        taken = np.zeros(count)
        for place in range(len(order)):
            behind = wanted * (place + 1) - taken
            behind[[not queue for queue in queues]] = -np.inf
            # Of groups equally far behind the one whose next item scores highest goes first.
            best = np.flatnonzero(behind >= behind.max() - 1e-12)
            group = int(max(best, key=lambda g: row[queues[g][-1]]))
            out[query, place] = queues[group].pop()
            taken[group] += 1
    return out


def without_flagged(scores: ArrayLike, flagged: ArrayLike) -> NDArray[np.float64]:
    """Put what a filter flags below all else: a release's post-processing, at no privacy cost.

    Under HE the ranking is the client's, and so is this filter: it comes after decryption.

    Args:
        scores: Shape (Q, N).
        flagged: Shape (N,), bool.
    """
    return np.where(np.asarray(flagged).astype(bool), -np.inf, np.asarray(scores, dtype=np.float64))
