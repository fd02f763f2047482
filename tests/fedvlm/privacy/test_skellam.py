"""Distributed DP: reference ε, unbiased codec, bounded norms, enough noise at any dropout."""

import numpy as np
import pytest
from scipy import special, stats

from fedvlm.errors import ConfigError, DropoutError, IntegrityError
from fedvlm.privacy import accounting
from fedvlm.privacy._skellam_law import processed_gaussian, skellam_log_mass, slack
from fedvlm.privacy.accounting import delta_at, epsilon, epsilon_and_method
from fedvlm.privacy.events import SkellamEvent
from fedvlm.privacy.mechanisms import GaussianMechanism, Relation
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
        event = mechanism.event()
        assert epsilon([(event, rounds)], 1e-5, "rdp") == pytest.approx(expected, abs=0.01)


def test_a_lane_of_21_bits_costs_little():
    mechanism = plan_skellam(1.0, 4.0, 1 << 18, 100, 100, lane=21)
    assert 100 * 2 * mechanism.magnitude < 1 << 21
    assert epsilon([(mechanism.event(), 20)], 1e-5, "rdp") <= 5.378 * 1.02
    assert epsilon([(mechanism.event(), 20)], 1e-5, "rdp") >= 5.378
    # N7: the exact ε of a Gaussian of the same z is 4.983, and rounding costs what is above.
    assert 4.983 <= epsilon([(mechanism.event(), 20)], 1e-5) <= 4.983 * 1.02


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
@pytest.mark.parametrize("variance", [20.0, 500.0, 1e7, 2.0**45, 2.0**50, 2.0**52])
def test_skellam_noise_has_its_law(source, variance):
    # 10^5 draws: a standard deviation 10 % off is 45 standard errors away. False alarms: 1e-6.
    # N5: from 2^50 on the textbook's form of a Poisson draw has no digits left.
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
    for source in (SecureNoise(), _noise()):
        for variance in (1.0, 2.0**52 * 1.01, float("nan")):
            with pytest.raises(ConfigError, match="variance"):
                source.skellam(variance, 3)


@pytest.mark.parametrize("lane", [21, 40, 62])
def test_n5_a_plan_never_asks_for_noise_that_cannot_be_drawn(lane):
    """N5: wide lanes led to variances that doubles can't count."""
    mechanism = plan_skellam(1e-3, 50.0, 64, 3, 4, lane=lane)
    assert SecureNoise().skellam(mechanism.local_variance, 4).shape == (4,)


def test_the_poisson_mass_is_right_where_the_textbooks_is_not():
    mpmath = pytest.importorskip("mpmath")
    from fedvlm.privacy.noise import _poisson_log_mass

    with mpmath.workdps(60):
        for rate in (10.0, 1e3, 2.0**30, 2.0**51):
            for step in (-5, -1, 0, 0.5, 4):
                k = max(0.0, float(np.floor(rate + step * np.sqrt(rate))))
                exact = k * mpmath.log(rate) - rate - mpmath.loggamma(mpmath.mpf(k) + 1)
                got = _poisson_log_mass(np.array([k]), rate)[0]
                assert got == pytest.approx(float(exact), abs=1e-11)


@pytest.mark.parametrize("variance", [2e3, 1e4, 1e6, 3e8])
def test_n7_skellam_is_a_processed_gaussian_to_the_stated_ratio(variance):
    """N7: both laws against independent ones, and the ratio at each integer within the slack."""
    law = processed_gaussian(variance)
    reach = int(8 * np.sqrt(variance))
    k = np.unique(np.linspace(0, reach, 400).astype(int)).astype(float)
    if variance <= 1e6:
        exact = np.log(special.ive(k, variance))
        sound = np.isfinite(exact) & (k < 6 * np.sqrt(variance))
        got = skellam_log_mass(k, variance)
        assert np.abs(got - exact)[sound].max() < 1e-8
    std = np.sqrt(law.variance)
    mass = np.zeros_like(k)
    for jump, chance in (
        (0.0, 1 - law.chance), (law.jump, law.chance / 2), (-law.jump, law.chance / 2)
    ):  # fmt: skip
        # From the upper tail, which keeps its digits.
        upper = stats.norm.sf((k - jump - 0.5) / std) - stats.norm.sf((k - jump + 0.5) / std)
        mass += chance * upper
    centre = k < 3 * np.sqrt(variance)
    assert np.abs(np.log(mass) - law.log_mass(k))[centre].max() < 1e-6
    bound = slack(variance, 1, np.log(1e-14))
    assert bound is not None
    ratio = np.abs(skellam_log_mass(k, variance) - law.log_mass(k))
    assert ratio[k < 7 * np.sqrt(variance)].max() <= bound.ratio
    # All mass is there, so that the ratio bounds the laws and not only their shapes.
    every = np.arange(1.0, reach + 1) if reach < 1e5 else None
    if every is not None:
        for log_mass in (skellam_log_mass, lambda k, _: law.log_mass(k)):
            total = np.exp(log_mass(np.zeros(1), variance))[0]
            total += 2 * np.exp(log_mass(every, variance)).sum()
            assert total == pytest.approx(1.0, abs=1e-9)


