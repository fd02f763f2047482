"""What a bound by canaries could show at all: said beside it, or silence passes for proof."""

from dataclasses import dataclass

import numpy as np
from scipy.optimize import brentq

from fedvlm.leakage.audit import AuditResult
from fedvlm.leakage.epsilon import gaussian_epsilon
from fedvlm.leakage.one_run import refutes_profile
from fedvlm.leakage.units import Claim

_DRAWS = 40
_SCORES = 20_000  # canaries that are drawn altogether, at most


@dataclass(frozen=True)
class Power:
    """What so many canaries can show.

    Attributes:
        canaries: How many.
        most: The largest ε that a bound shows, if all guesses are right.
        refutable: Whether the claim is refuted at all, if all guesses are right.
        halved: Share of simulated runs with half of the noise that are refuted; where what a
            canary leaves is Gaussian, and the attacker sees it alone.
        draws: Number of simulated runs.
    """

    canaries: int
    most: float
    refutable: bool
    halved: float
    draws: int

    def __str__(self) -> str:
        text = f"{self.canaries} canaries can show an epsilon of {self.most:.2f} at the most"
        if not self.refutable:
            return f"{text}: the claim would stand even without any noise"
        return (
            f"{text}; half of the noise would be refuted in {self.halved:.0%} of {self.draws} runs"
        )


def gaussian_strength(claim: Claim) -> float:
    """Return μ of the Gaussian trade-off that has a claim's ε at its δ."""
    return float(
        brentq(lambda mu: gaussian_epsilon(mu, claim.delta) - claim.epsilon, 1e-6, 60.0)  # pyright: ignore
    )


def canary_power(count: int, claim: Claim, alpha: float) -> Power:
    """Return what canaries can show of a claim.

    Args:
        count: Canaries, at least 2, in by fair coins.
        claim: With its profile, if it has one.
        alpha: Chance of refuting a claim that holds, in (0, 1).
    """
    inside = np.arange(count) % 2 == 0

    def audit(scores: np.ndarray, coins: np.ndarray) -> AuditResult:
        return AuditResult(scores, coins, unit=claim.unit, claimed=claim, alpha=alpha, coins="fair")

    perfect = audit(inside.astype(float), inside)
    draws = max(5, min(_DRAWS, _SCORES // count))
    refuted = bool(perfect.refuted)
    hits = 0
    if refuted and 0 < claim.epsilon < 50 and claim.delta > 0:
        rng, strength = np.random.default_rng(0), 2 * gaussian_strength(claim)
        profile = claim.profile or ((claim.epsilon, claim.delta),)
        for _ in range(draws):
            coins = rng.random(count) < 0.5
            scores = rng.normal(size=count) + strength * coins
            # The profile's share alone: what the other bounds add to it is little.
            hits += refutes_profile(scores, coins, profile, alpha / 3)
    return Power(count, perfect.epsilon_lower or 0.0, refuted, hits / draws, draws)
