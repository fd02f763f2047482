"""Whether a model is as often right as it is sure."""

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.special import log_softmax, softmax

from fedvlm.trust.contrasts import bootstrap, mean_estimate
from fedvlm.trust.estimate import Estimate, UnresolvedError

Floats = NDArray[np.float64]
_BINS = 15


def _checked(confidence: ArrayLike, correct: ArrayLike) -> tuple[Floats, Floats]:
    sure = np.asarray(confidence, dtype=np.float64)
    right = np.asarray(correct, dtype=np.float64)
    if sure.shape != right.shape or not sure.size:
        raise UnresolvedError(
            f"need as many confidences as answers, got {sure.shape} and {right.shape}"
        )
    if not ((sure >= 0) & (sure <= 1)).all():
        raise UnresolvedError("confidences must lie in [0, 1]")
    return sure, right


def ece_equal_width(confidence: ArrayLike, correct: ArrayLike, bins: int = _BINS) -> float:
    """Return ECE over equal bins, the last one closed (Guo et al. 2017, equation 3).

    A confidence of exactly 1 belongs to the last bin. Where it gets a bin of its own the error of
    what saturates is counted apart from its neighbours'.

    Args:
        confidence: Shape (N,), in [0, 1].
        correct: Shape (N,), bool.
        bins: Number of bins.

    Example:
        >>> round(ece_equal_width([0.95, 1.0], [True, False], bins=10), 3)
        0.475
    """
    sure, right = _checked(confidence, correct)
    place = np.minimum((sure * bins).astype(np.int64), bins - 1)
    gap = np.bincount(place, sure - right, bins)
    return float(np.abs(gap).sum() / len(sure))


def ece(confidence: ArrayLike, correct: ArrayLike, bins: int = _BINS) -> float:
    """Return the debiased calibration error over bins of equal mass (Kumar et al. 2019, def. 5.1).

    √max(0, Σ_b n_b/N · [(conf_b − acc_b)² − acc_b(1 − acc_b)/(n_b − 1)]). Where a model is
    calibrated, a bin's accuracy still differs from its confidence by chance, and a plain ECE
    counts that; the second term is its mean. In squares, since only there is the correction
    exact: the root is at least what the mean of abs(conf_b − acc_b) would be.

    Args:
        confidence: Shape (N,), in [0, 1].
        correct: Shape (N,), bool.
        bins: At most this many, and at most one for ten answers.

    Returns:
        At least 0.
    """
    sure, right = _checked(confidence, correct)
    count = max(1, min(bins, len(sure) // 10))
    order = np.argsort(sure, kind="stable")
    total = 0.0
    for part in np.array_split(order, count):
        gap, accuracy, n = sure[part].mean() - right[part].mean(), right[part].mean(), len(part)
        total += n * float(gap**2 - accuracy * (1 - accuracy) / max(1, n - 1))
    return float(np.sqrt(max(0.0, total / len(sure))))


def ece_estimate(
    confidence: ArrayLike, correct: ArrayLike, clusters: ArrayLike, rng: np.random.Generator
) -> Estimate:
    """Estimate the debiased ECE with an interval by concept.

    A resample repeats answers, which looks like more miscalibration than there is: its interval is
    moved back by what the resamples are above the estimate on average.
    """
    sure, right = _checked(confidence, correct)
    found = bootstrap(lambda rows: ece(sure[rows], right[rows]), clusters, rng)
    shift = (found.low + found.high) / 2 - found.value
    low, high = max(0.0, found.low - shift), max(0.0, found.high - shift)
    return Estimate(found.value, low, high, found.rows, found.clusters)


def overconfidence(confidence: ArrayLike, correct: ArrayLike, clusters: ArrayLike) -> Estimate:
    """Estimate mean confidence − accuracy, signed: above 0 where the model is too sure."""
    sure, right = _checked(confidence, correct)
    return mean_estimate(sure - right, clusters)


def confidences(
    cosines: ArrayLike, right: ArrayLike, scale: float
) -> tuple[Floats, NDArray[np.bool_]]:
    """Return how sure a model is of its first caption, and whether that is the right one.

    Args:
        cosines: Shape (N, C).
        right: Shape (N,), the right column.
        scale: Inverse temperature.

    Returns:
        Confidence (N,) in [0, 1], and correctness (N,); a tie counts as wrong.
    """
    found = np.asarray(cosines, dtype=np.float64)
    if not np.isfinite(found).all():
        raise UnresolvedError("cosines are not all finite numbers: no confidence can be read off")
    sure = softmax(scale * found, axis=1).max(axis=1)
    rows = np.arange(len(found))
    beaten = found >= found[rows, np.asarray(right)][:, None]
    return np.clip(sure, 0.0, 1.0), beaten.sum(axis=1) == 1


def fitted_temperature(cosines: ArrayLike, right: ArrayLike, scale: float) -> float:
    """Return the factor on the logits that makes the likelihood largest (Guo et al. 2017).

    Args:
        cosines: Shape (N, C), of validation items only.
        right: Shape (N,).
        scale: Inverse temperature of the model.

    Returns:
        A factor: below 1 where the model was too sure. By golden section, since the likelihood is
        concave in it.
    """
    logits = scale * np.asarray(cosines, dtype=np.float64)
    rows = np.arange(len(logits))

    def loss(log_factor: float) -> float:
        return -float(log_softmax(np.exp(log_factor) * logits, axis=1)[rows, right].mean())

    low, high = np.log(0.02), np.log(20.0)
    golden = (np.sqrt(5) - 1) / 2
    for _ in range(40):
        a, b = high - golden * (high - low), low + golden * (high - low)
        low, high = (low, b) if loss(a) < loss(b) else (a, high)
    return float(np.exp((low + high) / 2))
