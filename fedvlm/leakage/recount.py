"""ε counted again from noise, sampling rate and number of releases, by other arithmetic.

The library accounts by dp-accounting, rounded so that ε is never too small. Here the privacy loss
is put on a grid of its own and convolved by FFT (Koskela et al. 2020), rounded so that ε is never
too large: a claim below this is below what its own noise costs, and not by rounding.
"""

import math

import numpy as np
from numpy.typing import NDArray
from scipy.special import ndtr

from fedvlm.errors import ConfigError
from fedvlm.leakage.epsilon import gaussian_epsilon

_CELLS = 1 << 19
_TAIL = 12.0  # standard deviations of the noise, beyond which losses count as the largest kept
_ERROR = 1e-10  # more than the FFT's rounding


def epsilon_at_least(
    noise_multiplier: float, sample_rate: float, releases: int, delta: float
) -> float:
    """Return what Gaussian noise on Poisson samples costs at the least.

    Args:
        noise_multiplier: Standard deviation over the sensitivity, positive.
        sample_rate: Chance of each unit to be in a release, in (0, 1].
        releases: How many, at least 0.
        delta: In (0, 1).

    Guarantees:
        At most the ε of that mechanism at `delta` under add-or-remove, to 10^-10 in δ.

    Raises:
        ConfigError: A value is out of its range.

    Example:
        >>> round(epsilon_at_least(1.0, 1.0, 1, 1e-5), 3)
        4.377
    """
    sound = noise_multiplier > 0 and 0 < sample_rate <= 1 and releases >= 0 and 0 < delta < 1
    if not (sound and math.isfinite(noise_multiplier)):
        raise ConfigError(
            "need noise_multiplier > 0, sample_rate in (0, 1], releases >= 0 and delta in (0, 1); "
            f"got {noise_multiplier}, {sample_rate}, {releases} and {delta}"
        )
    if not releases:
        return 0.0
    if sample_rate == 1:
        return gaussian_epsilon(math.sqrt(releases) / noise_multiplier, delta)
    edges, mass = _loss(noise_multiplier, sample_rate, releases)
    total = np.fft.irfft(np.fft.rfft(mass) ** releases, len(mass))
    total = np.roll(np.maximum(total, 0.0), len(mass) // 2)
    step = edges[1] - edges[0]
    losses = (np.arange(len(mass)) - len(mass) // 2) * step

    def excess(epsilon: float) -> float:
        above = losses > epsilon
        lost = total[above] @ -np.expm1(epsilon - losses[above])
        return float(lost) - _ERROR - delta

    low, high = 0.0, float(losses[-1])
    if excess(low) <= 0:
        return 0.0
    while high - low > 1e-4:
        middle = (low + high) / 2
        low, high = (middle, high) if excess(middle) > 0 else (low, middle)
    return low


def _loss(z: float, q: float, releases: int) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Return a grid of losses, and the mass of each cell: its losses count as its lower edge.

    The loss of (1 − q)·N(0, z²) + q·N(1, z²) against N(0, z²) at x is ln(1 − q + q·e^((2x−1)/2z²)).
    The mass of a loss i·step lies in cell i, negative ones at the end, as the FFT wants it.
    """
    draws = np.linspace(-_TAIL * z, 1 + _TAIL * z, 20001)
    found = np.logaddexp(math.log1p(-q), math.log(q) + (2 * draws - 1) / (2 * z * z))
    weights = (1 - q) * np.exp(-0.5 * (draws / z) ** 2) + q * np.exp(-0.5 * ((draws - 1) / z) ** 2)
    weights /= weights.sum()
    mean = float(weights @ found)
    spread = math.sqrt(float(weights @ (found - mean) ** 2))
    most = float(found[-1])
    reach = releases * abs(mean) + 12 * math.sqrt(releases) * spread + most + 1
    step = 2 * reach / _CELLS
    first, last = math.floor(math.log1p(-q) / step), math.ceil(most / step)
    edges = (np.arange(first, last + 1) * step).astype(np.float64)
    inner = np.maximum(np.exp(edges) - (1 - q), 0.0)
    with np.errstate(divide="ignore"):
        at = z * z * (np.log(inner) - math.log(q)) + 0.5
    below = (1 - q) * ndtr(at / z) + q * ndtr((at - 1) / z)
    mass = np.zeros(_CELLS)
    mass[np.arange(first, last) % _CELLS] = np.diff(below)
    mass[(last - 1) % _CELLS] += 1 - below[-1]
    mass[first % _CELLS] += below[0]
    return edges, mass
