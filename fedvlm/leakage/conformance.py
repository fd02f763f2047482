"""Does a run do what its ledger says? Its noise and its clipping, read off planted canaries.

A bound on ε asks what any attacker could learn and needs thousands of canaries to refute an ε of
some size. This asks less, and a few dozen suffice: whether the noise that is in the released sums
can be as wide as stated, and whether a canary in them is no longer than the clip norm.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.stats import chi2

from fedvlm.canaries import Canaries
from fedvlm.errors import ConfigError
from fedvlm.leakage.inputs import finite
from fedvlm.leakage.intervals import mean_difference


@dataclass(frozen=True)
class Conformance:
    """What canaries say of a mechanism that states its noise and its clip norm.

    Attributes:
        noise_ratio: Upper limit of the noise's standard deviation over the stated one.
        clip_ratio: Lower limit of a planted canary's mean length in the sum over the clip norm.
        confidence: Chance that all limits are right.
        round_ratio: As `noise_ratio`, in the round that has the least.
        sample_rate: Stated chance of a client to be in a round: as long as a canary may be on
            average, in clip norms.
    """

    noise_ratio: float
    clip_ratio: float
    confidence: float
    round_ratio: float = np.inf
    sample_rate: float = 1.0

    @property
    def violated(self) -> bool:
        """Whether there is less noise than stated, or canaries are longer than they may be."""
        # Written so that a NaN is a violation too.
        enough = self.noise_ratio >= 1 and self.round_ratio >= 1
        return not (enough and self.clip_ratio <= self.sample_rate)

    def __str__(self) -> str:
        return (
            f"noise at most {self.noise_ratio:.2f} of the stated ({self.round_ratio:.2f} in the "
            f"round with least), canaries at least {self.clip_ratio:.2f} clip norms long where "
            f"{self.sample_rate:.2f} is stated ({100 * self.confidence:.4g} %)"
        )


def check_mechanism(
    totals: NDArray[np.floating],
    canaries: Canaries,
    clip_norm: float | NDArray[np.floating],
    noise_std: float | NDArray[np.floating],
    alpha: float = 0.05,
    sample_rate: float = 1.0,
) -> Conformance:
    """Hold a noised sum's stated noise and clip norm against canaries.

    Noise, pooled and by round: held-out directions carry noise, and whatever else is in the sum
    on top. Their squared length over the noise's variance is a noncentral χ² at the least as large
    as a central one, so that the limit holds whatever the clients sent. Clipping: the mean length
    of planted canaries less that of held-out ones, by Welch's t.

    Args:
        totals: Shape (T, P): each round's sum of clipped updates, noise included.
        canaries: The run's.
        clip_norm: C as stated, of each round (T,) or of all.
        noise_std: Standard deviation of the noise on each coordinate of a sum, likewise.
        alpha: Chance that a limit is wrong, in (0, 1); half for the noise, half for the clip.
        sample_rate: Chance of each client to be in a round, as stated.

    Guarantees:
        A mechanism that adds independent Gaussian noise of at least `noise_std` and clips to
        `clip_norm` is called violated with chance at most α. One whose noise is normal only
        nearly, as Skellam's is after rotation, nearly so.

    Raises:
        ConfigError: Fewer than two canaries of a kind, or a sum that isn't finite.
    """
    finite("released sums", totals)
    held, planted = ~canaries.planted, canaries.planted
    if held.sum() < 2 or planted.sum() < 2:
        raise ConfigError("a check needs at least 2 planted and 2 held-out canaries")
    directions = canaries.directions.astype(np.float64)
    shares = directions @ totals.astype(np.float64).T  # (m, T)
    gram = directions @ directions.T
    kept, rounds = shares[held] / noise_std, shares.shape[1]
    squares = (kept * np.linalg.solve(gram[np.ix_(held, held)], kept)).sum(axis=0)
    freedom = int(held.sum())
    noise_ratio = np.sqrt(squares.sum() / chi2.ppf(alpha / 4, freedom * rounds))
    round_ratio = np.sqrt(squares.min() / chi2.ppf(alpha / 4 / rounds, freedom))
    lengths = (np.linalg.solve(gram, shares) / clip_norm).mean(axis=1)
    longer = mean_difference(lengths[planted], lengths[held], alpha)  # its low end: at α/2
    return Conformance(
        float(noise_ratio), longer.low, 1 - alpha, float(round_ratio), float(sample_rate)
    )
