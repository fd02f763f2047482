"""What travels under the mask: the update in lanes, then counts and metrics in whole words.

words = [lanes of the update] [1] [kept] [clipped] [weight] [w · metric, w] …

`kept` is 1 for an update that could be used and 0 for zeros in its place; `clipped` is 1 for one
that was scaled down; a metric comes with the weight w that it counts with, 0 where it is no number
in range. The words after the lanes are signed fixed-point numbers of 64 bits with 16 bits after
the point.
"""

import math
from collections.abc import Mapping

import numpy as np
from numpy.typing import NDArray

from secure.aggregation._policy import Policy
from secure.aggregation._rounding import norm_at_most
from secure.errors import IntegrityError, ParameterError, PeerError
from secure.flower._layout import WORDS_A_METRIC, Aggregate, Layout
from secure.random import SecureRandom

__all__ = [
    "POINT",
    "Aggregate",
    "Layout",
    "clipped",
    "decode",
    "encode",
    "encode_blank",
    "examples_and_metrics",
]

POINT = 1 << 16


def clipped(vector: NDArray[np.floating], policy: Policy) -> tuple[float, float]:
    """Return the factor that brings an update within the policy's clip, and what its reach is.

    The reach bounds every coordinate: the L2 norm under `norm`, else the largest magnitude.

    Raises:
        ParameterError: The vector is not one-dimensional or not finite.
    """
    if vector.ndim != 1 or not np.issubdtype(vector.dtype, np.floating):
        raise ParameterError(
            f"an update is a one-dimensional array of floats, got {vector.ndim} dimensions "
            f"of {vector.dtype}"
        )
    if policy.clip == "norm":
        reach = norm_at_most(vector)
    else:
        # A NaN is the maximum of anything that holds one.
        reach = max(float(vector.max(initial=0.0)), -float(vector.min(initial=0.0)))
    if not math.isfinite(reach):
        raise ParameterError("the update holds NaN or Inf; it was not sent")
    if policy.clip == "none" or reach <= policy.plan.bound:
        return 1.0, reach
    # Bits below the quotient, so that no rounding brings factor · reach above the bound.
    return policy.plan.bound / reach * (1 - 2.0**-50), reach


def examples_and_metrics(
    record: Mapping[str, object], weighted_by_key: str
) -> tuple[float, dict[str, float], list[str]]:
    """Take a reply's numbers apart.

    Returns:
        The number of examples, NaN where there is none; the metrics; and the names of metrics
        that are lists, which are not sent: their length would be told.
    """
    metrics: dict[str, float] = {}
    lists = []
    for name, value in record.items():
        if not isinstance(value, int | float):
            lists.append(name)
            continue
        try:
            metrics[name] = float(value)
        except OverflowError:
            metrics[name] = math.inf
    return metrics.pop(weighted_by_key, math.nan), metrics, lists


def _fixed(value: float, rng: SecureRandom) -> int:
    """Round value · 2^16 at random to an integer, without bias."""
    scaled = value * POINT
    floor = math.floor(scaled)
    return floor + int(float(rng.uniform(1)[0]) < scaled - floor)


def in_range(value: float, policy: Policy) -> bool:
    """Tell whether a metric can be summed."""
    return abs(value) <= policy.max_metric


def encode(
    vector: NDArray[np.floating],
    weight: float,
    metrics: Mapping[str, float],
    policy: Policy,
    rng: SecureRandom,
) -> NDArray[np.uint64]:
    """Clip, quantise and pack an update with its weight and metrics.

    Args:
        vector: Update, shape `(length,)`, floating.
        weight: Number of examples, finite and at least 0; clamped at `policy.max_weight`.
        metrics: Numbers by name; one that is not finite, or beyond `policy.max_metric`, is left
            out of its mean.
        policy: Terms of the sum.
        rng: Source of the rounding.

    Returns:
        Words of shape `(layout.words(policy),)`, dtype uint64.

    Raises:
        ParameterError: The update is not finite or out of range, or the weight is no weight; the
            message gives no value of the update.
    """
    if not (math.isfinite(weight) and weight >= 0):
        raise ParameterError("the number of examples must be finite and at least 0")
    # On the grid of the sum of weights, so that numerator and denominator weigh alike.
    clamped = round(min(float(weight), float(policy.max_weight)) * POINT) / POINT
    factor, reach = clipped(vector, policy)
    counts = [1, int(factor < 1.0)]
    if policy.weighting == "examples":
        factor *= clamped / policy.max_weight
    tail = _tail(counts, clamped, metrics, policy, rng)
    return policy.plan.encode(vector, rng, factor, reach, tail)


