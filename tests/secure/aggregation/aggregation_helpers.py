"""Small things that several tests of secure aggregation use."""

import numpy as np


def skellam(rng: np.random.Generator, variance: float, length: int) -> np.ndarray:
    """Draw symmetric Skellam noise: the difference of two Poisson draws, float64."""
    half = variance / 2
    return (rng.poisson(half, length) - rng.poisson(half, length)).astype(np.float64)
