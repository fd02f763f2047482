"""ε from what was released, and the noise that a wished-for ε needs.

A history is reduced to what it is made of: releases that every unit is in are one Gaussian, exactly
(`fedvlm.privacy.analytic`); releases over Poisson samples have several bounds, of which the least
is taken (`fedvlm.privacy._sampled`); Skellam noise is a Gaussian with a slack
(`fedvlm.privacy._skellam_law`), or its Rényi curve; anything else has its Rényi curve only.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Literal

import dp_accounting
import numpy as np
from dp_accounting import rdp

from fedvlm.errors import ConfigError
from fedvlm.privacy._sampled import (
    Sampled,
    coins_delta,
    coins_epsilon,
    loss_distribution,
    renyi_curve,
    renyi_epsilon,
    spare_delta,
)
from fedvlm.privacy._skellam_law import processed_gaussian, slack
from fedvlm.privacy.analytic import gaussian_delta, gaussian_epsilon
from fedvlm.privacy.events import ORDERS, RenyiEvent, SkellamEvent

Method = Literal["auto", "pld", "rdp"]
History = tuple[tuple[dp_accounting.DpEvent, int], ...]

_CLOSE = 1e-3
_LEAST, _MOST = 1e-4, 1e12
_SEARCHES = 40
# Share of δ that the tails of Skellam's slack may take.
_TAIL_SHARE = 1e-3
# A PLD is left alone where its rounding could be more than this share of δ.
_ROUNDING_SHARE = 0.1


@dataclass(frozen=True)
class _Parts:
    """A history, by kinds of event.

    Attributes:
        mu: √Σ 1/z² of Gaussian releases that every unit is in.
        sampled: Gaussian releases over Poisson samples.
        skellam: Skellam releases, with how often each happened.
        curves: Events known by their Rényi curves only, with how often.
    """

    mu: float
    sampled: tuple[Sampled, ...]
    skellam: tuple[tuple[SkellamEvent, int], ...]
    curves: tuple[tuple[RenyiEvent, int], ...]


def _gaussian(event: dp_accounting.DpEvent) -> float:
    if not isinstance(event, dp_accounting.GaussianDpEvent):
        raise dp_accounting.UnsupportedEventError(
            f"no accountant here takes a {type(event).__name__}"
        )
    # No noise at all, or noise that is no number, hides nothing.
    z = float(event.noise_multiplier)
    return z if z > 0 else 0.0


@lru_cache(maxsize=256)
def _parts(history: History) -> _Parts:
    squares, sampled, skellam, curves = 0.0, [], [], []
    for event, count in history:
        if isinstance(event, RenyiEvent):
            curves.append((event, count))
        elif isinstance(event, SkellamEvent):
            skellam.append((event, count))
        elif isinstance(event, dp_accounting.PoissonSampledDpEvent):
            z, rate = _gaussian(event.event), float(event.sampling_probability)
            if 0 < rate < 1 and z > 0:
                sampled.append(Sampled(rate, z, count))
            else:
                squares += count * (math.inf if z == 0 else z**-2)
        else:
            z = _gaussian(event)
            squares += count * (math.inf if z == 0 else z**-2)
    return _Parts(math.sqrt(squares), tuple(sampled), tuple(skellam), tuple(curves))


def _by_renyi(parts: _Parts, delta: float) -> float:
    if not (parts.skellam or parts.curves):
        return renyi_epsilon(parts.mu, parts.sampled, delta)
    curve = parts.mu**2 * np.array(ORDERS) / 2
    for each in parts.sampled:
        curve = curve + renyi_curve(each, ORDERS)
    for event, count in (*parts.skellam, *parts.curves):
        curve = curve + count * np.array(event.curve)
    return float(rdp.compute_epsilon(ORDERS, curve.tolist(), delta)[0])


def _by_pld(mu: float, sampled: tuple[Sampled, ...], delta: float, near: float) -> float:
    spare = spare_delta(sampled)
    if spare > _ROUNDING_SHARE * delta:
        return math.inf
    # PLD's own ε is only as fine as its grid where it is tiny: look no closer than that.
    found = loss_distribution(mu, sampled, near)
    return math.inf if found is None else float(found.get_epsilon_for_delta(delta - spare))


def _by_gaussians(
    mu: float, sampled: tuple[Sampled, ...], delta: float, method: Method
) -> tuple[float, str]:
    """Return the least bound for Gaussian releases, sampled or not, and whose it is."""
    if not sampled:
        return gaussian_epsilon(mu, delta), "analytic"
    # Whoever is in every release is no better off than who is in some.
    whole = math.sqrt(mu**2 + sum(each.count / each.noise_multiplier**2 for each in sampled))
    found = [(gaussian_epsilon(whole, delta), "analytic")]
    if len(sampled) == 1:
        found.append((coins_epsilon(mu, sampled[0], delta), "coins"))
    found.append((renyi_epsilon(mu, sampled, delta), "rdp"))
    near = min(found)[0]
    if method == "pld":
        return _by_pld(mu, sampled, delta, near), "pld"
    if near > 0:
        found.append((_by_pld(mu, sampled, delta, near), "pld"))
    return min(found)


def _skellam_mu(parts: _Parts) -> float:
    """Return μ of the Gaussians that Skellam releases are post-processing of, nearly."""
    squares = parts.mu**2
    for event, count in parts.skellam:
        squares += count * event.norm**2 / processed_gaussian(event.variance).variance
    return math.sqrt(squares)


def _skellam_slack(parts: _Parts, log_failure: float) -> tuple[float, float] | None:
    """Return R and τ of all Skellam releases together; None where one has no bound."""
    each = [
        slack(event.variance, event.dimension * count, log_failure - math.log(len(parts.skellam)))
        for event, count in parts.skellam
    ]
    if any(one is None for one in each):
        return None
    return sum(one.ratio for one in each if one), sum(one.failure for one in each if one)


def _by_skellam(parts: _Parts, delta: float, most: float) -> float:
    """Return ε of Skellam releases by way of the Gaussians that they are nearly."""
    if not math.isfinite(most):
        return math.inf
    found = _skellam_slack(parts, math.log(_TAIL_SHARE * delta) - most - 1)
    if found is None or found[0] > 0.25:
        return math.inf
    ratio, failure = found
    rest = (delta - failure) * math.exp(-ratio) - math.exp(most) * failure
    inner, _ = _by_gaussians(_skellam_mu(parts), parts.sampled, rest, "auto")
    # Only up to `most` is the term e^ε·τ as small as it was taken to be.
    return inner + 2 * ratio if inner + 2 * ratio <= most else math.inf


@lru_cache(maxsize=1024)
def _epsilon(history: History, delta: float, method: Method) -> tuple[float, str]:
    if not history:
        return 0.0, "analytic"
    parts = _parts(history)
    if method == "rdp":
        return _by_renyi(parts, delta), "rdp"
    if not (parts.skellam or parts.curves):
        return _by_gaussians(parts.mu, parts.sampled, delta, method)
    renyi = _by_renyi(parts, delta), "rdp"
    if parts.curves:
        return renyi
    return min(renyi, (_by_skellam(parts, delta, renyi[0]), "gaussian"))


def _merged(history: Sequence[tuple[dp_accounting.DpEvent, int]]) -> History:
    merged: dict[dp_accounting.DpEvent, int] = {}
    for event, count in history:
        if count < 0:
            raise ConfigError(f"an event can't happen {count} times")
        if count:
            merged[event] = merged.get(event, 0) + count
    return tuple(merged.items())


def epsilon_and_method(
    history: Sequence[tuple[dp_accounting.DpEvent, int]], delta: float, method: Method = "auto"
) -> tuple[float, str]:
    """Compute ε as `epsilon` does, and say by which bound.

    Returns:
        ε, and "analytic" (exact), "pld", "rdp", "coins" (the observer is told the unit's coins) or
        "gaussian" (Skellam noise as a processed Gaussian).
    """
    if not 0 < delta < 1:
        raise ConfigError(f"delta must be in (0, 1), got {delta}")
    merged = _merged(history)
    if method == "pld" and any(isinstance(e, RenyiEvent | SkellamEvent) for e, _ in merged):
        raise ConfigError("PLD can't account for an event known by its Rényi curve; use rdp")
    return _epsilon(merged, delta, method)


def epsilon(
    history: Sequence[tuple[dp_accounting.DpEvent, int]], delta: float, method: Method = "auto"
) -> float:
    """Compute ε of a composition at δ.

    Args:
        history: Events with the number of times that each happened.
        delta: δ in (0, 1).
        method: "pld", "rdp", or "auto" for the tightest that can. Releases that every unit is in
            are accounted for exactly, except by "rdp".

    Returns:
        ε, at least 0 and never below the true one; infinite where no guarantee holds.

    Raises:
        ConfigError: δ is out of range, or PLD is asked for an event known by its Rényi curve.

    Example:
        >>> gaussian = dp_accounting.GaussianDpEvent(5.0)
        >>> round(epsilon([(gaussian, 100)], 1e-5), 2)
        10.0
    """
    return epsilon_and_method(history, delta, method)[0]


def delta_at(history: Sequence[tuple[dp_accounting.DpEvent, int]], at: float) -> float:
    """Compute δ of a composition at an ε: never below the true one.

    Args:
        history: Events, none of them known by its Rényi curve only, with how often each happened.
        at: ε, at least 0.

    Raises:
        ConfigError: An event is known by its Rényi curve only.
    """
    parts = _parts(_merged(history))
    if parts.curves:
        raise ConfigError("δ at an ε can't be had of an event known by its Rényi curve only")
    if not parts.skellam:
        return _gaussian_delta_at(parts.mu, parts.sampled, at)
    found = _skellam_slack(parts, math.log(1e-15) - at)
    if found is None or found[0] > 0.25:
        return _delta_by_renyi(parts, at)
    ratio, failure = found
    inner = _gaussian_delta_at(_skellam_mu(parts), parts.sampled, max(at - 2 * ratio, 0.0))
    if at < 2 * ratio:  # δ falls by no more than this over so short a way
        inner += math.expm1(2 * ratio)
    return min(1.0, math.exp(ratio) * (inner + math.exp(at) * failure) + failure)


def _delta_by_renyi(parts: _Parts, at: float) -> float:
    low, high = 1e-30, 1.0
    for _ in range(60):
        middle = math.sqrt(low * high)
        low, high = (low, middle) if _by_renyi(parts, middle) <= at else (middle, high)
    return high


def _gaussian_delta_at(mu: float, sampled: tuple[Sampled, ...], at: float) -> float:
    whole = math.sqrt(mu**2 + sum(each.count / each.noise_multiplier**2 for each in sampled))
    found = float(gaussian_delta(whole, at))
    if not sampled:
        return found
    if len(sampled) == 1:
        found = min(found, coins_delta(mu, sampled[0], at))
    distribution = loss_distribution(mu, sampled, max(at, 1.0))
    if distribution is None:
        return found
    return min(found, float(distribution.get_delta_for_epsilon(at)) + spare_delta(sampled))


def noise_multiplier_for(
    event: Callable[[float], dp_accounting.DpEvent],
    steps: int,
    target_epsilon: float,
    delta: float,
    method: Method = "auto",
) -> float:
    """Find the least noise multiplier whose ε stays within a target.

    Args:
        event: Makes the event of one step from a noise multiplier.
        steps: Number of steps, at least 1.
        target_epsilon: ε to stay within, positive.
        delta: δ in (0, 1).
        method: As for `epsilon`.

    Returns:
        A noise multiplier with ε ≤ `target_epsilon`, with ε within 0.1 % of the target; or 10^-4,
        where hardly any noise is needed.

    Raises:
        ConfigError: A value is out of range, or no noise below 10^12 is enough.

    Example:
        >>> z = noise_multiplier_for(dp_accounting.GaussianDpEvent, 20, 3.0, 1e-2)
        >>> round(z, 1)
        3.7
    """
    if not (math.isfinite(target_epsilon) and target_epsilon > 0) or steps < 1:
        raise ConfigError(
            f"need epsilon > 0 and steps >= 1, got epsilon={target_epsilon}, steps={steps}"
        )

    def spent(z: float) -> float:
        return epsilon([(event(z), steps)], delta, method)

    def rough(z: float) -> float:
        """Return a bound that is quick to have, and never below `spent`."""
        parts = _parts(_merged([(event(z), steps)]))
        if method == "rdp" or not parts.sampled or parts.skellam or parts.curves:
            return spent(z)
        each = parts.sampled[0]
        quick = renyi_epsilon(parts.mu, parts.sampled, delta)
        return quick if method == "pld" else min(quick, coins_epsilon(parts.mu, each, delta))

    low, high = _bracket(rough, target_epsilon)
    if low is None:
        return high
    low, high = _narrow(rough, low, high, target_epsilon, 0.01)
    # The tight ε is below the quick one, so `high` holds; go down until the tight one doesn't.
    at_high, factor = spent(high), 0.95
    low = high * factor
    while (at_low := spent(low)) <= target_epsilon:
        high, at_high = low, at_low
        if low <= _LEAST:
            return high
        factor = max(factor**1.7, 0.3)
        low = max(low * factor, _LEAST)
    return _close_in(spent, low, at_low, high, at_high, target_epsilon)


def _bracket(spent: Callable[[float], float], target: float) -> tuple[float | None, float]:
    """Return noise that is too little (None if none is) and noise that is enough."""
    high = 1.0
    while spent(high) > target:
        high *= 4
        if high > _MOST:
            raise ConfigError(f"no noise multiplier below 10^12 reaches epsilon={target}")
    low = high / 4
    while spent(low) <= target:
        low, high = low / 4, low
        if low < _LEAST:
            return None, high
    return low, high


def _narrow(
    spent: Callable[[float], float], low: float, high: float, target: float, close: float
) -> tuple[float, float]:
    while high / low > 1 + close:
        middle = math.sqrt(low * high)
        low, high = (middle, high) if spent(middle) > target else (low, middle)
    return low, high


def _close_in(
    spent: Callable[[float], float],
    low: float,
    at_low: float,
    high: float,
    at_high: float,
    target: float,
) -> float:
    """Close in on the noise from the safe side.

    ε falls like a power of the noise over so short a bracket: interpolate in logarithms, and aim a
    little under the target, so that the upper end closes in.
    """
    for _ in range(_SEARCHES):
        if at_high >= target * (1 - _CLOSE) or high / low < 1 + 1e-7:
            break
        share = 0.5  # where ε at an end is infinite or nothing, halve
        if math.isfinite(at_low) and 0 < at_high < at_low:
            aim = math.log(at_low / (target * (1 - _CLOSE / 2)))
            share = min(max(aim / math.log(at_low / at_high), 0.02), 0.98)
        middle = low * (high / low) ** share
        found = spent(middle)
        if found > target:
            low, at_low = middle, found
        else:
            high, at_high = middle, found
    return high