def test_n7_one_coordinate_is_never_more_private_than_exact_accounting_says():
    """N7: a single coordinate has an exact δ, by summing over integers."""
    variance, shift = 4e4, 100.0
    event = SkellamEvent(variance, 1, shift)
    k = np.arange(-4000, 4001)
    ours = stats.skellam.logpmf(k - int(shift), variance / 2, variance / 2)
    theirs = stats.skellam.logpmf(k, variance / 2, variance / 2)
    for delta in (1e-2, 1e-4):
        at = epsilon([(event, 1)], delta)
        exact = np.maximum(np.exp(ours) - np.exp(at + theirs), 0).sum()
        assert exact <= delta
        assert exact > 0.9 * delta
        assert at < epsilon([(event, 1)], delta, "rdp")
        assert delta_at([(event, 1)], at) == pytest.approx(delta, rel=0.02)


def test_n7_many_coordinates_by_drawing_the_privacy_loss():
    """N7: the loss of 512 coordinates, drawn; the share beyond ε is at most what δ admits."""
    rng = np.random.default_rng(0)
    variance, d = 3e3, 512
    event = SkellamEvent(variance, d, np.sqrt(d) * 2.0)
    noise = rng.poisson(variance / 2, (4000, d)) - rng.poisson(variance / 2, (4000, d))
    table = stats.skellam.logpmf(np.arange(-700, 701), variance / 2, variance / 2)
    loss = (table[noise + 700] - table[noise + 2 + 700]).sum(axis=1)
    for at in (0.2, 0.6, 1.0):
        drawn = np.maximum(0, 1 - np.exp(at - loss))
        error = 5 * drawn.std() / np.sqrt(len(drawn))
        assert drawn.mean() - error <= delta_at([(event, 1)], at)


def test_n7_too_little_noise_falls_back_to_renyi():
    event = SkellamEvent(500.0, 64, 5.0)
    assert epsilon_and_method([(event, 3)], 1e-5)[1] == "rdp"
    assert slack(500.0, 64, -30.0) is None


def test_n1_the_number_of_clients_shows_and_a_zeroed_update_does_not():
    """N1: who takes part is public; the claim is about what a participant sends.

    The variance of the sum tells how many noised it, in every trial, though ε is 1: under
    add-or-remove the claim would be false. Replacing an update by zero leaves it as it is.
    """
    mechanism = plan_skellam(1.0, 4.0, 2000, 3, 4)
    assert mechanism.relation is Relation.ZERO_OUT
    zero = np.zeros(2000)
    threshold = mechanism.std**2 * (3.5 / 3)
    told = {"three": 0, "four": 0, "zeroed": 0}
    for trial in range(20):
        sent = [mechanism.encode(zero, trial, _noise(10 * trial + i)) for i in range(4)]
        unit = zero.copy()
        unit[trial] = 1.0
        instead = mechanism.encode(unit, trial, _noise(10 * trial + 7))

        def variance(parts, trial=trial):
            return np.var(mechanism.decode(np.sum(parts, axis=0), trial, len(parts)) * len(parts))

        told["three"] += variance(sent[:3]) < threshold
        told["four"] += variance(sent) > threshold
        told["zeroed"] += variance([*sent[:3], instead]) > variance(sent)
    assert told["three"] == told["four"] == 20
    assert 3 <= told["zeroed"] <= 17  # a fair coin leaves this by a chance of 4e-4


def test_t1_what_skellam_noise_lacks_of_a_gaussians_is_paid_twice(monkeypatch):
    """ε grows by 2R where the two laws' densities differ by a factor of e^±R."""
    parts = accounting._Parts(0.5, (), (), ())
    found = {}
    for ratio in (0.0, 0.1):
        monkeypatch.setattr(accounting, "_skellam_slack", lambda *_, r=ratio: (r, 0.0))
        found[ratio] = accounting._by_skellam(parts, 1e-5 * np.exp(ratio), 50.0)
    assert found[0.1] - found[0.0] == pytest.approx(0.2, abs=1e-6)
    assert found[0.0] == pytest.approx(epsilon([(GaussianMechanism(1.0, 2.0).event(), 1)], 1e-5))
