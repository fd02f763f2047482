"""Training with a known ε, audited from one run each: the bound is seldom violated."""

import numpy as np

from fedvlm.leakage import one_run
from fedvlm.privacy import GaussianMechanism, Ledger, SimulatedNoise, poisson_sample
from fedvlm.seeds import ExperimentSeed

ALPHA = 0.05
DELTA = 1e-5
CANARIES = 128
STEPS = 10
RATE = 0.9
CLIP_NORM = 0.3


def _train(seed: int, z: float, shortfall: float = 1.0):
    """Fit a logistic regression by DP-SGD to canaries that are in by fair coins.

    Each canary has a direction of its own and a label of +1: what the weights say in its direction
    tells whether it was in. The ledger is told of `z`, the noise is `shortfall` times as much.

    Returns:
        The canaries' scores, their coins, and the ε that the ledger knows.
    """
    coins = ExperimentSeed(seed).numpy("coins").random(CANARIES) < 0.5
    noise = SimulatedNoise(ExperimentSeed(seed), "audit")
    told = GaussianMechanism(CLIP_NORM, z, RATE)
    drawn = GaussianMechanism(CLIP_NORM, z * shortfall, RATE)
    ledger = Ledger("example", 1e3, DELTA)
    ledger.spend(told, STEPS)
    members, weights = np.flatnonzero(coins), np.zeros(CANARIES)
    for _ in range(STEPS):
        total = np.zeros(CANARIES)
        for canary in members[poisson_sample(len(members), RATE, noise)]:
            slope = 1 / (1 + np.exp(weights[canary]))  # −∂ log(1 + e^(−w·x)) / ∂(w·x)
            total[canary] += min(slope, CLIP_NORM)
        weights += drawn.release(total, noise)
    return weights, coins, ledger.spent.value


def _bounds(z: float, seeds: int, shortfall: float = 1.0):
    runs = [_train(seed, z, shortfall) for seed in range(seeds)]
    found = np.array([one_run(scores, coins, DELTA, ALPHA).value for scores, coins, _ in runs])
    return found, runs[0][2]


def test_the_known_epsilon_is_seldom_violated():
    # The seeds are fixed, so that it can't flake. A true bound is violated with chance α at most.
    found, known = _bounds(z=2.0, seeds=200)
    assert (found > known).mean() <= ALPHA
    assert np.median(found) > 0.3  # the audit does see something


def test_the_audit_catches_noise_that_is_too_small():
    # A tenth of the noise that the ledger assumes: nearly every run must tell.
    found, known = _bounds(z=12.0, seeds=20, shortfall=0.1)
    assert (found > known).mean() > 0.9
