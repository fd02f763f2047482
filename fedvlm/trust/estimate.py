"""A number with its interval, and when there is none."""

from dataclasses import dataclass
from typing import Any

import numpy as np

from fedvlm.errors import DataError

MIN_ROWS = 20
"""Fewer rows of a group, and no number of it is told."""
COVERAGE = 0.95


class UnresolvedError(DataError):
    """The data can't carry a measure; the message is one line and says why."""


@dataclass(frozen=True)
class Estimate:
    """A measured number with its interval.

    Attributes:
        value: The estimate.
        low: Lower end of its 95 % interval.
        high: Upper end.
        rows: Rows that it was read off.
        clusters: Clusters (concepts, queries) that were resampled; rows of one move together.
        p: Two-sided p-value against 0, where a test was made.
    """

    value: float
    low: float
    high: float
    rows: int
    clusters: int
    p: float | None = None

    @property
    def resolved(self) -> bool:
        """Whether there were enough rows, and clusters, for the number to be told."""
        ends = (self.value, self.low, self.high)
        return min(self.rows, self.clusters) >= MIN_ROWS and bool(np.isfinite(ends).all())

    def __str__(self) -> str:
        if min(self.rows, self.clusters) < MIN_ROWS:
            return f"unresolved ({min(self.rows, self.clusters)} of {MIN_ROWS} needed)"
        if not self.resolved:
            return "unresolved (no finite interval)"
        return f"{self.value:.3f} [{self.low:.3f}, {self.high:.3f}]"

    def to_dict(self) -> dict[str, Any]:
        """Return the estimate as JSON takes it; an unresolved one has no number."""
        counts = {"rows": self.rows, "clusters": self.clusters}
        if not self.resolved:
            return {"value": None, "unresolved": str(self), **counts}
        told = {"value": self.value, "low": self.low, "high": self.high, **counts}
        return told if self.p is None else told | {"p": self.p}
