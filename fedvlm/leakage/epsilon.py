"""Lower limits on epsilon from independent trials: Clopper–Pearson, and Gaussian DP.

Each score comes from a trial of its own (a run each, or examples that don't influence one
another). For many examples in one run see `fedvlm.leakage.one_run`.
"""

import math

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import root_scalar
from scipy.stats import norm

from fedvlm.errors import ConfigError
from fedvlm.leakage.inputs import finite
from fedvlm.leakage.intervals import Scores, clopper_pearson_upper
from fedvlm.leakage.units import EpsilonLower, Kind, Unit

_INDEPENDENT = "each score is a trial independent of the others"
_MAX_EPSILON = 500.0


def epsilon_from_rates(fpr_upper: Scores, fnr_upper: Scores, delta: float) -> Scores:
    """Return max(0, ln((1 − FNR − δ) / FPR)): Kairouz et al. 2015, theorem 2.1."""
    gain = 1 - np.asarray(fnr_upper) - delta
    ratio = np.where(gain > 0, gain, 1e-300) / np.asarray(fpr_upper)
    return np.maximum(0.0, np.log(ratio))


def gaussian_epsilon(mu: float, delta: float) -> float:
    """Return the ε at which a μ-GDP mechanism is (ε, δ)-DP (Dong et al. 2022, corollary 2.13).

    Args:
        mu: At least 0.
        delta: In (0, 1).

    Raises:
        ConfigError: mu is NaN.

    Example:
        >>> round(gaussian_epsilon(1.0, 1e-5), 3)
        4.377
    """
    if math.isnan(mu):
        raise ConfigError("mu is NaN")
    if mu <= 0 or 2 * norm.cdf(mu / 2) - 1 <= delta:
        return 0.0

    def excess(epsilon: float) -> float:
        # exp(ε)·Φ(·) in logarithms: each factor alone leaves the range of a double.
        second = np.exp(epsilon + norm.logcdf(-epsilon / mu - mu / 2))
        return float(norm.cdf(-epsilon / mu + mu / 2) - second) - delta

    if excess(_MAX_EPSILON) > 0:
        return _MAX_EPSILON
    return float(root_scalar(excess, bracket=(0.0, _MAX_EPSILON), method="brentq").root)


def _gaussian_mu(fpr_upper: Scores, fnr_upper: Scores) -> Scores:
    """Return Φ⁻¹(1 − FPR) − Φ⁻¹(FNR), at least 0 (Nasr et al. 2023, equation 4)."""
    return np.maximum(0.0, norm.isf(fpr_upper) - norm.ppf(fnr_upper))


