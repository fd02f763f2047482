"""Prototypes out of a noised sum: what the sum says, as far as it says anything.

A prototype is the mean of a caption's images and of κ imagined ones that look as the control has
it. κ rises with the variance of the noise: at little ε the control is all that is left, and of a
row that is held by nobody it is all that there is.

Which rows hold data is told by a list that was declared, or else inferred from the released row:
the empty count and every other have a likelihood by the row's length, by its likeness with the
control, and by its last coordinate, which counts. Nobody looks it up.
"""

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from fedvlm.errors import IntegrityError
from fedvlm.heads.contributions import COUNT_SHARE
from fedvlm.heads.whitening import unit_rows

_COUNTS = np.array([0, 1, 2, 3, 4, 5, 6, 8, 10, 14, 20, 30, 50, 100, 300, 1000, 10000], float)
_LEAST_STD = 1e-3
_STANDS_OUT = 20
_LONG = 3


@dataclass(frozen=True)
class Prior:
    """What is expected of a row before it is seen.

    Attributes:
        images: Mean number of images of a caption that is held, a public guess.
        imagined: κ without noise.
        doubt: What σ²(1 + σ²/2) is multiplied with in κ, σ² the noise's variance.
        empty: Chance that nobody holds a caption that wasn't declared.
        share: a of `counted`.
    """

    images: float = 3.0
    imagined: float = 0.5
    doubt: float = 4.5
    empty: float = 0.7
    share: float = COUNT_SHARE

    def weight(self, std: float) -> float:
        """Return κ, the control's weight in images, at a noise of this standard deviation."""
        return self.imagined + self.doubt * std**2 * (1 + std**2 / 2)


@dataclass(frozen=True)
class Prototypes:
    """What a released sum says of captions.

    Attributes:
        vectors: Shape (N, d): expected prototypes.
        zero_shot: Shape (N,): what the zero-shot score weighs beside x · vector: as the control, it
            counts as imagined images, and a caption of many real ones leaves it little.
    """

    vectors: NDArray[np.float64]
    zero_shot: NDArray[np.float64]


def _taken_apart(
    noised: NDArray[np.floating], std: float, share: float
) -> tuple[NDArray[np.float64], NDArray[np.float64], float]:
    """Return the sums of unit features, the noised counts, and the noise on the first."""
    if noised.ndim != 2 or noised.shape[1] < 2 or not np.isfinite(noised).all():
        raise IntegrityError(f"a noised sum is finite, of shape (N, d + 1); got {noised.shape}")
    gain = math.sqrt(1 - share**2)
    values = np.asarray(noised, dtype=np.float64)
    return values[:, :-1] / gain, values[:, -1] / share, max(std / gain, _LEAST_STD)


def presence(
    noised: NDArray[np.floating],
    std: float,
    control: NDArray[np.floating],
    prior: Prior | None = None,
) -> NDArray[np.float64]:
    """Return the chance that a row holds data, by the released row alone: shape (N,).

    Args:
        noised: Shape (N, d + 1): rows of the released sum, in images.
        std: Standard deviation of the noise on each coordinate, in images; 0 without DP.
        control: Shape (N, d): the control's prototypes.
        prior: See `Prior`.
    """
    prior = prior or Prior()
    sums, told, noise = _taken_apart(noised, std, prior.share)
    width = sums.shape[1]
    n = _COUNTS[None, :]
    along = np.einsum("nd,nd->n", sums, control)[:, None]
    lengths = np.einsum("nd,nd->n", sums, sums)[:, None]
    known = np.einsum("nd,nd->n", control, control)[:, None]
    # Half of a prototype's length is its own, beside what the control knows of it.
    marginal = noise**2 + n / (2 * width) + n**2 / (2 * width)
    squares = lengths - 2 * n * along + n**2 * known
    # Coordinates aren't independent, as the model has it: trusted by half.
    log = -0.25 * (squares / marginal + width * np.log(marginal))
    spread = (std / prior.share) ** 2 + _LEAST_STD + (0.15 * np.maximum(n - 5, 0)) ** 2
    log = log - 0.5 * ((told[:, None] - n) ** 2 / spread + np.log(spread))
    rate = min(1 / max(prior.images, 1.0), 0.99)
    chances = (1 - prior.empty) * rate * (1 - rate) ** np.maximum(_COUNTS - 1, 0)
    chances[0] = prior.empty
    log = log + np.log(np.maximum(chances, 1e-300))[None, :]
    log -= log.max(axis=1, keepdims=True)
    odds = np.exp(log)
    return 1 - odds[:, 0] / odds.sum(axis=1)


def posterior_prototypes(
    noised: NDArray[np.floating],
    std: float,
    control: NDArray[np.floating],
    declared: NDArray[np.bool_] | None = None,
    prior: Prior | None = None,
) -> Prototypes:
    """Return the expected prototypes of captions, given their rows of a noised sum.

    Args:
        noised: Shape (N, d + 1): rows of the released sum, in images.
        std: Standard deviation of the noise on each coordinate, in images; 0 without DP.
        control: Shape (N, d): the control's prototypes, zero where nothing public is known.
        declared: Shape (N,): which captions were said to be held; inferred where None.
        prior: See `Prior`.

    Guarantees:
        Post-processing: it reads what was released, and what is public. A row that isn't declared
        is the control's to the letter.
    """
    prior = prior or Prior()
    sums, told, noise = _taken_apart(noised, std, prior.share)
    direction = unit_rows(control)
    held = presence(noised, std, control, prior) if declared is None else declared.astype(float)
    # Counts that are noised would let rows of little data speak loudest: those have the mean of
    # all. Where count or row stand out of their noise, as without DP or with many images, not so.
    lengths = np.linalg.norm(sums, axis=1)
    known = told > _STANDS_OUT * max(std / prior.share, _LEAST_STD)
    long = lengths > _LONG * noise * math.sqrt(sums.shape[1])
    counts = np.where(known, told, np.where(long, lengths, prior.images))
    imagined = prior.weight(std)
    found = (sums + imagined * direction) / (imagined + counts)[:, None]
    # A prototype's length then tells how alike its images are, no more.
    found = np.where((known | long)[:, None], unit_rows(found), found)
    vectors = held[:, None] * found + (1 - held)[:, None] * direction
    real = np.where(known | long, counts, prior.images)
    return Prototypes(vectors, 0.5 * imagined / (imagined + real))
