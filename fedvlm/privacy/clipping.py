"""Clipping a client's whole update, and finding the clip norm under DP."""

import math
from dataclasses import dataclass

import dp_accounting
import numpy as np
from numpy.typing import NDArray

from fedvlm.errors import ConfigError
from fedvlm.privacy.mechanisms import GaussianMechanism
from fedvlm.privacy.noise import NoiseSource

# More than the rounding of a norm over 10^9 entries.
_MARGIN = 1e-12


def clip(update: NDArray[np.floating], clip_norm: float) -> NDArray[np.float64]:
    """Scale an update down to an L2 norm; one that is not finite counts as zero.

    Args:
        update: Shape (P,).
        clip_norm: Largest norm of the result, positive.

    Guarantees:
        The result's norm is at most `clip_norm`, whatever comes in, rounding included: what is
        scaled at all is scaled to a trillionth less. A client that sends NaN takes part like one
        that sends nothing.

    Example:
        >>> clip(np.array([3.0, 4.0]), 1.0).round(6).tolist()
        [0.6, 0.8]
    """
    wide = update.astype(np.float64)
    if not np.isfinite(wide).all():
        return np.zeros_like(wide)
    largest = float(np.abs(wide).max(initial=0.0))
    if largest == 0.0:
        return wide
    # Numbers near 1: squares of huge ones would overflow, of tiny ones vanish, and a factor that
    # brings a huge one down in one step could be denormal, with few digits or none.
    unit = wide / largest
    length = float(np.linalg.norm(unit))
    target = clip_norm * (1 - _MARGIN)
    if largest * length <= target:
        return wide
    return unit * (target / length)


@dataclass(frozen=True)
class AdaptiveClip:
    """The clip norm follows a quantile of the updates' norms (Andrew et al. 2021, algorithm 1).

    Attributes:
        quantile: γ: share of updates that should not be clipped, in (0, 1).
        rate: η_C of the geometric step, positive.
        bit_std: σ_b: standard deviation of the noise on the count of unclipped updates.

    Raises:
        ConfigError: A value is out of range.
    """

    quantile: float = 0.5
    rate: float = 0.2
    bit_std: float = 5.0

    def __post_init__(self) -> None:
        if not (0 < self.quantile < 1 and self.rate > 0 and self.bit_std > 0):
            raise ConfigError(
                "adaptive clipping needs quantile in (0, 1), rate > 0 and bit_std > 0; got "
                f"{self.quantile}, {self.rate} and {self.bit_std}"
            )

    def update_multiplier(self, noise_multiplier: float) -> float:
        """Return z_Δ, so that updates and bits together cost as much as one z (theorem 1).

        Raises:
            ConfigError: The bits alone would cost more: `bit_std` is too small.
        """
        rest = noise_multiplier**-2 - (2 * self.bit_std) ** -2
        if rest <= 0:
            raise ConfigError(
                f"bit_std={self.bit_std:g} is too small for a noise multiplier of "
                f"{noise_multiplier:g}: it must be above half of it"
            )
        return rest**-0.5

    def next(self, clip_norm: float, unclipped_share: float) -> float:
        """Return the next clip norm: C·exp(−η(b̄ − γ)), up where too many are clipped."""
        return clip_norm * math.exp(-self.rate * (unclipped_share - self.quantile))


@dataclass(frozen=True)
class ClientMechanism:
    """One round at client level: the sum of clipped, weighted updates, with the clip's bits.

    Attributes:
        clip_norm: C of this round; weights are in [0, 1], so that it is the sensitivity.
        noise_multiplier: z of the round as a whole.
        sample_rate: Chance of each client to be in the round.
        adaptive: How the clip follows, or None where it is fixed.
    """

    clip_norm: float
    noise_multiplier: float
    sample_rate: float = 1.0
    adaptive: AdaptiveClip | None = None

    @property
    def updates(self) -> GaussianMechanism:
        """The mechanism that noises the sum of the updates: with C of this round, not the next."""
        z = self.noise_multiplier
        if self.adaptive is not None:
            z = self.adaptive.update_multiplier(z)
        return GaussianMechanism(self.clip_norm, z, self.sample_rate)

    def event(self) -> dp_accounting.DpEvent:
        """Return what the accountant is told of one round: updates and bits as one Gaussian."""
        return GaussianMechanism(self.clip_norm, self.noise_multiplier, self.sample_rate).event()


@dataclass(frozen=True)
class ClientRound:
    """What is released of a round.

    Attributes:
        mean: Shape (P,): noised sum over the public expected number of clients.
        next_clip_norm: C of the next round.
    """

    mean: NDArray[np.float64]
    next_clip_norm: float


def release_round(
    mechanism: ClientMechanism,
    updates: list[NDArray[np.floating]],
    weights: list[float],
    size: int,
    expected_clients: float,
    noise: NoiseSource,
) -> ClientRound:
    """Sum a round's updates and release their mean.

    Args:
        mechanism: Clip, noise and sampling of the round.
        updates: One (P,) a client; none where nobody was sampled.
        weights: One a client; cut to [0, 1].
        size: P.
        expected_clients: Public n that the sum is divided by. Never the number that came:
            that one depends on who took part.
        noise: Source of the noise.

    Guarantees:
        Client-level DP of `mechanism.event()` against whoever sees what is returned. The
        server that calls this sees the updates and must be trusted.

    Raises:
        ConfigError: Lists of different length, or an update of another size.
    """
    if len(updates) != len(weights) or any(update.shape != (size,) for update in updates):
        raise ConfigError(f"expected one weight an update, and updates of {size} values")
    total, unclipped = np.zeros(size), 0.0
    for update, weight in zip(updates, weights, strict=True):
        clipped = clip(update, mechanism.clip_norm)
        # A NaN compares false twice, and so counts nothing.
        total += clipped * (min(weight, 1.0) if weight > 0 else 0.0)
        with np.errstate(over="ignore", invalid="ignore"):
            norm = float(np.linalg.norm(update.astype(np.float64)))
        # Bits of ±1/2: one client moves their sum by 1/2 (Andrew et al. 2021, section 3).
        unclipped += 0.5 if norm <= mechanism.clip_norm else -0.5
    released = mechanism.updates.release(total, noise) / expected_clients
    following = mechanism.clip_norm
    if mechanism.adaptive is not None:
        noised = float(noise.noised(np.array([unclipped]), mechanism.adaptive.bit_std)[0])
        share = min(max(noised / expected_clients + 0.5, 0.0), 1.0)
        following = mechanism.adaptive.next(mechanism.clip_norm, share)
    return ClientRound(released, following)
