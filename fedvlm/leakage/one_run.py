"""Lower limits on epsilon from one training run with many examples, each in by its own coin."""

from collections.abc import Callable, Sequence

import numpy as np
from scipy.special import bdtr, ndtr, ndtri

from fedvlm.errors import ConfigError
from fedvlm.leakage.epsilon import gaussian_epsilon
from fedvlm.leakage.inputs import finite
from fedvlm.leakage.intervals import Scores
from fedvlm.leakage.units import EpsilonLower, Kind, Unit

_COINS = "each example was in by an independent coin, fair as far as was tested; one run suffices"
_MAX = 30.0
# Shares of the examples that are guessed, as (in, out): fixed beforehand, α is split over them.
_SHARES = ((1 / 2, 1 / 2), (1 / 8, 1 / 8), (1 / 32, 1 / 32), (1 / 8, 0.0), (1 / 32, 0.0))


def _guesses(scores: Scores, membership: np.ndarray) -> list[tuple[int, int]]:
    """Return (guesses, right ones) for each share in `_SHARES`.

    Ties are broken by a fixed shuffle. By position they would be broken by membership itself
    wherever members are listed first, and equal scores would "prove" a leak.
    """
    count = len(scores)
    order = np.random.default_rng(0).permutation(count)
    ranked = membership[order[np.argsort(-scores[order], kind="stable")]]
    out = []
    for inside, outside in _SHARES:
        top, bottom = int(inside * count), int(outside * count)
        right = int(ranked[:top].sum()) + int((~ranked[count - bottom :]).sum())
        out.append((top + bottom, right))
    return out


def _largest(rejected: Callable[[float], bool]) -> float:
    """Return the largest value in [0, 30] that is rejected, to 1e-3; rejection is monotone."""
    if not rejected(0.0):
        return 0.0
    low, high = 0.0, _MAX
    while high - low > 1e-3:
        middle = (low + high) / 2
        low, high = (middle, high) if rejected(middle) else (low, middle)
    return low


def steinke_p_value(
    epsilon: float, delta: float, total: int, guesses: int, right: int, odds: float = 1.0
) -> float:
    """Return the p-value of "(ε, δ)-DP" given right guesses (Steinke et al. 2023, theorem 5.2).

    A coin of odds o moves the odds of a right guess by o at most, as e^ε does: with biased coins
    o·e^ε takes the place of e^ε.

    Args:
        epsilon: At least 0.
        delta: In [0, 1).
        total: Examples m whose inclusion was a fair coin.
        guesses: How many were guessed, r <= m.
        right: How many guesses were right, v <= r.
        odds: Largest odds of a coin's sides, at least 1.
    """
    q = 1 / (1 + np.exp(-epsilon) / odds)
    p = float(1 - bdtr(right - 1, guesses, q)) if right else 1.0
    if delta and right:
        steps = np.arange(1, right + 1)
        # P[v − i ≤ Bin < v] = P[Bin ≤ v − 1] − P[Bin ≤ v − i − 1]
        below = np.where(steps < right, bdtr(np.maximum(right - steps - 1, 0), guesses, q), 0.0)
        mass = bdtr(right - 1, guesses, q) - below
        p += (1 + odds) * total * delta * float((mass / steps).max())
    return min(1.0, p)


def one_run(
    scores: Scores,
    membership: np.ndarray,
    delta: float = 0.0,
    alpha: float = 0.05,
    unit: Unit = Unit.SAMPLE,
    odds: float = 1.0,
) -> EpsilonLower:
    """Bound ε from below by counting right guesses in one run (Steinke et al. 2023).

    Args:
        scores: Shape (m,), higher for members.
        membership: Shape (m,), bool: the coins.
        delta: In [0, 1).
        alpha: Chance that the bound is wrong, in (0, 1).
        unit: Whose presence was guessed.
        odds: Largest odds of a coin's sides, at least 1; 1 for fair ones.

    Guarantees:
        P(value > true ε) ≤ α where the coins are independent and no more biased than `odds` says,
        whatever the training.

    Raises:
        ConfigError: A score isn't finite.
    """
    finite("scores", scores)
    share = alpha / len(_SHARES)
    total = len(scores)
    value = max(
        _largest(lambda e, g=g, v=v: steinke_p_value(e, delta, total, g, v, odds) <= share)
        for g, v in _guesses(scores, membership)
    )
    return EpsilonLower(value, delta, "one-run", Kind.BOUND, unit, 1 - alpha, _COINS)


Inverse = Callable[[float], float]


def gaussian_inverse(mu: float) -> Inverse:
    """Return the inverse of 1 − f for the trade-off f of μ-GDP: Φ(Φ⁻¹(ρ) − μ)."""
    return lambda rho: float(ndtr(ndtri(rho) - mu))


def approximate_inverse(epsilon: float, delta: float) -> Inverse:
    """Return the inverse of 1 − f for the trade-off f of (ε, δ)-DP (Dong et al. 2022, eq. 5)."""
    grow = float(np.exp(epsilon))
    return lambda rho: max(0.0, (rho - delta) / grow, 1 - delta - grow * (1 - rho))


