"""What travels under the mask: the update in lanes, then counts and metrics in whole words.

words = [lanes of the update] [1] [weight] [weight · metric] …

The words after the lanes are signed fixed-point numbers of 64 bits with 16 bits after the point.
"""

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from secure.aggregation._hashing import digest
from secure.aggregation._policy import Policy
from secure.aggregation._rounding import norm_at_most
from secure.errors import IntegrityError, ParameterError, PeerError
from secure.random import SecureRandom

POINT = 1 << 16
MAX_METRIC = float(1 << 15)
# clients · weight · metric · 2^16 stays below 2^63: 2^11 · 2^20 · 2^15 · 2^16 = 2^62.
MAX_CLIENTS = 1 << 11
_COUNT_WORDS = 2
_WHOLE = tuple(f"{sign}int{bits}" for sign in ("", "u") for bits in (8, 16, 32, 64))
_DTYPES = ("float16", "float32", "float64", "bool", *_WHOLE)


@dataclass(frozen=True)
class Layout:
    """What a vector holds: names, shapes and types, and no value.

    Attributes:
        arrays: Name, shape and dtype of each array, in the order of the vector.
        metrics: Names of the metrics, ascending.
        schema: Schema hash that the app gave its reply, or "".

    Example:
        >>> Layout((("w", (2, 3), "float32"),), ("loss",)).length
        6
    """

    arrays: tuple[tuple[str, tuple[int, ...], str], ...]
    metrics: tuple[str, ...]
    schema: str = ""

    @property
    def length(self) -> int:
        """Number of values in the update."""
        return sum(math.prod(shape) for _, shape, _ in self.arrays)

    def words(self, policy: Policy) -> int:
        """Number of 64-bit words under the mask."""
        return policy.plan.words(self.length) + _COUNT_WORDS + len(self.metrics)

    @property
    def digest(self) -> bytes:
        """Hash that all members of a cohort must share, 32 bytes."""
        return digest("layout", self.to_json())

    def to_json(self) -> str:
        """Write canonically."""
        return json.dumps([self.arrays, self.metrics, self.schema], separators=(",", ":"))

    @classmethod
    def from_json(cls, text: str) -> "Layout":
        """Read what `to_json` wrote.

        Raises:
            IntegrityError: The text is not a layout.
        """
        try:
            arrays, metrics, schema = json.loads(text)
            layout = cls(
                tuple((name, tuple(shape), dtype) for name, shape, dtype in arrays),
                tuple(metrics),
                schema,
            )
            sizes = [size for _, shape, _ in layout.arrays for size in shape]
            sound = all(type(size) is int and size >= 0 for size in sizes) and all(
                isinstance(name, str)
                for name in (
                    *layout.metrics,
                    schema,
                    *(name for name, _, _ in layout.arrays),
                )
            )
            sound = sound and all(dtype in _DTYPES for _, _, dtype in layout.arrays)
        except (ValueError, TypeError, RecursionError):
            sound = False
        if not sound or layout.to_json() != text:  # pyright: ignore[reportPossiblyUnbound]
            raise IntegrityError("what a client says about its vector is not a layout")
        return layout  # pyright: ignore[reportPossiblyUnbound]


@dataclass(frozen=True)
class Aggregate:
    """The mean of the survivors' updates.

    Attributes:
        mean: Shape `(length,)`, float64: weighted as the policy says.
        weight: Sum of the clamped weights.
        metrics: Mean of each metric, weighted by the clamped number of examples.
        clients: Members in the sum.
    """

    mean: NDArray[np.float64]
    weight: float
    metrics: dict[str, float]
    clients: int


def clipped(vector: NDArray[np.floating], policy: Policy) -> tuple[float, float]:
    """Return the factor that brings a vector's L2 norm down to the clip, and a bound on the norm.

    Raises:
        ParameterError: The vector is not one-dimensional or not finite.
    """
    if vector.ndim != 1 or not np.issubdtype(vector.dtype, np.floating):
        raise ParameterError(
            f"an update is a one-dimensional array of floats, got {vector.ndim} dimensions "
            f"of {vector.dtype}"
        )
    norm = norm_at_most(vector)
    if not math.isfinite(norm):
        raise ParameterError("the update holds NaN or Inf; it was not sent")
    if not policy.clip or norm <= policy.plan.bound:
        return 1.0, norm
    # Bits below the quotient, so that no rounding brings factor · norm above the bound.
    return policy.plan.bound / norm * (1 - 2.0**-50), norm


