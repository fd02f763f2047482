"""Distributed DP: reference ε, unbiased codec, bounded norms, enough noise at any dropout."""

import numpy as np
import pytest
from scipy import stats

from fedvlm.errors import ConfigError, DropoutError, IntegrityError
from fedvlm.privacy.accounting import epsilon
from fedvlm.privacy.mechanisms import GaussianMechanism
from fedvlm.privacy.noise import SecureNoise, SimulatedNoise
from fedvlm.privacy.skellam import (
    SkellamMechanism,
    conditional_round,
    fwht,
    noise_tail,
    plan_skellam,
    rounded_norm_bound,
    scale_for_modulus,
)
from fedvlm.seeds import ExperimentSeed


def _noise(number=0):
    return SimulatedNoise(ExperimentSeed(number), "test")


@pytest.mark.parametrize(
    ("size", "clients", "z", "rounds", "by_bits", "gaussian"),
    [
        (1 << 18, 100, 4.0, 20, {16: 5.428, 20: 5.378}, 5.378),
        (1 << 20, 50, 6.0, 50, {16: 6.217, 20: 5.727}, 5.725),
    ],
)
def test_reference_epsilon(size, clients, z, rounds, by_bits, gaussian):
    event = GaussianMechanism(1.0, z).event()
    assert epsilon([(event, rounds)], 1e-5, "rdp") == pytest.approx(gaussian, abs=0.01)
    for bits, expected in by_bits.items():
        scale = scale_for_modulus(bits, clients, 1.0, z, size)
        mechanism = SkellamMechanism(1.0, z, size, clients, clients, scale)
        assert epsilon([(mechanism.event(), rounds)], 1e-5) == pytest.approx(expected, abs=0.01)


def test_a_lane_of_21_bits_costs_little():
    mechanism = plan_skellam(1.0, 4.0, 1 << 18, 100, 100, lane=21)
    assert 100 * 2 * mechanism.magnitude < 1 << 21
    assert epsilon([(mechanism.event(), 20)], 1e-5) <= 5.378 * 1.02
    assert epsilon([(mechanism.event(), 20)], 1e-5) >= 5.378


def test_the_rotation_is_orthonormal_and_its_own_inverse():
    x = np.random.default_rng(0).normal(size=64)
    matrix = np.array([fwht(row) for row in np.eye(64)])
    assert np.allclose(matrix @ matrix.T, np.eye(64))
    assert np.allclose(fwht(fwht(x)), x)
    with pytest.raises(ConfigError):
        fwht(np.zeros(3))


def test_rounding_is_unbiased_and_bounded():
    rng = np.random.default_rng(1)
    x = rng.normal(size=256)
    x *= 20 / np.linalg.norm(x)
    bound = rounded_norm_bound(20.0, 256)
    draws = np.stack([conditional_round(x, bound, _noise(i)) for i in range(2000)])
    assert (np.linalg.norm(draws, axis=1) <= bound).all()
    # Conditioning biases a little; 6 standard errors of the mean leave room for it.
    assert np.abs(draws.mean(axis=0) - x).max() < 6 * 0.5 / np.sqrt(2000) + 0.02
    with pytest.raises(IntegrityError, match="longer"):
        conditional_round(10 * x, bound, _noise())


def test_an_update_cannot_leave_its_norm():
    # Clip, rotation and rounding together never exceed the accounted sensitivity.
    mechanism = SkellamMechanism(1.0, 4.0, 100, 5, 5, scale=50.0)
    rng = np.random.default_rng(0)
    wild = [np.full(100, np.nan), np.full(100, 1e300), np.zeros(100), rng.normal(size=100) * 1e-9]
    wild += [np.eye(100)[0] * 1e9, rng.normal(size=100)]

    class NoNoise(SimulatedNoise):
        def skellam(self, variance, size):
            return np.zeros(size, dtype=np.int64)

    for update in wild:
        sent = mechanism.encode(update, 3, NoNoise(ExperimentSeed(0)))
        assert np.linalg.norm(sent) <= mechanism.rounded_norm


def test_the_sum_decodes_to_the_mean_with_the_noise_that_was_planned():
    mechanism = SkellamMechanism(1.0, 2.0, 3000, 4, 5, scale=400.0)
    rng = np.random.default_rng(0)
    updates = [u / np.linalg.norm(u) for u in rng.normal(size=(5, 3000))]
    sent = [mechanism.encode(u, 7, _noise(i)) for i, u in enumerate(updates)]
    assert max(np.abs(s).max() for s in sent) <= mechanism.magnitude
    for count in (5, 4):
        mean = mechanism.decode(np.sum(sent[:count], axis=0), 7, count)
        error = (mean - np.mean(updates[:count], axis=0)) * count
        # At the least number of survivors the noise is what is accounted for; else more.
        expected = mechanism.std * np.sqrt(count / 4)
        assert np.std(error) == pytest.approx(expected, rel=0.08)  # 6 standard errors
    with pytest.raises(DropoutError, match="at least 4"):
        mechanism.decode(np.sum(sent[:3], axis=0), 7, 3)


@pytest.mark.parametrize("source", [SecureNoise(), _noise()])
@pytest.mark.parametrize("variance", [20.0, 500.0, 1e7])
def test_skellam_noise_has_its_law(source, variance):
    # 10^5 draws: a standard deviation 10 % off is 45 standard errors away. False alarms: 1e-6.
    draws = source.skellam(variance, 100_000)
    statistic = len(draws) * np.var(draws) / variance
    low, high = stats.chi2.ppf([5e-7, 1 - 5e-7], len(draws)) * [1 - 0.05, 1 + 0.05]
    assert low < statistic < high
    assert abs(draws.mean()) < 5.5 * np.sqrt(variance / len(draws))
    if variance == 500.0:
        values = np.arange(-60, 61)
        observed = np.array([(draws == v).sum() for v in values])
        expected = stats.skellam.pmf(values, variance / 2, variance / 2)
        rest = len(draws) - observed.sum()
        chi = stats.chisquare(
            np.append(observed, rest), np.append(expected, 1 - expected.sum()) * len(draws)
        )
        assert chi.pvalue > 1e-7


def test_the_tail_is_a_bound():
    for variance in (25.0, 1e4):
        tail = noise_tail(variance)
        assert stats.skellam.sf(tail, variance / 2, variance / 2) < 2.0**-90
        assert tail < 15 * np.sqrt(variance) + 50


def test_bad_mechanisms_are_refused():
    for bad in ((0, 1, 8, 2, 2, 1), (1, 0, 8, 2, 2, 1), (1, 1, 0, 2, 2, 1), (1, 1, 8, 3, 2, 1)):
        with pytest.raises(ConfigError):
            SkellamMechanism(*bad)
    with pytest.raises(ConfigError, match="narrow"):
        plan_skellam(1.0, 0.1, 1 << 18, 1000, 1000, lane=16)
    with pytest.raises(ConfigError, match="variance"):
        SecureNoise().skellam(1.0, 3)
