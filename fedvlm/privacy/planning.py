"""Plans: which noise a wished-for ε needs over a whole run, and which ε a given noise has."""

import math
from dataclasses import dataclass

from fedvlm.errors import ConfigError
from fedvlm.privacy.accounting import Method, epsilon_and_method, noise_multiplier_for
from fedvlm.privacy.mechanisms import GaussianMechanism


@dataclass(frozen=True)
class Plan:
    """A run of equal Gaussian releases over Poisson samples.

    Attributes:
        epsilon: ε of the whole run.
        delta: δ that it holds at.
        noise_multiplier: Noise over sensitivity in each release.
        sample_rate: Chance of each unit to be in a release.
        steps: Number of releases.
        method: How ε was computed: "analytic" (exact), "pld", "rdp" or "coins", whichever bound was
            the least; see `fedvlm.privacy.accounting.epsilon_and_method`.
    """

    epsilon: float
    delta: float
    noise_multiplier: float
    sample_rate: float
    steps: int
    method: str


def plan(
    *,
    delta: float,
    sample_rate: float,
    steps: int,
    target_epsilon: float | None = None,
    noise_multiplier: float | None = None,
    method: Method = "auto",
) -> Plan:
    """Solve a run for its noise or for its ε, whichever is not given.

    Args:
        delta: δ in (0, 1); well below one over the number of units.
        sample_rate: Chance of each unit to be in a release, in (0, 1].
        steps: Number of releases, at least 1.
        target_epsilon: ε to stay within.
        noise_multiplier: Noise over sensitivity.
        method: "auto" for the least bound, or the one to take.

    Raises:
        ConfigError: Not exactly one of ε and noise is given, or a value is out of range.

    Example:
        >>> found = plan(delta=1e-4, sample_rate=0.1, steps=100, target_epsilon=3.0)
        >>> round(found.noise_multiplier, 2)
        1.5
    """
    if (target_epsilon is None) == (noise_multiplier is None):
        raise ConfigError("give either epsilon or noise_multiplier, and not both")
    if target_epsilon is not None and not (math.isfinite(target_epsilon) and target_epsilon > 0):
        raise ConfigError(f"epsilon must be positive and finite, got {target_epsilon}")
    if type(steps) is not int or steps < 1:
        raise ConfigError(f"steps must be a whole number of at least 1, got {steps}")

    def event(z: float):
        return GaussianMechanism(1.0, z, sample_rate).event()

    z = noise_multiplier
    if z is None:
        z = noise_multiplier_for(event, steps, float(target_epsilon or 0.0), delta, method)
    found, by = epsilon_and_method([(event(z), steps)], delta, method)
    return Plan(found, delta, z, sample_rate, steps, by)
