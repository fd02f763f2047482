"""What a client's vector holds, in clear, and the mean that comes out."""

import json
import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from secure._hashing import digest
from secure.errors import IntegrityError

if TYPE_CHECKING:
    from secure.aggregation._policy import Policy

_WHOLE = tuple(f"{sign}int{bits}" for sign in ("", "u") for bits in (8, 16, 32, 64))
_DTYPES = ("float16", "float32", "float64", "bool", *_WHOLE)
COUNT_WORDS = 4
WORDS_A_METRIC = 2
# What a client may say of its vector: room for some 30,000 arrays, and none for a flood.
_MAX_TEXT = 1 << 22
_MAX_AXES = 32
_MAX_LENGTH = 1 << 40
_MAX_METRICS = 1 << 10


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

    def words(self, policy: "Policy") -> int:
        """Number of 64-bit words under the mask."""
        return policy.plan.words(self.length) + COUNT_WORDS + WORDS_A_METRIC * len(self.metrics)

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
            IntegrityError: The text is not a layout, or is one of a size that nobody has.
        """
        layout = None
        if isinstance(text, str) and len(text) <= _MAX_TEXT:
            try:
                layout = _parsed(json.loads(text))
            except (ValueError, TypeError, RecursionError):
                layout = None
        if layout is None or layout.to_json() != text:
            raise IntegrityError("what a client says about its vector is not a layout")
        return layout


def _parsed(parts: object) -> Layout | None:
    if not isinstance(parts, list) or len(parts) != 3:
        return None
    arrays, metrics, schema = parts
    if not isinstance(arrays, list) or not isinstance(metrics, list) or type(schema) is not str:
        return None
    if len(metrics) > _MAX_METRICS or any(type(name) is not str for name in metrics):
        return None
    if metrics != sorted(set(metrics)):
        return None
    length = 0
    for entry in arrays:
        if not isinstance(entry, list) or len(entry) != 3:
            return None
        name, shape, dtype = entry
        if type(name) is not str or dtype not in _DTYPES or not isinstance(shape, list):
            return None
        if len(shape) > _MAX_AXES or any(
            type(size) is not int or not 0 <= size <= _MAX_LENGTH for size in shape
        ):
            return None
        length += math.prod(shape)
    names = [name for name, _, _ in arrays]
    if length > _MAX_LENGTH or len(set(names)) != len(names):
        return None
    return Layout(
        tuple((name, tuple(shape), dtype) for name, shape, dtype in arrays), tuple(metrics), schema
    )


@dataclass(frozen=True)
class Aggregate:
    """The mean of the survivors' updates.

    Attributes:
        mean: Shape `(length,)`, float64: weighted as the policy says.
        weight: Sum of the clamped weights; where all of them are 0 under uniform weighting, the
            number of clients that the mean is over.
        metrics: Mean of each metric over the clients whose value was a number in range, weighted
            by the clamped number of examples; a metric that nobody had is missing.
        clients: Members in the sum.
        kept: Members whose update could be used; the others added zeros and weigh nothing.
        clipped: Members whose update was scaled down.
        partial: Metrics that some of the weight has no value for.
    """

    mean: NDArray[np.float64]
    weight: float
    metrics: dict[str, float]
    clients: int
    kept: int = -1
    clipped: int = 0
    partial: tuple[str, ...] = ()
