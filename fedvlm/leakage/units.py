"""What an audit speaks of: whose privacy, which claim, how sure."""

import math
from dataclasses import dataclass, field
from enum import StrEnum

from fedvlm.errors import ConfigError


class Unit(StrEnum):
    """Whose presence an epsilon hides. Two epsilons of different units are never compared."""

    SAMPLE = "sample"
    CLIENT = "client"


class Kind(StrEnum):
    """What a figure is worth.

    A *bound* is wrong with at most the stated probability, whatever the mechanism. An *estimate*
    needs an assumption that data can't check, and refutes nothing.
    """

    BOUND = "bound"
    ESTIMATE = "estimate"


@dataclass(frozen=True)
class Claim:
    """A privacy guarantee that somebody states.

    Attributes:
        epsilon: At least 0, finite.
        delta: In [0, 1).
        unit: Whose presence it hides.
        profile: Further pairs (ε, δ) that are claimed with it, as a mechanism's whole trade-off
            function; a claim is refuted where any of them is.

    Raises:
        ConfigError: A value is out of its range.
    """

    epsilon: float
    delta: float
    unit: Unit = Unit.SAMPLE
    profile: tuple[tuple[float, float], ...] = field(default=(), repr=False)

    def __post_init__(self) -> None:
        if not (math.isfinite(self.epsilon) and self.epsilon >= 0 and 0 <= self.delta < 1):
            raise ConfigError(
                f"a claim needs a finite epsilon >= 0 and 0 <= delta < 1; got "
                f"({self.epsilon}, {self.delta})"
            )
        # Written so that a NaN is refused too.
        if not all(0 <= epsilon < math.inf and 0 <= delta <= 1 for epsilon, delta in self.profile):
            raise ConfigError("a claim's profile needs pairs of epsilon >= 0 and 0 <= delta <= 1")

    def to_dict(self) -> dict[str, float | str]:
        """Return the claim without its profile."""
        return {"epsilon": self.epsilon, "delta": self.delta, "unit": str(self.unit)}


@dataclass(frozen=True)
class Interval:
    """A figure with its interval.

    Attributes:
        value: The point estimate.
        low: Lower end.
        high: Upper end.
        confidence: Chance that such an interval holds the truth, in (0, 1).
    """

    value: float
    low: float
    high: float
    confidence: float

    def covers(self, truth: float) -> bool:
        """Return whether the interval holds a value."""
        return self.low <= truth <= self.high

    def __str__(self) -> str:
        return f"{self.value:.3f} [{self.low:.3f}, {self.high:.3f}]"


@dataclass(frozen=True)
class EpsilonLower:
    """A lower limit on the epsilon of what was audited.

    Attributes:
        value: At least 0; 0 where nothing could be shown.
        delta: The delta that it holds at.
        method: Which estimator.
        kind: A bound, or an estimate.
        unit: Whose presence was guessed.
        confidence: For a bound, the chance that it is right, in (0, 1).
        assumption: What must hold for it, in words.
    """

    value: float
    delta: float
    method: str
    kind: Kind
    unit: Unit
    confidence: float
    assumption: str
