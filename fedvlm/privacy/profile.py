"""The privacy profile of what was released: δ at every ε, and not at one alone."""

from collections.abc import Sequence

import dp_accounting
import numpy as np

from fedvlm.privacy.accounting import delta_at, epsilon
from fedvlm.privacy.events import RenyiEvent

Profile = tuple[tuple[float, float], ...]
"""Pairs (ε, δ), each of which holds."""
_POINTS = 48
_LEAST_DELTA = 1e-9


def privacy_profile(history: Sequence[tuple[dp_accounting.DpEvent, int]]) -> Profile:
    """Return pairs (ε, δ) that a composition satisfies, from ε = 0 to a δ of 10^-9.

    Together they are its trade-off function, up to the grid (Dong et al. 2022, proposition 2.12).

    Args:
        history: Events with the number of times that each happened; not empty.

    Example:
        >>> profile = privacy_profile([(dp_accounting.GaussianDpEvent(2.0), 1)])
        >>> [round(profile[0][1], 3), profile[0][0]]
        [0.197, 0.0]
    """
    if any(isinstance(event, RenyiEvent) for event, _ in history):
        deltas = np.concatenate(
            [np.geomspace(_LEAST_DELTA, 0.01, _POINTS // 2), np.linspace(0.02, 0.98, _POINTS // 2)]
        )
        return tuple((epsilon(history, float(d), "rdp"), float(d)) for d in deltas)
    most = epsilon(history, _LEAST_DELTA)
    grid = np.concatenate([[0.0], np.geomspace(1e-2, max(most, 2e-2), _POINTS - 1)])
    return tuple((float(e), delta_at(history, float(e))) for e in grid)
