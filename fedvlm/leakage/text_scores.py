"""Membership scores of answers as pure functions of token log-probabilities; higher is "member".

An answer's tokens are a row: arrays are indexed by example (N) and place (K), NaN where an answer
is shorter. What an attacker needs for all but the last three is the released model alone.
"""

import math
import zlib
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from fedvlm.errors import ConfigError

Array = NDArray[np.float64]

_TINY = 1e-12


def _check(values: Array, name: str) -> None:
    if values.ndim != 2 or not np.isfinite(values).any(axis=1).all():
        raise ConfigError(
            f"{name} must have shape (N, K), with a number in every row; got {values.shape}"
        )
    if np.isinf(values).any():
        raise ConfigError(f"{int(np.isinf(values).sum())} {name} are infinite")


def mean_log_probability(log_probabilities: Array) -> Array:
    """Return the mean log-probability of each answer's tokens: −NLL (Yeom et al. 2018).

    Args:
        log_probabilities: Shape (N, K), of the answers' tokens, in nats; NaN behind the end.
    """
    _check(log_probabilities, "log-probabilities")
    return np.nanmean(log_probabilities, axis=1)


def _lowest_mean(values: Array, share: float) -> Array:
    """Return the mean of the lowest share of each row's numbers, one of them at least."""
    if not 0 < share <= 1:
        raise ConfigError(f"the share of tokens must be in (0, 1], got {share}")
    counts = np.isfinite(values).sum(axis=1)
    taken = np.maximum(1, np.floor(share * counts)).astype(np.int64)
    ordered = np.sort(values, axis=1)  # NaN comes last
    kept = np.arange(values.shape[1])[None, :] < taken[:, None]
    return np.where(kept, np.nan_to_num(ordered), 0.0).sum(axis=1) / taken


def min_k(log_probabilities: Array, share: float = 0.2) -> Array:
    """Return the mean log-probability of the least likely tokens: Min-K% (Shi et al. 2024, eq. 1).

    Args:
        log_probabilities: Shape (N, K), of the answers' tokens, in nats; NaN behind the end.
        share: K, as a fraction in (0, 1].

    Example:
        >>> float(min_k(np.array([[-4.0, -1.0, -1.0, -2.0]]), 0.5)[0])
        -3.0
    """
    _check(log_probabilities, "log-probabilities")
    return _lowest_mean(log_probabilities, share)


def min_k_plus_plus(
    log_probabilities: Array, means: Array, deviations: Array, share: float = 0.2
) -> Array:
    """Return Min-K%++: as Min-K%, of (log p − μ) / σ over the words (Zhang et al. 2025, eq. 3).

    Args:
        log_probabilities: Shape (N, K), of the answers' tokens, in nats; NaN behind the end.
        means: Shape (N, K): E_{z∼p}[log p(z)] at each place.
        deviations: Shape (N, K): the standard deviation of log p(z) under p.
        share: K, as a fraction in (0, 1].
    """
    _check(log_probabilities, "log-probabilities")
    return _lowest_mean((log_probabilities - means) / np.maximum(deviations, _TINY), share)


def max_renyi(entropies: Array, share: float = 0.2) -> Array:
    """Return −1 times the mean of the largest Rényi entropies: MaxRényi-K% (Li et al. 2024).

    A model that has seen an answer is sure of what follows where another one is least sure.

    Args:
        entropies: Shape (N, K), nats, of the distributions at the answers' places; NaN behind the
            end.
        share: K, as a fraction in (0, 1]; 0 takes the largest alone.
    """
    _check(entropies, "entropies")
    return _lowest_mean(-entropies, share if share > 0 else 1e-9)


def renyi_entropy(log_probabilities: Array, order: float) -> Array:
    """Return Rényi entropies in nats: log(Σ p^α) / (1 − α); Shannon's at 1, −log max p at infinity.

    Args:
        log_probabilities: Shape (…, V): log p of a whole distribution.
        order: α, above 0.

    Example:
        >>> even = np.full((1, 4), -np.log(4))
        >>> [round(float(renyi_entropy(even, a)[0]), 6) for a in (0.5, 1, 2, math.inf)]
        [1.386294, 1.386294, 1.386294, 1.386294]
    """
    if not order > 0:
        raise ConfigError(f"a Rényi entropy's order must be above 0, got {order}")
    if order == math.inf:
        return -log_probabilities.max(axis=-1)
    if order == 1:
        p = np.exp(log_probabilities)
        return -(p * np.where(p > 0, log_probabilities, 0.0)).sum(axis=-1)
    from scipy.special import logsumexp

    return np.asarray(logsumexp(order * log_probabilities, axis=-1)) / (1 - order)


def zlib_ratio(log_probabilities: Array, answers: Sequence[str]) -> Array:
    """Return −1 times an answer's total NLL over its length compressed (Carlini et al. 2021, § 6).

    What is easy to compress is likely without having been seen.

    Args:
        log_probabilities: Shape (N, K), of the answers' tokens, in nats; NaN behind the end.
        answers: N texts.
    """
    _check(log_probabilities, "log-probabilities")
    if len(answers) != len(log_probabilities):
        raise ConfigError(f"{len(log_probabilities)} rows and {len(answers)} answers")
    sizes = np.array([len(zlib.compress(answer.encode())) for answer in answers])
    return np.nansum(log_probabilities, axis=1) / sizes


def exposure(canary: Array, reference: Array) -> Array:
    """Return each canary's exposure in bits: log2 of how far ahead of random ones it is.

    exposure = log2(size of R) − log2(rank) over the space R that canaries are drawn from (Carlini
    et al. 2019, definition 4), with the rank of a canary among M drawn but not planted:
    log2(M + 1) − log2(1 + number of them that are at least as likely). It is at most
    log2(M + 1), and its mean over canaries that were not planted is 1.44 at most.

    Args:
        canary: Shape (N,), log-probabilities of planted canaries.
        reference: Shape (M,), of canaries drawn alike and not planted, M at least 1.

    Example:
        >>> exposure(np.array([-1.0, -9.0]), np.array([-5.0, -6.0, -7.0])).tolist()
        [2.0, 0.0]
    """
    if reference.ndim != 1 or not len(reference):
        raise ConfigError("exposure needs canaries that were not planted, to rank among")
    if not (np.isfinite(canary).all() and np.isfinite(reference).all()):
        raise ConfigError("a canary's log-probability isn't finite")
    ahead = len(reference) - np.searchsorted(np.sort(reference), canary, side="left")
    return np.log2(len(reference) + 1) - np.log2(1 + ahead)