def _ranks(count: int) -> NDArray[np.int64]:
    """Return ranks 1, 4, 16, … up to half the count: the thresholds tried, fixed beforehand."""
    powers = 4 ** np.arange(0, 16)
    return powers[powers <= max(1, count // 2)]


def _rates_at_ranks(members: Scores, others: Scores, alpha: float) -> tuple[Scores, Scores]:
    """Return upper limits of FPR and FNR at thresholds on fixed ranks of the non-members.

    Beyond the j-th largest of m non-members lies a share of them that is at most Beta(j, m−j+1)
    in distribution: the limit is Clopper–Pearson's for j − 1 false positives. The members are a
    sample of their own, so their count there is binomial. α is shared by all the ranks.
    """
    finite("scores", members, others)
    ranks = _ranks(len(others))
    share = alpha / (2 * len(ranks))
    thresholds = np.sort(others)[::-1][ranks - 1]
    missed = (members[:, None] <= thresholds[None, :]).sum(axis=0)
    return (
        clopper_pearson_upper(ranks - 1, len(others), share),
        clopper_pearson_upper(missed, len(members), share),
    )


def clopper_pearson_bonferroni(
    members: Scores,
    others: Scores,
    delta: float = 0.0,
    alpha: float = 0.05,
    unit: Unit = Unit.SAMPLE,
) -> EpsilonLower:
    """Bound ε from below over a few thresholds fixed beforehand, α shared among them.

    Args:
        members: Shape (n,), scores where the unit took part.
        others: Shape (m,), scores where it didn't.
        delta: In [0, 1).
        alpha: Chance that the bound is wrong, in (0, 1).
        unit: Whose presence was guessed.

    Guarantees:
        P(value > true ε) ≤ α, for any distribution of scores, also with ties.
    """
    fpr, fnr = _rates_at_ranks(members, others, alpha)
    value = float(epsilon_from_rates(fpr, fnr, delta).max())
    name = "clopper-pearson-bonferroni"
    return EpsilonLower(value, delta, name, Kind.BOUND, unit, 1 - alpha, _INDEPENDENT)


def clopper_pearson_split(
    members: Scores,
    others: Scores,
    rng: np.random.Generator,
    delta: float = 0.0,
    alpha: float = 0.05,
    unit: Unit = Unit.SAMPLE,
) -> EpsilonLower:
    """Bound ε from below at a threshold chosen on one half of the scores and read on the other.

    Args:
        members: Shape (n,), n >= 2.
        others: Shape (m,), m >= 2.
        rng: Halves the scores.
        delta: In [0, 1).
        alpha: Chance that the bound is wrong, in (0, 1).
        unit: Whose presence was guessed.

    Guarantees:
        P(value > true ε) ≤ α, for any distribution of scores.

    Raises:
        ConfigError: Fewer than two scores on a side.
    """
    if len(members) < 2 or len(others) < 2:
        raise ConfigError(
            f"a split needs at least 2 scores a side; got {len(members)}, {len(others)}"
        )
    finite("scores", members, others)
    halves = [np.array_split(rng.permutation(side), 2) for side in (members, others)]
    (choose_in, test_in), (choose_out, test_out) = halves
    thresholds = np.unique(np.concatenate([choose_in, choose_out]))
    tp = len(choose_in) - np.searchsorted(np.sort(choose_in), thresholds, side="left")
    fp = len(choose_out) - np.searchsorted(np.sort(choose_out), thresholds, side="left")
    found = epsilon_from_rates(
        clopper_pearson_upper(fp, len(choose_out), alpha / 2),
        clopper_pearson_upper(len(choose_in) - tp, len(choose_in), alpha / 2),
        delta,
    )
    threshold = thresholds[int(found.argmax())]
    value = epsilon_from_rates(
        clopper_pearson_upper((test_out >= threshold).sum(), len(test_out), alpha / 2),
        clopper_pearson_upper((test_in < threshold).sum(), len(test_in), alpha / 2),
        delta,
    )
    name = "clopper-pearson-split"
    return EpsilonLower(float(value), delta, name, Kind.BOUND, unit, 1 - alpha, _INDEPENDENT)


def gaussian_dp(
    members: Scores,
    others: Scores,
    delta: float,
    alpha: float = 0.05,
    unit: Unit = Unit.SAMPLE,
) -> EpsilonLower:
    """Estimate ε from below as if the trade-off between the errors were Gaussian.

    Far more power than a bound where that holds (Nasr et al. 2023), and none of its force where
    it doesn't: hence an estimate. Thresholds and α as in `clopper_pearson_bonferroni`.

    Args:
        members: Shape (n,).
        others: Shape (m,).
        delta: In (0, 1).
        alpha: Chance that μ is overestimated, in (0, 1).
        unit: Whose presence was guessed.

    Guarantees:
        P(value > true ε) ≤ α if the trade-off function is that of a Gaussian mechanism.
    """
    fpr, fnr = _rates_at_ranks(members, others, alpha)
    mu = float(_gaussian_mu(fpr, fnr).max())
    assumption = f"{_INDEPENDENT}, and the trade-off is Gaussian"
    value = gaussian_epsilon(mu, delta)
    return EpsilonLower(value, delta, "gaussian-dp", Kind.ESTIMATE, unit, 1 - alpha, assumption)
