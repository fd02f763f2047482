"""A temperature from counts that nodes sum under protection."""

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.special import softmax

from fedvlm.errors import ConfigError

GRID = tuple(float(x) for x in np.geomspace(0.1, 4.0, 24))
_BINS = 20


def temperature_counts(
    cosines: ArrayLike, right: ArrayLike, scale: float, grid: tuple[float, ...] = GRID
) -> NDArray[np.int64]:
    """Count answers by temperature, confidence and correctness, on one node's validation pairs.

    An example adds 1 to one cell for each temperature: adding or removing it moves the counts by
    √G in L2, which is what noise is made for under differential privacy.

    Args:
        cosines: Shape (N, C).
        right: Shape (N,).
        scale: The model's inverse temperature.
        grid: G factors on the logits, alike on all nodes.

    Returns:
        Shape (G, 20, 2), int64; the counts of several nodes add up.
    """
    found = np.asarray(cosines, dtype=np.float64)
    if not np.isfinite(found).all():
        raise ConfigError("cosines must be finite to be counted")
    correct = found.argmax(axis=1) == np.asarray(right)
    out = np.zeros((len(grid), _BINS, 2), dtype=np.int64)
    for number, factor in enumerate(grid):
        sure = softmax(scale * factor * found, axis=1).max(axis=1)
        place = np.minimum((sure * _BINS).astype(np.int64), _BINS - 1)
        np.add.at(out[number], (place, correct.astype(np.int64)), 1)
    return out


def temperature_from_counts(counts: ArrayLike, grid: tuple[float, ...] = GRID) -> float:
    """Choose the factor whose calibration error over the summed counts is smallest.

    Args:
        counts: Shape (G, 20, 2), summed, and perhaps noised; negative ones count as 0.
        grid: The factors that were counted for.

    Raises:
        ConfigError: Counts of another shape, or none.
    """
    found = np.maximum(np.asarray(counts, dtype=np.float64), 0.0)
    if found.shape != (len(grid), _BINS, 2) or not found.sum():
        raise ConfigError(f"expected counts ({len(grid)}, {_BINS}, 2), some above 0")
    middle = (np.arange(_BINS) + 0.5) / _BINS
    gaps = np.abs(found[:, :, 1] - middle * found.sum(axis=2)).sum(axis=1)
    return grid[int(gaps.argmin())]
