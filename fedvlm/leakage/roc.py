"""The ROC of an attack, its advantage, and its true positives at few false ones."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.stats import binom

from fedvlm.leakage.intervals import Scores, clopper_pearson_lower, clopper_pearson_upper
from fedvlm.leakage.units import Interval

FPRS = (0.1, 0.01, 0.001)
_RESOLVE = 3  # false positives that a false-positive rate should promise to be resolved


@dataclass(frozen=True)
class Roc:
    """A receiver operating characteristic; one point per distinct score, no interpolation.

    Attributes:
        fpr: Shape (k,), ascending from 0 to 1.
        tpr: Shape (k,), ascending from 0 to 1.
        thresholds: Shape (k,): "member" is said from this score upwards; the first is infinite.
    """

    fpr: NDArray[np.float64]
    tpr: NDArray[np.float64]
    thresholds: NDArray[np.float64]

    @property
    def advantage(self) -> float:
        """Largest TPR − FPR (Yeom et al. 2018). Chosen in hindsight: it has no interval here."""
        return float((self.tpr - self.fpr).max())

    def tpr_at(self, fpr: float) -> float:
        """Return the largest TPR whose FPR is at most `fpr`."""
        return float(self.tpr[self.fpr <= fpr].max())


def roc(members: Scores, others: Scores) -> Roc:
    """Return the ROC of scores that are higher for members.

    Args:
        members: Shape (n,), n >= 1.
        others: Shape (m,), m >= 1.

    Example:
        >>> roc(np.array([2.0, 1.0]), np.array([1.0, 0.0])).tpr.tolist()
        [0.0, 0.5, 1.0, 1.0]
    """
    thresholds = np.unique(np.concatenate([members, others]))[::-1]
    # Counts of scores >= threshold, from the sorted arrays.
    tp = len(members) - np.searchsorted(np.sort(members), thresholds, side="left")
    fp = len(others) - np.searchsorted(np.sort(others), thresholds, side="left")
    return Roc(
        np.concatenate([[0.0], fp / len(others)]),
        np.concatenate([[0.0], tp / len(members)]),
        np.concatenate([[np.inf], thresholds]),
    )


@dataclass(frozen=True)
class TprAtFpr:
    """True-positive rate at a false-positive rate.

    Attributes:
        fpr: The false-positive rate asked for.
        tpr: The rate with its interval.
        resolved: Whether there are non-members enough, 3 / FPR, to speak of it at all.
    """

    fpr: float
    tpr: Interval
    resolved: bool


def tpr_at_fpr(members: Scores, others: Scores, fpr: float, alpha: float = 0.05) -> TprAtFpr:
    """Return the TPR at an FPR with an exact interval that knows its threshold is estimated.

    The true threshold is the (1 − FPR) quantile of non-members. Two order statistics enclose it
    with chance 1 − α/2 (a binomial tail each side), whatever the distribution; at each of the
    two, the members are a fresh sample, and Clopper–Pearson limits the rate at α/4.

    Args:
        members: Shape (n,), independent scores of members.
        others: Shape (m,), independent scores of non-members.
        fpr: In (0, 1).
        alpha: One less the confidence, in (0, 1).

    Guarantees:
        The interval covers the true rate with at least 1 − α, for continuous scores. Where the
        data can't place the threshold, its lower end is 0.
    """
    n, m = len(members), len(others)
    ordered = np.sort(others)[::-1]
    # Number of non-members above the true threshold is Bin(m, fpr).
    fewest = int(binom.ppf(alpha / 4, m, fpr))
    most = int(binom.isf(alpha / 4, m, fpr))
    # At least `fewest` lie above it, so it is at most the fewest-th largest; and so on.
    highest = ordered[fewest - 1] if fewest >= 1 else np.inf
    lowest = ordered[most] if most < m else -np.inf
    low = clopper_pearson_lower((members > highest).sum(), n, alpha / 4)
    high = clopper_pearson_upper((members >= lowest).sum(), n, alpha / 4)
    point = roc(members, others).tpr_at(fpr)
    interval = Interval(point, min(float(low), point), max(float(high), point), 1 - alpha)
    return TprAtFpr(fpr, interval, m >= _RESOLVE / fpr)
