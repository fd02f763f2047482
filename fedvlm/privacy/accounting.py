"""ε from what was released, and the noise that a wished-for ε needs.

PLD (Doroshenko et al. 2022, through dp-accounting) where every event is a Gaussian, sampled or
not: it is the tighter one. Rényi DP (Mironov 2017) where an event is known by its Rényi curve
only, as Skellam noise is.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Literal

import dp_accounting
import numpy as np
from dp_accounting import pld, rdp
from numpy.typing import NDArray

from fedvlm.errors import ConfigError

Method = Literal["auto", "pld", "rdp"]

# Denser where the best order of a small ε lies, sparse where that of a large budget does.
_WHOLE = (*range(2, 64), 80, 128, 256, 512, 1024)
ORDERS = (1.25, 1.5, 1.75, 2.25, 2.5, 2.75, 3.25, 3.5, 3.75, 4.5, 5.5, 6.5, *_WHOLE)
_CLOSE = 1e-3
_LEAST = 0.05
_SEARCHES = 12


@dataclass(frozen=True)
class RenyiEvent(dp_accounting.DpEvent):
    """An event that is known by its Rényi divergence at each of `ORDERS`.

    Attributes:
        curve: The divergence at each order, in nats; same length as `ORDERS`.
        name: The mechanism's name, for messages.
    """

    curve: tuple[float, ...]
    name: str

    def __post_init__(self) -> None:
        if len(self.curve) != len(ORDERS) or not all(x >= 0 for x in self.curve):
            raise ConfigError(f"a Rényi curve has {len(ORDERS)} values that are at least 0")


History = tuple[tuple[dp_accounting.DpEvent, int], ...]


def _rdp_curve(event: dp_accounting.DpEvent, orders: Sequence[float]) -> NDArray[np.float64]:
    if isinstance(event, RenyiEvent):
        return np.array([event.curve[ORDERS.index(order)] for order in orders])
    accountant = rdp.RdpAccountant(orders)
    accountant.compose(event)
    return np.asarray(accountant._rdp)


def _renyi_epsilon(history: History, delta: float, orders: Sequence[float]) -> float:
    curve = np.zeros(len(orders))
    for event, count in history:
        curve += count * _rdp_curve(event, orders)
    return float(rdp.compute_epsilon(orders, curve.tolist(), delta)[0])


@lru_cache(maxsize=256)
def _epsilon(history: History, delta: float, method: str) -> float:
    if not history:
        return 0.0
    if method == "auto":
        renyi = any(isinstance(event, RenyiEvent) for event, _ in history)
        method = "rdp" if renyi else "pld"
    if method == "rdp":
        return _renyi_epsilon(history, delta, ORDERS)
    accountant = pld.PLDAccountant(dp_accounting.NeighboringRelation.ADD_OR_REMOVE_ONE)
    for event, count in history:
        accountant.compose(event, count)
    return float(accountant.get_epsilon(delta))


def epsilon(
    history: Sequence[tuple[dp_accounting.DpEvent, int]], delta: float, method: Method = "auto"
) -> float:
    """Compute ε of a composition at δ.

    Args:
        history: Events with the number of times that each happened.
        delta: δ in (0, 1).
        method: "pld", "rdp", or "auto" for the tighter one that can.

    Returns:
        ε, at least 0; infinite where no guarantee holds.

    Raises:
        ConfigError: δ is out of range, or PLD is asked for an event known by its Rényi curve.

    Example:
        >>> gaussian = dp_accounting.GaussianDpEvent(5.0)
        >>> round(epsilon([(gaussian, 100)], 1e-5), 2)
        10.0
    """
    if not 0 < delta < 1:
        raise ConfigError(f"delta must be in (0, 1), got {delta}")
    merged: dict[dp_accounting.DpEvent, int] = {}
    for event, count in history:
        if count < 0:
            raise ConfigError(f"an event can't happen {count} times")
        if count:
            merged[event] = merged.get(event, 0) + count
    if method == "pld" and any(isinstance(event, RenyiEvent) for event in merged):
        raise ConfigError("PLD can't account for an event known by its Rényi curve; use rdp")
    return _epsilon(tuple(merged.items()), delta, method)


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
        A noise multiplier with ε ≤ `target_epsilon`, with ε within 0.1 % of the target.

    Raises:
        ConfigError: A value is out of range, or no noise below 10^6 is enough.

    Example:
        >>> z = noise_multiplier_for(dp_accounting.GaussianDpEvent, 20, 3.0, 1e-2)
        >>> round(z, 2)
        3.7
    """
    if not (math.isfinite(target_epsilon) and target_epsilon > 0) or steps < 1:
        raise ConfigError(
            f"need epsilon > 0 and steps >= 1, got epsilon={target_epsilon}, steps={steps}"
        )

    def spent(z: float) -> float:
        return epsilon([(event(z), steps)], delta, method)

    def rough(z: float) -> float:
        return _renyi_epsilon(((event(z), steps),), delta, _WHOLE)

    # Rényi accounting at whole orders is quick and never below the tight ε: it brackets the
    # search from above.
    high = 1.0
    while rough(high) > target_epsilon:
        high *= 2
        if high > 1e6:
            raise ConfigError(f"no noise multiplier below 10^6 reaches epsilon={target_epsilon}")
    low = high / 2
    while low > _LEAST and rough(low) <= target_epsilon:
        low, high = low / 2, low
    while high / low > 1.01:
        middle = math.sqrt(low * high)
        low, high = (middle, high) if rough(middle) > target_epsilon else (low, middle)
    at_high = spent(high)
    low = 0.9 * high
    while (at_low := spent(low)) <= target_epsilon and low > _LEAST:
        high, at_high, low = low, at_low, 0.9 * low
    # ε falls like a power of the noise over so short a bracket: interpolate in logarithms, and
    # aim a little under the target, so that the upper end closes in from the safe side.
    for _ in range(_SEARCHES):
        if at_high >= target_epsilon * (1 - _CLOSE) or at_low <= at_high:
            break
        share = 0.5  # where ε at the lower end is infinite, halve
        if math.isfinite(at_low):
            aim = math.log(at_low / (target_epsilon * (1 - _CLOSE / 2)))
            share = min(max(aim / math.log(at_low / at_high), 0.02), 0.98)
        middle = low * (high / low) ** share
        found = spent(middle)
        if found > target_epsilon:
            low, at_low = middle, found
        else:
            high, at_high = middle, found
    return high
