"""Bounds on Poisson-sampled Gaussian releases: three ways, none of which is always the tightest.

*Rényi* (Mironov et al. 2019) is quick and holds its own where steps are many and rates small.
*Coins told* gives the observer the coins of the unit and is exact but for that: with little noise
they show anyway. *PLD* (Doroshenko et al. 2022) is the tightest in between; its grid is chosen so
that a plan takes seconds and little memory at any noise.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np
from dp_accounting import rdp
from dp_accounting.pld import privacy_loss_distribution
from numpy.typing import NDArray
from scipy.special import gammaln, logsumexp

from fedvlm.privacy.analytic import gaussian_delta
from fedvlm.privacy.events import ORDERS, WHOLE

# Orders of whole numbers, far enough up for the ε of a hundredth.
_HIGH = (2048, 4096, 8192, 16384, 32768)
_ORDERS = (1.05, 1.1, *ORDERS, *_HIGH)
_ALL = tuple(np.concatenate([np.linspace(1.01, 64, 2000), np.geomspace(65, 32768, 400)]).tolist())
_STEP = 0.02
_MOST_POINTS = 40_000
_MOST_LOSS = 600.0  # e^loss must stay within a double
_TAILS = 12.0
_RARE = 1e-18
_FINEST = 1e-9
_MOST_RESULTS = 1e6
# Rounding of the transform that composes a PLD: a relative error of each of the factors.
_FACTOR_ERROR = 1e-15


@dataclass(frozen=True)
class Sampled:
    """Equal releases over Poisson samples.

    Attributes:
        rate: Chance q of each unit to be in a release, in (0, 1).
        noise_multiplier: z of a release.
        count: Number of releases.
    """

    rate: float
    noise_multiplier: float
    count: int


@lru_cache(maxsize=512)
def _log_moments(rate: float, z: float) -> NDArray[np.float64]:
    """Return log E[(P/Q)^a] at whole orders a, for one release."""
    found = []
    for order in (*WHOLE, *_HIGH):
        k = np.arange(2, order + 1, dtype=np.float64)
        chance = gammaln(order + 1) - gammaln(k + 1) - gammaln(order - k + 1)
        chance += k * math.log(rate) + (order - k) * math.log1p(-rate)
        growth = k * (k - 1) / (2 * z * z)
        # E − 1, so that a moment near 1 keeps its digits over 10^7 releases.
        terms = chance + growth + np.log1p(-np.exp(-np.maximum(growth, 1e-300)))
        above = float(logsumexp(terms))  # pyright: ignore[reportArgumentType]
        found.append(np.logaddexp(0.0, above) if above > -30 else math.exp(above))
    return np.array(found)


@lru_cache(maxsize=512)
def _log_moment_between(rate: float, z: float, order: float) -> float:
    """Return log E[(P/Q)^a] at an order between two whole ones, for one release.

    By the trapezoidal rule, whose error falls like e^(−2π²z/h): nothing, from z = 0.3 on.
    """
    u = np.arange(-_TAILS, order / z + _TAILS, _STEP)
    slope = u / z - 1 / (2 * z * z)
    # log(1 − q + q·e^slope), whatever the slope.
    growth = np.where(
        slope < 1, np.log1p(rate * np.expm1(np.minimum(slope, 1))),
        slope + np.log(rate + (1 - rate) * np.exp(-np.maximum(slope, 1))),
    )  # fmt: skip
    # E − 1, from which E[P/Q − 1] = 0 is taken off: what is left is above 0 everywhere.
    size = order * growth
    small = size < 1
    near = np.expm1(np.where(small, size, 0)) - order * rate * np.expm1(np.where(small, slope, 0))
    weight = np.exp(-u * u / 2)
    with np.errstate(over="ignore"):
        far = np.exp(size - u * u / 2) - weight
        far -= order * rate * (np.exp(slope - u * u / 2) - weight)
    above = float(np.where(small, near * weight, far).sum()) * _STEP / math.sqrt(2 * math.pi)
    return math.log1p(max(above, 0.0))


def renyi_curve(sampled: Sampled, orders: Sequence[float]) -> NDArray[np.float64]:
    """Return the Rényi divergence at orders above 1.

    Between two whole orders the logarithm of the moment is convex, so that the line between them
    is above it; it is taken where the noise is too little for a sharper one.
    """
    z = sampled.noise_multiplier
    whole = np.array([1, *WHOLE, *_HIGH], dtype=np.float64)
    moments = np.concatenate([[0.0], _log_moments(sampled.rate, z)])
    at = np.asarray(orders, dtype=np.float64)
    found = np.interp(at, whole, moments)
    if z >= 0.3:
        for place in np.flatnonzero((at % 1 != 0) & (at < 16)):
            found[place] = min(found[place], _log_moment_between(sampled.rate, z, float(at[place])))
    return sampled.count * found / (at - 1)


def renyi_epsilon(mu: float, sampled: Sequence[Sampled], delta: float) -> float:
    """Return ε by Rényi DP of unsampled releases (μ) and sampled ones together."""
    orders = _ORDERS if sampled else _ALL
    curve = mu**2 * np.array(orders) / 2
    for each in sampled:
        curve = curve + renyi_curve(each, orders)
    return float(rdp.compute_epsilon(orders, curve.tolist(), delta)[0])


@lru_cache(maxsize=64)
def _binomial(each: Sampled) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Return the numbers of releases that a unit is in, but for `_RARE`, and their chances."""
    mean, log = each.rate * each.count, -math.log(_RARE)
    reach = math.sqrt(2 * mean * log) + log  # Bernstein's bound, either way
    k = np.arange(max(0, int(mean - reach)), min(each.count, math.ceil(mean + reach)) + 1)
    rest = each.count - k
    chance = gammaln(each.count + 1) - gammaln(k + 1) - gammaln(rest + 1)
    chance += k * math.log(each.rate) + rest * math.log1p(-each.rate)
    # Logarithms of 10^8 lose digits, and the chances add up to 1: all that is lost is a scale.
    return k.astype(np.float64), np.exp(chance - logsumexp(chance))


