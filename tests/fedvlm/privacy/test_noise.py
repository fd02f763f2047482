"""Noise: the right σ is accepted, a wrong one is rejected; coins fall at their rate."""

import numpy as np
import pytest
from scipy import stats

from fedvlm.errors import ConfigError
from fedvlm.privacy import GaussianMechanism, SecureNoise, SimulatedNoise, poisson_sample
from fedvlm.privacy.clipping import AdaptiveClip, ClientMechanism, release_round
from fedvlm.seeds import ExperimentSeed

SOURCES = [SecureNoise(), SimulatedNoise(ExperimentSeed(0), "test")]
DRAWS = 200_000
ALARM = 1e-7


def accepts(draws, std):
    """Whether a chi-square test of the variance, two-sided at 10^-7, accepts a σ."""
    low, high = stats.chi2.ppf([ALARM / 2, 1 - ALARM / 2], len(draws))
    return low < float(np.square(draws).sum()) / std**2 < high


@pytest.mark.parametrize("source", SOURCES)
def test_the_right_sigma_is_accepted_and_a_wrong_one_rejected(source):
    # At 2·10^5 draws the relative standard error is 0.16 %: ±10 % is 60 of them away.
    mechanism = GaussianMechanism(sensitivity=2.0, noise_multiplier=1.5)
    draws = mechanism.release(np.zeros(DRAWS), source)
    assert accepts(draws, 3.0)
    assert not accepts(draws, 2.7)
    assert not accepts(draws, 3.3)
    assert not accepts(0.9 * draws, 3.0)
    assert not accepts(1.1 * draws, 3.0)
    assert stats.kstest(draws / 3.0, "norm").pvalue > ALARM


def test_sources_say_what_they_are():
    assert [source.simulated for source in SOURCES] == [False, True]
    a, b = (SimulatedNoise(ExperimentSeed(1), "round", 1).gaussian(1.0, 4) for _ in range(2))
    assert np.array_equal(a, b)
    assert not np.array_equal(SecureNoise().gaussian(1.0, 4), SecureNoise().gaussian(1.0, 4))


@pytest.mark.parametrize("source", SOURCES)
def test_clients_are_drawn_at_their_rate(source):
    # 3000 rounds of 40 coins: each client within 6 standard errors, and the total by a test at
    # 10^-7; sizes vary as a binomial's do, empty rounds included.
    taken = np.zeros(40)
    sizes = []
    for _ in range(3000):
        drawn = poisson_sample(40, 0.05, source)
        taken[drawn] += 1
        sizes.append(len(drawn))
    assert stats.binomtest(int(taken.sum()), 3000 * 40, 0.05).pvalue > ALARM
    assert np.abs(taken / 3000 - 0.05).max() < 6 * np.sqrt(0.05 * 0.95 / 3000)
    assert np.var(sizes) == pytest.approx(40 * 0.05 * 0.95, rel=0.2)
    empty = stats.binomtest(sizes.count(0), 3000, 0.95**40)
    assert empty.pvalue > ALARM
    with pytest.raises(ConfigError):
        poisson_sample(3, 0.0, source)


def _residuals(mechanism, weights, expected, rounds=40, size=5000):
    rng = np.random.default_rng(1)
    updates = [10 * rng.normal(size=size) for _ in weights]
    clipped = [u * mechanism.clip_norm / np.linalg.norm(u) for u in updates]
    exact = sum(w * u for w, u in zip(weights, clipped, strict=True)) / expected
    return np.concatenate(
        [
            release_round(mechanism, updates, weights, size, expected, SOURCES[1]).mean - exact
            for _ in range(rounds)
        ]
    )


@pytest.mark.parametrize("adaptive", [None, AdaptiveClip(bit_std=3.0)])
def test_the_mean_has_the_noise_that_the_ledger_assumes(adaptive):
    # From sum to mean with unequal weights: σ·C/n, where C is this round's and n is public.
    mechanism = ClientMechanism(0.5, 1.2, 1.0, adaptive)
    weights, expected = [1.0, 0.1, 0.7], 4.0
    residuals = _residuals(mechanism, weights, expected)
    z = 1.2 if adaptive is None else adaptive.update_multiplier(1.2)
    assert accepts(residuals, z * 0.5 / expected)
    for wrong in (0.9, 1.1):
        assert not accepts(residuals, wrong * z * 0.5 / expected)


@pytest.mark.parametrize("std", [1e-9, 0.37, 1.0, 3.0, 1e12])
def test_n7_secure_noise_leaves_nothing_below_its_grid(std):
    """N7: the low bits of a released double say nothing of the value, nor of the draw."""
    values = np.random.default_rng(0).normal(0, 100 * std, 20_000)
    out = SecureNoise().noised(values, std)
    grid = 2.0 ** np.floor(np.log2(std)) / 1024
    steps = out / grid
    assert np.array_equal(steps, np.rint(steps))
    assert stats.kstest((out - values) / std, "norm").pvalue > ALARM
    # Every bit above is as it should be: values one grid step apart are told by chance alone.
    lowest = steps.astype(np.int64)
    for bit in range(8):
        ones = int((lowest >> bit & 1).sum())
        assert stats.binomtest(ones, len(lowest)).pvalue > ALARM
    assert np.array_equal(SecureNoise().noised(np.zeros((3, 2)), std).shape, (3, 2))


def test_n7_neighbouring_values_land_on_the_same_points():
    """N7: Mironov's attack: points that one value can lead to and its neighbour can't."""
    ours = set(SecureNoise().noised(np.full(100_000, 1 / 3), 0.01).tolist())
    theirs = set(SecureNoise().noised(np.full(100_000, 1 / 3 + 1e-7), 0.01).tolist())
    assert len(ours & theirs) > 0.9 * len(ours)


def test_n7_the_tail_reaches_beyond_what_53_bits_allow():
    draws = SecureNoise().gaussian(1.0, 1_000_000)
    assert 4.2 < np.abs(draws).max() < 7.5
    for at in (2.0, 3.0, 4.0):
        assert stats.binomtest(int((np.abs(draws) > at).sum()), len(draws),
                               2 * stats.norm.sf(at)).pvalue > ALARM  # fmt: skip
    assert abs(np.corrcoef(draws[:-1], draws[1:])[0, 1]) < 6e-3
    assert abs(np.corrcoef(draws[:500_000], draws[500_000:])[0, 1]) < 9e-3


@pytest.mark.parametrize("std", [0.0, -1.0, np.nan, np.inf, 1e-290])
def test_noise_that_no_grid_can_hold_is_refused(std):
    with pytest.raises(ConfigError, match="standard deviation"):
        SecureNoise().noised(np.zeros(3), std)
    with pytest.raises(ConfigError, match="too little"):
        SecureNoise().noised(np.array([1e16]), 1.0)
