"""How far Skellam noise is from a Gaussian that was processed further, and no farther.

Rounding X + W to integers, X a Gaussian and W a number of three values, is post-processing of a
Gaussian release. With the right W the cumulants of that law are Skellam's up to the seventh,
nearly, at a cost of √(μ/9.62) of the variance μ: of a thousandth at μ = 10^5. What is left is
bounded by the ratio of the two laws, coordinate by coordinate, whatever the vectors are that the
noise hides:

    δ(ε) ≤ e^R · (δ_Gauss(ε − 2R) + e^ε τ) + τ

where R bounds the logarithm of the ratio over all coordinates of all releases, but for a chance τ.
Rényi's curve of the Skellam law (Agarwal et al. 2021) gives away about a sixth of ε in the step
from Rényi DP to (ε, δ); this does not.
"""

import math
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]

# At this ratio of μ to the square of W's variance the sixth cumulants agree: the larger root of
# s² − 9s − 6.
_SHAPE = (9 + math.sqrt(105)) / 2
# Where the series of the two laws are good to 10^-13 of a density, on up to `_WIDEST` deviations.
_LEAST_VARIANCE = 2.0e3
_WIDEST = 40.0
_POINTS = 4096
# Rounding of one logarithm of a ratio.
_FLOAT_ERROR = 1e-13
_ASINH = [(-1) ** n * math.comb(2 * n, n) / (4.0**n * (2 * n + 1)) / (2 * n + 2) for n in range(14)]


def skellam_log_mass(k: Floats, variance: float) -> Floats:
    """Return log of the symmetric Skellam law's mass at k: Debye's expansion of log I_k(μ) − μ.

    Args:
        k: Shape (n,), |k| ≤ variance / 2.
        variance: μ, at least 2,000.
    """
    squares = np.square(k)
    ratio = squares / variance**2
    series = np.zeros_like(ratio)
    for coefficient in reversed(_ASINH):  # √(1+y²) − 1 − y·asinh(y) = −Σ a_n y^(2n+2) / (2n+2)
        series = series * ratio + coefficient
    w = np.hypot(k, variance)
    t = squares / np.square(w)
    first = (3 - 5 * t) / (24 * w)
    second = (81 - 462 * t + 385 * t**2) / (1152 * w**2)
    third = (30375 - 369603 * t + 765765 * t**2 - 425425 * t**3) / (414720 * w**3)
    main = -squares / variance * series
    return main - 0.5 * np.log(2 * math.pi * w) + np.log1p(first + second + third)


@dataclass(frozen=True)
class Processed:
    """The law of round(X + W), X ~ N(0, `variance`), W = ±`jump` with a chance of `chance`, else 0.

    Attributes:
        variance: Variance of the Gaussian: what is left of μ.
        jump: |W| where W isn't 0.
        chance: Chance that W isn't 0.
    """

    variance: float
    jump: float
    chance: float

    def log_mass(self, k: Floats) -> Floats:
        """Return log of the mass at k: shape (n,)."""

        def cell(x: Floats) -> Floats:
            # ∫ of the density over [x − ½, x + ½], by its even derivatives at x.
            v = self.variance
            h = np.square(x) / v
            terms = (h - 1) / (24 * v) + (h**2 - 6 * h + 3) / (1920 * v**2)
            terms += (h**3 - 15 * h**2 + 45 * h - 15) / (322560 * v**3)
            terms += (h**4 - 28 * h**3 + 210 * h**2 - 420 * h + 105) / (92897280 * v**4)
            return -h / 2 - 0.5 * math.log(2 * math.pi * v) + np.log1p(terms)

        side = math.log(self.chance / 2)
        both = np.logaddexp(cell(k - self.jump), cell(k + self.jump)) + side
        return np.logaddexp(both, cell(k) + math.log1p(-self.chance))

    def log_tail(self, k: float) -> float:
        """Return log of a bound on the chance of leaving ±k."""
        z = (k - 0.5 - self.jump) / math.sqrt(self.variance)
        return math.log(2) - z * z / 2


@lru_cache(maxsize=64)
def processed_gaussian(variance: float) -> Processed:
    """Return the processed Gaussian that is nearest to Skellam noise of a variance."""
    spread = math.sqrt((variance + 1 / 120) / _SHAPE)  # rounding has a fourth cumulant of −1/120
    chance = 1 / (3 + _SHAPE)
    return Processed(variance - spread - 1 / 12, math.sqrt(spread / chance), chance)


def skellam_log_tail(variance: float, k: float) -> float:
    """Return log of a bound on the chance that Skellam noise leaves ±k (Chernoff)."""
    x = k / variance
    return math.log(2) + variance * x * x / (1 + math.hypot(1, x)) - k * math.asinh(x)


def _log_sum(values: Floats) -> float:
    """Return log Σ e^value, whatever the values' size."""
    most = float(values.max())
    return most + math.log(float(np.exp(values - most).sum()))


@dataclass(frozen=True)
class Slack:
    """What a Gaussian's δ must be widened by.

    Attributes:
        ratio: R: log of the ratio of the laws of all noise, either way.
        failure: τ: chance that the ratio is larger, under either law.
    """

    ratio: float
    failure: float


@lru_cache(maxsize=64)
def slack(variance: float, draws: int, log_failure: float) -> Slack | None:
    """Bound the ratio of the laws of all noise of all releases.

    Args:
        variance: μ of a coordinate's noise.
        draws: Coordinates times releases.
        log_failure: log of τ; about.

    Returns:
        The slack, or None where the noise is too little for these series.
    """
    if variance < _LEAST_VARIANCE:
        return None
    law = processed_gaussian(variance)
    std = math.sqrt(variance)
    share = log_failure - math.log(2 * draws)
    width = math.sqrt(2 * -share) + 0.1
    while (
        width < _WIDEST
        and max(skellam_log_tail(variance, width * std), law.log_tail(width * std)) > share
    ):
        width += 0.05
    if width >= _WIDEST or 4 * width > std:
        return None
    reach = math.ceil(width * std)
    k = np.arange(reach + 1.0) if reach < _POINTS else np.linspace(0, reach, _POINTS)
    skellam, processed = skellam_log_mass(k, variance), law.log_mass(k)
    r = skellam - processed
    # Between the points of a grid r moves by far less than it is at its largest.
    most = float(np.abs(r).max()) * (1.0 if reach < _POINTS else 1.1) + _FLOAT_ERROR
    step = math.log(k[1] - k[0])
    weights = np.where(k > 0, math.log(2), 0.0) + step  # both signs
    # Chernoff: P(Σ r > R) ≤ exp(n·Λ(λ) − λR), where Λ(λ) = log E[e^(λr)], under either law.
    found = draws * most
    for factor in (1e-4, 1e-3, 1e-2, 0.1, 1.0, 5.0):
        rate = factor / most
        up = _log_sum(weights + skellam + rate * r)
        down = _log_sum(weights + processed - rate * r)
        moment = max(up, down, 0.0) + (1 + rate) * _FLOAT_ERROR
        found = min(found, (draws * moment - log_failure + math.log(2)) / rate)
    return Slack(found, math.exp(log_failure))
