"""Mechanisms: what is released, how far one unit can move it, and what the accountant is told.

The standard deviation that noise is drawn with and the event that ε is computed from are
properties of one frozen object, so they can't disagree.
"""

import enum
import math
from dataclasses import dataclass
from typing import Protocol

import dp_accounting
import numpy as np
from numpy.typing import NDArray

from fedvlm.errors import ConfigError, IntegrityError
from fedvlm.privacy.noise import NoiseSource


class Relation(enum.Enum):
    """Which data sets count as neighbours."""

    ADD_OR_REMOVE = "add-or-remove"
    REPLACE = "replace"
    # A unit's vector is replaced by zero, and who takes part is public.
    ZERO_OUT = "zero-out, participants public"


class Mechanism(Protocol):
    """Something that is released under differential privacy."""

    @property
    def noise_multiplier(self) -> float:
        """Standard deviation of the noise over the sensitivity."""
        ...

    def event(self) -> dp_accounting.DpEvent:
        """Return what the accountant is told of one release."""
        ...


@dataclass(frozen=True)
class GaussianMechanism:
    """A sum of vectors plus Gaussian noise, over a Poisson sample of the units.

    Attributes:
        sensitivity: Largest L2 distance between the sums of two neighbouring data sets, positive.
        noise_multiplier: Standard deviation over `sensitivity`, positive.
        sample_rate: Chance of each unit to be in the sum, independently; 1 for all.
        relation: The neighbours that `sensitivity` is about.

    Guarantees:
        A release has the privacy loss of `event()`, against anyone who sees it and everything
        else that does not depend on the unit. With `sample_rate` below 1 that holds as long as
        nobody sees who was sampled. Accounting takes `noise_multiplier` relative to the
        sensitivity under `relation`, so that replacement is not counted at twice or half of it.

    Raises:
        ConfigError: A value is out of range, or sampling is combined with replacement.

    Example:
        >>> GaussianMechanism(sensitivity=2.0, noise_multiplier=1.5).std
        3.0
    """

    sensitivity: float
    noise_multiplier: float
    sample_rate: float = 1.0
    relation: Relation = Relation.ADD_OR_REMOVE

    def __post_init__(self) -> None:
        for name in ("sensitivity", "noise_multiplier"):
            value = getattr(self, name)
            if not (math.isfinite(value) and value > 0):
                raise ConfigError(f"{name} must be positive and finite, got {value}")
        if not 0 < self.sample_rate <= 1:
            raise ConfigError(f"sample_rate must be in (0, 1], got {self.sample_rate}")
        if self.sample_rate < 1 and self.relation is not Relation.ADD_OR_REMOVE:
            raise ConfigError("Poisson sampling is accounted for under add-or-remove only")

    @property
    def std(self) -> float:
        """Standard deviation of the noise on each coordinate of the sum."""
        return self.noise_multiplier * self.sensitivity

    def event(self) -> dp_accounting.DpEvent:
        """Return a Gaussian event, Poisson-sampled where `sample_rate` is below 1."""
        gaussian = dp_accounting.GaussianDpEvent(self.noise_multiplier)
        if self.sample_rate == 1:
            return gaussian
        return dp_accounting.PoissonSampledDpEvent(self.sample_rate, gaussian)

    def release(self, total: NDArray[np.floating], noise: NoiseSource) -> NDArray[np.float64]:
        """Add noise of standard deviation `std` to every coordinate of a sum.

        Args:
            total: Shape (P,), finite; its sensitivity is the caller's to bound.
            noise: Source of the noise.

        Raises:
            IntegrityError: The sum is not finite; nothing is released.
        """
        if not np.isfinite(total).all():
            raise IntegrityError("a sum with NaN or Inf can't be released: noise can't hide it")
        return noise.noised(total.astype(np.float64), self.std)
