"""Whether membership was decided as one-run bounds need it: by independent fair coins.

A test of fairness that lets through what it can't tell from fair would leave a bound that is
wrong more often than it says. So the count of members limits the coins' bias, at an error of its
own, and the bounds are made to hold for every bias within the limits: what isn't caught is paid.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.stats import beta, binom

from fedvlm.leakage.clusters import Clustered

COINS = ("tested", "fair")
SHARE = 0.1  # of alpha, for the limits on bias and dependence
_UNFAIR = 1e-6  # coins that are known to be fair are doubted below this chance
_DRAWS = 999
_CELLS = 20_000_000  # most counts that are drawn for the test of dependence


@dataclass(frozen=True, eq=False)
class Coins:
    """Coins as a one-run bound takes them.

    Attributes:
        scores: Shape (m,): one score a coin.
        inside: Shape (m,), bool: the coins.
        odds: At least 1: the bounds hold for coins of up to these odds.
        alpha: What is left of alpha for bounds.
        grouped: Whether a coin decided over more than one score.
        refused: Why there can be no bound, or an empty text.
    """

    scores: NDArray[np.float64]
    inside: NDArray[np.bool_]
    odds: float
    alpha: float
    grouped: bool
    refused: str


def bias_limits(heads: int, count: int, alpha: float) -> tuple[float, float]:
    """Return limits of a coin's chance by its throws (Clopper and Pearson 1934).

    Args:
        heads: In [0, count].
        count: At least 1.
        alpha: Chance that the chance is outside, half for each limit.
    """
    low = beta.ppf(alpha / 2, heads, count - heads + 1) if heads else 0.0
    high = beta.isf(alpha / 2, heads + 1, count - heads) if heads < count else 1.0
    return float(low), float(high)


def dependence(inside: NDArray[np.int64], sizes: NDArray[np.int64]) -> float:
    """Return the chance that independent fair coins fall so much alike within clusters.

    Args:
        inside: Members a cluster, shape (K,).
        sizes: Scores a cluster, shape (K,).

    Returns:
        A Monte Carlo p-value that is valid at any number of draws, in (0, 1]. One-sided: what
        makes a bound wrong is coins that agree.
    """
    many = sizes > 1
    inside, sizes = inside[many], sizes[many]
    if not len(sizes):
        return 1.0

    def statistic(counts: NDArray) -> NDArray:
        return ((2.0 * counts - sizes) ** 2).sum(axis=-1)

    draws = max(99, min(_DRAWS, _CELLS // len(sizes)))
    rng = np.random.default_rng(0)
    seen, above = statistic(inside), 0
    for start in range(0, draws, 100):
        some = rng.binomial(sizes, 0.5, (min(100, draws - start), len(sizes)))
        above += int((statistic(some) >= seen).sum())
    return (1 + above) / (1 + draws)


def examine(
    scores: NDArray[np.float64],
    inside: NDArray[np.bool_],
    clusters: NDArray[np.int64] | None,
    alpha: float,
    known: str,
) -> Coins:
    """Say how scores and coins may be used for a one-run bound.

    Args:
        scores: Shape (n,).
        inside: Shape (n,), bool.
        clusters: Shape (n,), from 0 without gaps, or None.
        alpha: Chance of a wrong statement about the coins, at most.
        known: "fair" where whoever audits threw them; "tested" where the data must tell.
    """
    share = SHARE * alpha
    grouped, rest = False, alpha
    if clusters is not None:
        data = Clustered(scores, inside, clusters)
        if data.by_cluster and len(data.sizes) < len(scores):
            # Coins by score fall like this with chance 2^-(n - K), and would have been tested then
            # as well as where they don't.
            rest = alpha / (1 + 2.0 ** -(len(scores) - len(data.sizes)))
            scores, inside = data.reduced()
            grouped = True
        elif (chance := dependence(data.inside, data.sizes)) <= share / 2:
            why = f"coins of one cluster agree more than independent ones do (p = {chance:.2g})"
            return Coins(scores, inside, 1.0, alpha, False, why)
    heads, count = int(inside.sum()), len(inside)
    why = f"{heads} of {count} are members, which fair coins don't give"
    if known == "fair":
        chance = 2 * float(min(binom.cdf(heads, count, 0.5), binom.sf(heads - 1, count, 0.5)))
        return Coins(scores, inside, 1.0, rest, grouped, "" if chance >= _UNFAIR else why)
    low, high = bias_limits(heads, count, share)
    worst = max(high, 1 - low)
    odds = float(worst / (1 - worst)) if worst < 1 else np.inf
    return Coins(scores, inside, odds, rest - share, grouped, "" if low <= 0.5 <= high else why)