def encode_blank(layout: Layout, policy: Policy, rng: SecureRandom) -> NDArray[np.uint64]:
    """Encode zeros that weigh nothing, for a member that has nothing to add and must not say so."""
    tail = _tail([0, 0], 0.0, dict.fromkeys(layout.metrics, 0.0), policy, rng)
    return policy.plan.encode(np.zeros(layout.length, dtype=np.float32), rng, tail=tail)


def _tail(
    counts: list[int],
    weight: float,
    metrics: Mapping[str, float],
    policy: Policy,
    rng: SecureRandom,
) -> NDArray[np.uint64]:
    fixed = [POINT, *(each * POINT for each in counts), round(weight * POINT)]
    for name in sorted(metrics):
        sound = in_range(metrics[name], policy)
        fixed.append(_fixed(weight * metrics[name] if sound else 0.0, rng))
        fixed.append(round(weight * POINT) if sound else 0)
    return np.array(fixed, dtype=np.int64).view(np.uint64)


def decode(words: NDArray[np.uint64], layout: Layout, policy: Policy, clients: int) -> Aggregate:
    """Turn the unmasked sum into means.

    Args:
        words: Sum modulo 2^64 of `clients` encoded updates.
        layout: What each of them held.
        policy: Terms of the sum.
        clients: Members in the sum.

    Raises:
        IntegrityError: The words don't add up to `clients` updates.
        PeerError: No update could be used, or the weights add up to zero, so that there is no mean.
    """
    if len(words) != layout.words(policy):
        raise IntegrityError(f"expected {layout.words(policy)} words, got {len(words)}")
    body = policy.plan.words(layout.length)
    count, kept, cut, weight, *sums = (int(each) for each in words[body:].view(np.int64))
    if count != clients * POINT:
        raise IntegrityError(
            f"the unmasked sum does not count {clients} clients: a client masked or encoded "
            "another vector than the protocol asks for"
        )
    kept, odd = divmod(kept, POINT)
    cut, odder = divmod(cut, POINT)
    weighed, shares = sums[::WORDS_A_METRIC], sums[1::WORDS_A_METRIC]
    if (
        odd
        or odder
        or not 0 <= cut <= kept <= clients
        or not 0 <= weight <= kept * policy.max_weight * POINT
        or any(not 0 <= share <= weight for share in shares)
        or any(
            abs(each) > share * policy.max_metric + clients
            for each, share in zip(weighed, shares, strict=True)
        )
    ):
        raise IntegrityError("the unmasked counts and metrics are out of range")
    divisor = kept if policy.weighting == "uniform" else weight / POINT / policy.max_weight
    if not divisor:
        raise PeerError(
            f"{kept} of {clients} clients had an update that could be used, and the weights add up "
            "to zero: there is no mean. Why is in the clients' own logs"
        )
    total = policy.plan.decode(words[:body], layout.length, clients)
    total /= divisor
    metrics = {
        name: each / share
        for name, each, share in zip(layout.metrics, weighed, shares, strict=True)
        if share
    }
    partial = tuple(
        name for name, share in zip(layout.metrics, shares, strict=True) if share < weight
    )
    told = weight / POINT if weight else float(kept)
    return Aggregate(total, told, metrics, clients, kept, cut, partial)