def profile_inverse(profile: Sequence[tuple[float, float]]) -> Inverse:
    """Return the inverse of 1 − f for the trade-off f that pairs (ε, δ) hold together."""
    deltas = np.array([delta for _, delta in profile])
    grow = np.exp([epsilon for epsilon, _ in profile])

    def inverse(rho: float) -> float:
        return max(
            0.0,
            float(((rho - deltas) / grow).max()),
            float((1 - deltas - grow * (1 - rho)).max()),
        )

    return inverse


def biased(inverse: Inverse, odds: float) -> Inverse:
    """Return the inverse of 1 − f that a trade-off f leaves between right and wrong guesses.

    With fair coins the chance a of a right guess in any event is at most F(b), b that of a wrong
    one and F = 1 − f. With sides of chance p and 1 − p, F being concave, it is at most
    F(p·x + (1 − p)·y) where b = (1 − p)·x + p·y, hence at most F(o·b) for odds o.

    Args:
        inverse: Of F.
        odds: o, at least 1.
    """
    return inverse if odds == 1 else lambda rho: inverse(rho) / odds


def refutes_profile(
    scores: Scores,
    membership: np.ndarray,
    profile: Sequence[tuple[float, float]],
    alpha: float,
    odds: float = 1.0,
) -> bool:
    """Return whether one run refutes a claimed privacy profile (Mahloujifar et al. 2024).

    A profile says more than one (ε, δ), so less suffices to refute it: a Gaussian mechanism at
    half of its stated noise, for instance.

    Args:
        scores: Shape (m,), higher for members.
        membership: Shape (m,), bool: the coins.
        profile: Pairs (ε, δ), all of which are claimed.
        alpha: Chance of refuting a claim that holds, in (0, 1).
        odds: Largest odds of a coin's sides, at least 1.

    Raises:
        ConfigError: A score isn't finite.
    """
    finite("scores", scores)
    share, inverse = alpha / len(_SHARES), biased(profile_inverse(profile), odds)
    return any(
        f_dp_rejects(inverse, len(scores), guesses, right, share)
        for guesses, right in _guesses(scores, membership)
    )


def f_dp_rejects(inverse: Inverse, total: int, guesses: int, right: int, alpha: float) -> bool:
    """Return whether right guesses refute f-DP (Mahloujifar et al. 2024, algorithm 3).

    Args:
        inverse: Inverse of 1 − f.
        total: Examples m whose inclusion was a fair coin.
        guesses: How many were guessed, g <= m.
        right: How many guesses were right, v <= g.
        alpha: Chance of rejecting a mechanism that is f-DP, in (0, 1).
    """
    if right == 0:
        return False
    rho, h = alpha * right / total, alpha * (guesses - right) / total
    for i in range(right - 1, -1, -1):
        raised = max(h, inverse(rho))
        rho = min(1.0, rho + i / (guesses - i) * (raised - h))
        h = raised
        if rho + h > guesses / total:
            return True
    return False


def one_run_f_dp(
    scores: Scores,
    membership: np.ndarray,
    delta: float,
    alpha: float = 0.05,
    unit: Unit = Unit.SAMPLE,
    *,
    gaussian: bool = False,
    odds: float = 1.0,
) -> EpsilonLower:
    """Bound ε from below by refuting f-DP curves in one run (Mahloujifar et al. 2024).

    Args:
        scores: Shape (m,), higher for members.
        membership: Shape (m,), bool: the coins.
        delta: In (0, 1).
        alpha: Chance that the bound is wrong, in (0, 1).
        unit: Whose presence was guessed.
        gaussian: Refute Gaussian trade-offs, and not those of (ε, δ)-DP: more power, but an
            estimate, since another mechanism may have the same ε and another curve.
        odds: Largest odds of a coin's sides, at least 1.

    Guarantees:
        As `one_run`; with `gaussian` only where the trade-off is Gaussian.

    Raises:
        ConfigError: No scores, or one isn't finite.
    """
    finite("scores", scores)
    total = len(scores)
    if not total:
        raise ConfigError("an audit needs scores; got none")
    share = alpha / len(_SHARES)

    def level(guesses: int, right: int) -> float:
        def rejected(strength: float) -> bool:
            curve = gaussian_inverse(strength) if gaussian else approximate_inverse(strength, delta)
            return f_dp_rejects(biased(curve, odds), total, guesses, right, share)

        return _largest(rejected)

    strength = max(level(g, v) for g, v in _guesses(scores, membership))
    if not gaussian:
        return EpsilonLower(strength, delta, "one-run-f-dp", Kind.BOUND, unit, 1 - alpha, _COINS)
    return EpsilonLower(
        gaussian_epsilon(strength, delta),
        delta,
        "one-run-gaussian",
        Kind.ESTIMATE,
        unit,
        1 - alpha,
        f"{_COINS}; and the trade-off is Gaussian",
    )