def examples_and_metrics(
    record: Mapping[str, object], weighted_by_key: str
) -> tuple[float, dict[str, float]]:
    """Take a reply's numbers apart: the number of examples, and the metrics.

    Raises:
        ParameterError: The number of examples is missing, or a metric is not one number.
    """
    metrics: dict[str, float] = {}
    for name, value in record.items():
        if not isinstance(value, int | float):
            raise ParameterError(
                f"metric {name!r} is a list, whose length would be told; reply with its mean"
            )
        metrics[name] = float(value)
    if weighted_by_key not in metrics:
        raise ParameterError(f"a reply's MetricRecord holds {weighted_by_key!r}")
    return metrics.pop(weighted_by_key), metrics


def _fixed(value: float, rng: SecureRandom) -> int:
    """Round value · 2^16 at random to an integer, without bias."""
    scaled = value * POINT
    floor = math.floor(scaled)
    return floor + int(float(rng.uniform(1)[0]) < scaled - floor)


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
        metrics: Numbers of magnitude up to 2^15, by name.
        policy: Terms of the sum.
        rng: Source of the rounding.

    Returns:
        Words of shape `(layout.words(policy),)`, dtype uint64.

    Raises:
        ParameterError: Something is not finite or out of range; the message names it and gives
            no value of the update.
    """
    if policy.plan.clients > MAX_CLIENTS:
        raise ParameterError(
            f"counts and metrics are summed for up to {MAX_CLIENTS} clients, "
            f"the plan allows {policy.plan.clients}"
        )
    if not (math.isfinite(weight) and weight >= 0):
        raise ParameterError("the number of examples must be finite and at least 0")
    for name, value in metrics.items():
        if not abs(value) <= MAX_METRIC:
            raise ParameterError(
                f"metric {name!r} is not a number of magnitude up to {MAX_METRIC:g}; "
                "scale it or leave it out"
            )
    clamped = min(float(weight), float(policy.max_weight))
    factor, norm = clipped(vector, policy)
    if policy.weighting == "examples":
        factor *= clamped / policy.max_weight
    counts = [POINT, _fixed(clamped, rng)]
    counts += [_fixed(clamped * metrics[name], rng) for name in sorted(metrics)]
    tail = np.array(counts, dtype=np.int64).view(np.uint64)
    return np.concatenate([policy.plan.encode(vector, rng, factor, norm), tail])


def decode(words: NDArray[np.uint64], layout: Layout, policy: Policy, clients: int) -> Aggregate:
    """Turn the unmasked sum into means.

    Args:
        words: Sum modulo 2^64 of `clients` encoded updates.
        layout: What each of them held.
        policy: Terms of the sum.
        clients: Members in the sum.

    Raises:
        IntegrityError: The words don't add up to `clients` updates.
        PeerError: The weights add up to zero, so that there is no mean.
    """
    if len(words) != layout.words(policy):
        raise IntegrityError(f"expected {layout.words(policy)} words, got {len(words)}")
    body = policy.plan.words(layout.length)
    count, weight, *sums = (int(each) for each in words[body:].view(np.int64))
    if count != clients * POINT:
        raise IntegrityError(
            f"the unmasked sum does not count {clients} clients: a client masked or encoded "
            "another vector than the protocol asks for"
        )
    if not 0 <= weight <= clients * policy.max_weight * POINT or any(
        abs(each) > clients * policy.max_weight * MAX_METRIC * POINT for each in sums
    ):
        raise IntegrityError("the unmasked counts and metrics are out of range")
    if weight == 0:
        raise PeerError("the clients' weights add up to zero: there is no mean")
    total = policy.plan.decode(words[:body], layout.length, clients)
    total /= clients if policy.weighting == "uniform" else weight / POINT / policy.max_weight
    metrics = {name: each / weight for name, each in zip(layout.metrics, sums, strict=True)}
    return Aggregate(total, weight / POINT, metrics, clients)
