"""A known ε, audited with one-run membership guesses: the bound is seldom violated."""

import numpy as np
from scipy import stats

from fedvlm.privacy import GaussianMechanism, SimulatedNoise, epsilon
from fedvlm.seeds import ExperimentSeed

ALPHA = 0.05
DELTA = 1e-5
CANARIES = 64
STEPS = 10


def lower_bound(right: int, guesses: int, delta: float, canaries: int) -> float:
    """Bound ε from below by one run (Steinke et al. 2023, theorem 5.2, its δ term by bisection)."""

    def chance(eps):
        p = 1 / (1 + np.exp(-eps))
        tails = stats.binom.sf(np.arange(right - 1, -1, -1) - 1, guesses, p)
        steps = np.arange(1, right + 1)
        alpha = max(0.0, float(((tails[1:] - tails[0]) / steps[: len(tails) - 1]).max(initial=0)))
        return tails[0] + alpha * canaries * delta * 2

    low, high = 0.0, 20.0
    if chance(0.0) >= ALPHA:
        return 0.0
    while high - low > 1e-3:
        middle = (low + high) / 2
        low, high = (middle, high) if chance(middle) < ALPHA else (low, middle)
    return low


def _one_run(seed: int, z: float, shortfall: float = 1.0) -> float:
    """Train with canaries in orthogonal directions, guess the surest, bound ε from below."""
    coins = ExperimentSeed(seed).numpy("coins").random(CANARIES) < 0.5
    noise = SimulatedNoise(ExperimentSeed(seed), "audit")
    mechanism = GaussianMechanism(sensitivity=1.0, noise_multiplier=z * shortfall)
    weights = np.zeros(CANARIES)
    for _ in range(STEPS):  # each canary's clipped gradient is a unit vector of its own
        weights += mechanism.release(coins.astype(float), noise)
    scores = weights - STEPS / 2
    surest = np.argsort(-np.abs(scores))[: CANARIES // 2]
    right = int(((scores[surest] > 0) == coins[surest]).sum())
    return lower_bound(right, len(surest), DELTA, CANARIES)


def test_the_known_epsilon_is_seldom_violated():
    # 200 seeds at α = 0.05: more than 25 violations of a true bound have a chance below 10^-4
    # even if each happened with chance α; the seeds are fixed, so that it can't flake.
    z = 4.0
    known = epsilon([(GaussianMechanism(1.0, z).event(), STEPS)], DELTA)
    found = np.array([_one_run(seed, z) for seed in range(200)])
    assert (found > known).mean() <= ALPHA
    assert found.max() > 0.3  # the audit does see something


def test_the_audit_catches_noise_that_is_too_small():
    # A tenth of the noise that the ledger assumes: nearly every run must tell.
    z = 12.0
    known = epsilon([(GaussianMechanism(1.0, z).event(), STEPS)], DELTA)
    found = np.array([_one_run(seed, z, shortfall=0.1) for seed in range(20)])
    assert (found > known).mean() > 0.9
