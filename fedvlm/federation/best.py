"""Which round was best on the validation part, and where its adapter is."""

from collections.abc import Sequence
from typing import Any

BEST = "adapter-best"
"""Folder of the best round's adapter, where it isn't the last one."""


def _scores(history: Sequence[dict[str, Any]], metric: str) -> dict[int, float]:
    key = f"validation_{metric}"
    return {one["round"]: one[key] for one in history if one["round"] and one.get(key) is not None}


def is_best(history: Sequence[dict[str, Any]], metric: str, personal: bool) -> bool:
    """Return whether the last entry of a history is the first round of its best score.

    Args:
        history: Entries by round; entry 0 is before training.
        metric: The task's.
        personal: Whether nodes keep a part, so that the server's adapter has no score of its own.
    """
    found = best_of(history, metric, personal)
    return bool(found) and found["round"] == history[-1]["round"]


def best_of(history: Sequence[dict[str, Any]], metric: str, personal: bool) -> dict[str, Any]:
    """Return the best round of a history: the earliest of the highest validation score.

    Returns:
        `round`, `validation` (its score) and `adapter`: `adapter` where it is the last round, else
        `adapter-best`; empty where no round was scored.
    """
    scores = {} if personal else _scores(history, metric)
    if not scores:
        return {}
    number = max(scores, key=lambda one: (scores[one], -one))
    last = number == history[-1]["round"]
    return {
        "round": number,
        "validation": scores[number],
        "adapter": "adapter" if last else BEST,
    }
