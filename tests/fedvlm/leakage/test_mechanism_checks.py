"""A stated mechanism is held to what it states: false alarms at their rate, faults found."""

import dp_accounting
import numpy as np
import pytest
from scipy.stats import binom

from fedvlm.canaries import Canaries
from fedvlm.errors import ConfigError
from fedvlm.leakage.audit import AuditResult
from fedvlm.leakage.canaries import exposures
from fedvlm.leakage.conformance import Conformance, check_mechanism
from fedvlm.leakage.intervals import mean_difference
from fedvlm.leakage.one_run import gaussian_inverse, profile_inverse, refutes_profile
from fedvlm.leakage.units import Claim
from fedvlm.privacy import GaussianMechanism, epsilon
from fedvlm.privacy.profile import privacy_profile
from fedvlm.privacy.skellam import plan_skellam

ROUNDS, COUNT, SIZE = 3, 32, 2000


def _totals(rng: np.random.Generator, length: float, std: float):
    canaries = Canaries.draw(COUNT, SIZE, rng)
    other = rng.normal(size=(ROUNDS, SIZE)) * 0.01  # what honest clients send
    noise = std * rng.normal(size=(ROUNDS, SIZE))
    return canaries.updates(length).sum(axis=0) + other + noise, canaries


def test_an_honest_mechanism_is_called_violated_no_more_often_than_said() -> None:
    """A check at its nominal 5 % fails here with chance 1e-6."""
    rng, alarms, draws = np.random.default_rng(0), 0, 200
    for _ in range(draws):
        totals, canaries = _totals(rng, 1.0, 1.0)
        alarms += check_mechanism(totals, canaries, 1.0, 1.0).violated
    assert alarms <= binom.isf(1e-6, draws, 0.05)


@pytest.mark.parametrize(
    ("noise", "clip", "least", "violated"),
    [
        (1.2, 0.3, 1.1, False),
        (0.9, 0.3, 1.1, True),
        (1.2, 0.3, 0.9, True),
        (1.2, 0.6, 1.1, True),  # longer than the half of the rounds in which it may be
        (np.nan, 0.3, 1.1, True),
        (1.2, np.nan, 1.1, True),
        (1.2, 0.3, np.nan, True),
    ],
)
def test_t1_each_of_the_three_limits_is_a_violation_by_itself(noise, clip, least, violated):
    assert Conformance(noise, clip, 0.95, least, sample_rate=0.5).violated is violated


def test_half_the_noise_and_a_missing_clip_are_found_every_time() -> None:
    rng = np.random.default_rng(1)
    for _ in range(10):
        totals, canaries = _totals(rng, 1.0, 0.5)
        assert check_mechanism(totals, canaries, 1.0, 1.0).noise_ratio < 1
        totals, canaries = _totals(rng, 10.0, 1.0)
        assert check_mechanism(totals, canaries, 1.0, 1.0).clip_ratio > 1
    with pytest.raises(ConfigError, match="at least 2 planted"):
        one_kind = Canaries(canaries.directions, np.ones(COUNT, dtype=bool))
        check_mechanism(totals, one_kind, 1.0, 1.0)


@pytest.mark.parametrize("z", [0.6, 3.7])
def test_a_profile_of_a_gaussian_is_its_trade_off(z: float) -> None:
    profile = privacy_profile([(dp_accounting.GaussianDpEvent(z), 1)])
    exact, ours = gaussian_inverse(1 / z), profile_inverse(profile)
    for rho in (0.01, 0.1, 0.5, 0.9):
        assert ours(rho) <= exact(rho) * 1.001  # never claims more than the mechanism holds
        assert ours(rho) == pytest.approx(exact(rho), rel=0.05)


def test_a_profile_of_skellam_noise_holds_what_the_ledger_says() -> None:
    mechanism = plan_skellam(1.0, 3.0, 1000, 8, 10)
    profile = privacy_profile([(mechanism.event(), 2)])
    assert min(delta for _, delta in profile) == pytest.approx(1e-9)
    assert profile[-1][0] == pytest.approx(epsilon([(mechanism.event(), 2)], 1e-9), rel=1e-6)
    assert [e for e, _ in profile] == sorted(e for e, _ in profile)
    assert [d for _, d in profile] == sorted((d for _, d in profile), reverse=True)


def test_halved_noise_is_refuted_by_a_bound_that_assumes_nothing_of_the_mechanism() -> None:
    """At ε = 1 with 10,000 canaries: power 1 in 40 draws; honest ones pass at 95 %."""
    event = GaussianMechanism(1.0, 3.73).event()
    claim = Claim(epsilon([(event, 1)], 1e-5), 1e-5, profile=privacy_profile([(event, 1)]))
    rng = np.random.default_rng(3)
    inside = rng.random(10_000) < 0.5
    noise = rng.normal(size=10_000)
    honest = AuditResult(inside + 3.73 * noise, inside, claimed=claim)
    halved = AuditResult(inside + 3.73 / 2 * noise, inside, claimed=claim)
    assert honest.refuted is False
    assert halved.profile_refuted
    assert halved.refuted
    assert "profile" not in halved.to_dict()["claimed"]


def test_a_profile_that_holds_is_refuted_no_more_often_than_said() -> None:
    """A test at its nominal 5 % fails here with chance 1e-6."""
    profile = privacy_profile([(dp_accounting.GaussianDpEvent(1.0), 1)])
    rng, alarms, draws = np.random.default_rng(4), 0, 100
    for _ in range(draws):
        inside = rng.random(300) < 0.5
        alarms += refutes_profile(inside + rng.normal(size=300), inside, profile, 0.05)
    assert alarms <= binom.isf(1e-6, draws, 0.05)


def test_exposure_of_planted_and_held_out_is_alike_where_nothing_was_learned() -> None:
    rng = np.random.default_rng(0)
    planted = rng.random(400) < 0.5
    inside, outside = exposures(rng.normal(size=400), planted)
    assert mean_difference(inside, outside, 1e-3).covers(0.0)
    inside, outside = exposures(rng.normal(size=400) + 4 * planted, planted)
    assert mean_difference(inside, outside).low > 3
    assert len(inside) == planted.sum()
