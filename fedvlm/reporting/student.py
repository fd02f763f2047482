"""Means over seeds, with their uncertainty."""

import numpy as np
from scipy import stats


def interval(values: list[float]) -> tuple[float, float, float]:
    """Return the mean and its 95 % interval by Student's t; NaN ends for a single value."""
    mean = float(np.mean(values))
    if len(values) < 2:
        return mean, float("nan"), float("nan")
    half = float(stats.t.ppf(0.975, len(values) - 1) * stats.sem(values))
    return mean, mean - half, mean + half
