"""Compression by a shared mask: a fraction of the coordinates a round, drawn by a public seed."""

import numpy as np
from numpy.typing import NDArray

from fedvlm.seeds import ExperimentSeed


def drawn(size: int, kept: float, seed: int, number: int) -> NDArray[np.bool_]:
    """Draw the coordinates of a round, the same for everybody.

    All clients send the same coordinates, so that what they send can be summed under a mask or
    under encryption; each client's own largest ones could not. The seed is public: the choice
    hides nothing, and saves bytes.

    Args:
        size: Coordinates to draw from, at least 1.
        kept: Share that is kept, in (0, 1]; at least one coordinate is.
        seed: The experiment's seed.
        number: Round, from 1.

    Returns:
        Shape (size,), bool.

    Example:
        >>> int(drawn(1000, 0.25, seed=0, number=1).sum())
        250
    """
    count = max(1, round(kept * size))
    chosen = np.zeros(size, dtype=np.bool_)
    chosen[ExperimentSeed(seed).numpy("mask", number).permutation(size)[:count]] = True
    return chosen