def coins_delta(mu: float, each: Sampled, epsilon: float) -> float:
    """Return δ at an ε for an observer who is told the unit's coins.

    Whoever sees less is no better off: δ(ε) ≤ Σ_k Binomial(k) · δ_Gauss(ε; √(μ² + k/z²)), by the
    joint convexity of the hockey-stick divergence.
    """
    k, chance = _binomial(each)
    deltas = gaussian_delta(np.sqrt(mu**2 + k / each.noise_multiplier**2), epsilon)
    return min(float(chance @ deltas) * (1 + 1e-6) + 2 * _RARE, 1.0)


def coins_epsilon(mu: float, each: Sampled, delta: float) -> float:
    """Return ε at a δ for an observer who is told the unit's coins."""
    if coins_delta(mu, each, 0.0) <= delta:
        return 0.0
    low, high = 0.0, 1.0
    while coins_delta(mu, each, high) > delta:
        low, high = high, 4 * high
        if high > 1e15:
            return math.inf
    while high - low > 1e-6 * high:
        middle = (low + high) / 2
        low, high = (middle, high) if coins_delta(mu, each, middle) > delta else (low, middle)
    return high


def _losses(each: Sampled) -> tuple[float, float]:
    """Return the least and the largest privacy loss of one release that a grid must hold."""
    z = each.noise_multiplier
    top = (1 + 2 * _TAILS * z) / (2 * z * z)
    return math.log1p(-each.rate), float(np.logaddexp(0.0, math.log(each.rate) + top))


def _dense(one: Any) -> Any:
    """Return a PLD as arrays: as dictionaries it would compose by loops in Python."""
    kind = privacy_loss_distribution.PrivacyLossDistribution
    return kind(one._pmf_remove.to_dense_pmf(), one._pmf_add.to_dense_pmf())


@lru_cache(maxsize=4)
def _composed(mu: float, sampled: tuple[Sampled, ...], interval: float) -> Any:
    made = None
    for each in sampled:
        one = privacy_loss_distribution.from_gaussian_mechanism(
            each.noise_multiplier,
            value_discretization_interval=interval,
            sampling_prob=each.rate,
        )
        part = _dense(one).self_compose(each.count)
        made = part if made is None else made.compose(part)
    if mu > 0:
        one = privacy_loss_distribution.from_gaussian_mechanism(
            1 / mu, value_discretization_interval=interval
        )
        made = one if made is None else made.compose(one)
    return made


def loss_distribution(mu: float, sampled: tuple[Sampled, ...], near: float) -> Any:
    """Return the privacy loss distribution of all releases, or None where no grid can hold it.

    Args:
        mu: √Σ 1/z² of the releases that every unit is in.
        sampled: The others.
        near: About the ε that it will be asked for.
    """
    spans, spreads = [], []
    for each in sampled:
        least, most = _losses(each)
        if most > _MOST_LOSS:
            return None
        spans.append(most - least)
        # Standard deviation of one release's loss, for steps that are much finer than it.
        z = each.noise_multiplier
        spreads.append(min(each.rate * math.sqrt(math.expm1(min(z**-2, 60.0))), most))
    if mu > 0:
        spans.append(2 * _TAILS * mu)
        spreads.append(mu)
        if mu * mu / 2 + _TAILS * mu > _MOST_LOSS:
            return None
    interval = max(min(min(spreads) / 6, max(near, 0.01) / 1000), max(spans) / _MOST_POINTS)
    interval = max(interval, near / _MOST_RESULTS, _FINEST)
    # To a power of two, so that plans that are alike share what is computed.
    return _composed(mu, sampled, 2.0 ** math.floor(math.log2(interval)))


def spare_delta(sampled: Sequence[Sampled]) -> float:
    """Return what the rounding of a composed PLD may hide of δ."""
    return _FACTOR_ERROR * sum(each.count for each in sampled)
