"""Accounting against the reference numbers, and the mechanisms that feed it."""

import math
import time

import dp_accounting
import numpy as np
import pytest
from scipy import stats

from fedvlm.errors import ConfigError, IntegrityError
from fedvlm.privacy import accounting
from fedvlm.privacy.accounting import (
    delta_at,
    epsilon,
    epsilon_and_method,
    noise_multiplier_for,
)
from fedvlm.privacy.analytic import gaussian_delta, gaussian_epsilon
from fedvlm.privacy.events import ORDERS, RenyiEvent
from fedvlm.privacy.mechanisms import GaussianMechanism, Relation
from fedvlm.privacy.noise import SecureNoise
from fedvlm.privacy.planning import plan

# (q, σ, T, ε by RDP, ε by PLD) at δ = 1e-5, made with dp-accounting 0.6.0; Opacus' PRV agrees
# with PLD to 0.011 in every row.
REFERENCE = [
    (0.01, 1.1, 10_000, 5.632, 5.193),
    (256 / 60_000, 1.1, 14_100, 2.600, 2.385),
    (0.1, 1.0, 100, 7.904, 7.047),
    (1.0, 5.0, 100, 10.726, 9.997),
]


@pytest.mark.parametrize(("rate", "steps"), [(1.0, 20), (0.1, 50)])
def test_t1_a_plan_is_for_all_its_steps_and_uses_its_budget(rate, steps):
    made = plan(delta=1e-5, sample_rate=rate, steps=steps, target_epsilon=3.0)
    assert 2.9 < made.epsilon <= 3.0


@pytest.mark.parametrize(("rate", "sigma", "steps", "by_rdp", "by_pld"), REFERENCE)
def test_reference_table(rate, sigma, steps, by_rdp, by_pld):
    event = GaussianMechanism(1.0, sigma, rate).event()
    assert epsilon([(event, steps)], 1e-5, "pld") == pytest.approx(by_pld, abs=0.02)
    assert epsilon([(event, steps)], 1e-5) <= epsilon([(event, steps)], 1e-5, "pld")
    assert epsilon([(event, steps)], 1e-5, "rdp") == pytest.approx(by_rdp, abs=0.02)


@pytest.mark.parametrize(
    ("rate", "steps", "delta", "expected"),
    [
        pytest.param(0.1, 100, 1e-4, {1: 3.38, 3: 1.50, 8: 0.86}, marks=pytest.mark.slow),
        (1.0, 20, 1e-2, {1: 8.40, 3: 3.69, 8: 1.83}),
        pytest.param(64 / 2000, 310, 1e-5, {1: 2.30, 3: 1.11, 8: 0.71}, marks=pytest.mark.slow),
    ],
)
def test_planned_noise(rate, steps, delta, expected):
    for target, sigma in expected.items():
        found = noise_multiplier_for(
            lambda z: GaussianMechanism(1.0, z, rate).event(), steps, target, delta
        )
        assert found == pytest.approx(sigma, rel=0.01)
        event = GaussianMechanism(1.0, found, rate).event()
        assert target * 0.998 <= epsilon([(event, steps)], delta) <= target


def test_the_analytic_gaussian_is_an_oracle():
    # Balle and Wang 2018, theorem 8: δ(ε) of one Gaussian release in closed form.
    z, target = 1.3, 1e-5
    got = epsilon([(dp_accounting.GaussianDpEvent(z), 1)], target)

    def delta(e):
        return stats.norm.cdf(0.5 / z - e * z) - np.exp(e) * stats.norm.cdf(-0.5 / z - e * z)

    assert delta(got) <= target
    assert delta(got - 1e-4) > target


def test_sampling_amplifies():
    full = epsilon([(GaussianMechanism(1, 5.0).event(), 50)], 1e-5)
    sampled = epsilon([(GaussianMechanism(1, 5.0, 0.2).event(), 50)], 1e-5)
    assert sampled < full / 2


def test_events_merge_and_nothing_costs_nothing():
    event = GaussianMechanism(1, 5.0).event()
    assert epsilon([(event, 2), (event, 3)], 1e-5) == epsilon([(event, 5)], 1e-5)
    assert epsilon([], 1e-5) == epsilon([(event, 0)], 1e-5) == 0


def test_a_renyi_event_goes_to_rdp_only():
    z = 4.0
    event = RenyiEvent(tuple(a / (2 * z * z) for a in ORDERS), "gaussian by hand")
    same = epsilon([(dp_accounting.GaussianDpEvent(z), 20)], 1e-5, "rdp")
    assert epsilon([(event, 20)], 1e-5) == pytest.approx(same, rel=1e-3)
    mixed = [(event, 10), (dp_accounting.GaussianDpEvent(z), 10)]
    assert epsilon(mixed, 1e-5) == pytest.approx(same, rel=1e-3)
    with pytest.raises(ConfigError, match="Rényi"):
        epsilon(mixed, 1e-5, "pld")


def test_unknown_events_are_refused():
    with pytest.raises(dp_accounting.UnsupportedEventError):
        epsilon([(dp_accounting.ZCDpEvent(1.0, 0.0), 1)], 1e-5)


def test_replacement_is_accounted_relative_to_its_own_sensitivity():
    # Replacing a unit moves a sum of clipped vectors by 2C: noise z·2C costs what z·C costs under
    # removal. dp-accounting's RDP would take z relative to 2C and its PLD relative to C.
    replaced = GaussianMechanism(2.0, 1.0, relation=Relation.REPLACE)
    removed = GaussianMechanism(1.0, 1.0)
    assert replaced.std == 2 * removed.std
    assert replaced.event() == removed.event()


@pytest.mark.parametrize(
    "bad",
    [
        {"sensitivity": 0.0, "noise_multiplier": 1.0},
        {"sensitivity": float("nan"), "noise_multiplier": 1.0},
        {"sensitivity": 1.0, "noise_multiplier": 0.0},
        {"sensitivity": 1.0, "noise_multiplier": float("inf")},
        {"sensitivity": 1.0, "noise_multiplier": 1.0, "sample_rate": 0.0},
        {"sensitivity": 1.0, "noise_multiplier": 1.0, "sample_rate": 1.1},
    ],
)
def test_mechanisms_refuse_nonsense(bad):
    with pytest.raises(ConfigError):
        GaussianMechanism(**bad)


def test_sampled_replacement_is_refused():
    with pytest.raises(ConfigError, match="add-or-remove"):
        GaussianMechanism(1.0, 1.0, 0.5, Relation.REPLACE)


@pytest.mark.parametrize("delta", [0.0, 1.0, -1e-5, float("nan")])
def test_delta_out_of_range(delta):
    with pytest.raises(ConfigError):
        epsilon([(dp_accounting.GaussianDpEvent(1.0), 1)], delta)


def test_a_sum_that_is_not_finite_is_not_released():
    for value in (np.nan, np.inf):
        with pytest.raises(IntegrityError):
            GaussianMechanism(1.0, 1.0).release(np.array([0.0, value]), SecureNoise())


def test_d13_the_exact_gaussian_is_exact_where_digits_are_few():
    """D13: against 60 digits, from an ε of a millionth to thousands; never below."""
    mpmath = pytest.importorskip("mpmath")
    with mpmath.workdps(60):
        for mu in (1e-6, 1 / 459, 0.3, 4.0, 60.0):
            for shift in (0.0, 0.5, 3.0, 6.0):
                e = max(mu * mu / 2 + shift * mu - 1e-3 * mu, 0.0)
                m, exact_e = mpmath.mpf(mu), mpmath.mpf(e)
                exact = mpmath.ncdf(m / 2 - exact_e / m) - mpmath.exp(exact_e) * mpmath.ncdf(
                    -m / 2 - exact_e / m
                )
                got = float(gaussian_delta(mu, e))
                assert exact <= got <= float(exact) * (1 + 1e-5)
                if got < 1:
                    found = gaussian_epsilon(mu, got)
                    assert found <= e * (1 + 1e-4) + 1e-7 * mu


@pytest.mark.parametrize(
    ("rate", "steps", "target", "delta", "expected"),
    [
        (1.0, 1, 0.01, 1e-9, 459),
        (1.0, 1, 1000.0, 1e-5, 0.0246),
        (1.0, 10**7, 0.01, 1e-9, 459 * 10**3.5),
        (1.0, 1, 1.0, 0.5, 0.507),
        (0.1, 100, 0.01, 1e-9, None),
        (0.1, 100, 1000.0, 1e-5, None),
        (0.2, 50, 1e6, 1e-5, None),
        (0.1, 100, 3.0, 0.5, None),
        (0.5, 3, 2.0, 0.8, None),
    ],
)
def test_d13_any_epsilon_is_planned_in_seconds(rate, steps, target, delta, expected):
    """D13, D8, N5: what a user may type: ε from a hundredth to a million, δ to a half and more."""

    def event(z):
        return GaussianMechanism(1.0, z, rate).event()

    started = time.process_time()
    found = noise_multiplier_for(event, steps, target, delta)
    assert time.process_time() - started < 20
    assert epsilon([(event(found), steps)], delta) <= target
    if found > 1e-4:
        assert epsilon([(event(found / 1.01), steps)], delta) >= target * 0.999
    if expected is not None:
        assert found == pytest.approx(expected, rel=0.01)


@pytest.mark.parametrize("z", [0.05, 0.01])
def test_d8_little_noise_is_accounted_for_in_seconds(z):
    """D8: 90 s and 2 GB at z = 0.05; here the coins of a unit show anyway."""
    started = time.process_time()
    got = epsilon([(GaussianMechanism(1.0, z, 0.1).event(), 100)], 1e-5)
    assert time.process_time() - started < 5
    # With 10 hits expected of 100, whoever sees the coins knows of 10 to 30 Gaussian releases.
    assert gaussian_epsilon(math.sqrt(10) / z, 1e-2) * 0.9 < got
    assert got <= gaussian_epsilon(math.sqrt(30) / z, 1e-6)


def test_d13_the_least_bound_is_taken():
    """D13: 10^7 steps at q = 1e-4, where PLD's rounding is worth more than δ."""
    event = GaussianMechanism(1.0, 4.0, 1e-4).event()
    got, by = epsilon_and_method([(event, 10**7)], 1e-9)
    assert by in ("rdp", "pld")
    assert got == pytest.approx(0.43, abs=0.03)
    for delta in (1e-3, 1e-6):
        least = epsilon([(event, 1000)], delta)
        for method in ("pld", "rdp"):
            assert least <= epsilon([(event, 1000)], delta, method)


def test_t1_what_a_distribution_rounds_away_is_taken_off_delta(monkeypatch):
    """A PLD's own δ may be too small by `spare_delta`: it is asked for that much less."""
    asked = []

    class Distribution:
        def get_epsilon_for_delta(self, delta):
            asked.append(delta)
            return 1.0

    monkeypatch.setattr(accounting, "loss_distribution", lambda *_: Distribution())
    monkeypatch.setattr(accounting, "spare_delta", lambda _: 9e-8)
    assert epsilon([(GaussianMechanism(1.0, 1.7, 0.31).event(), 7)], 1e-6, "pld") == 1.0
    assert asked == [1e-6 - 9e-8]
    monkeypatch.setattr(accounting, "spare_delta", lambda _: 2e-7)
    assert epsilon([(GaussianMechanism(1.0, 1.8, 0.31).event(), 7)], 1e-6, "pld") == math.inf


def test_sampled_bounds_are_never_below_the_truth():
    # One release has a closed form: δ(ε) = q·δ_z(log(1 + (e^ε − 1)/q)) under removal.
    for rate in (0.05, 0.5):
        for z in (0.5, 1.0, 3.0):
            event = GaussianMechanism(1.0, z, rate).event()
            for delta in (1e-2, 1e-4):
                got = epsilon([(event, 1)], delta)
                if got == 0:
                    continue
                inner = math.log1p(math.expm1(got) / rate)
                truth = rate * (
                    stats.norm.cdf(0.5 / z - inner * z)
                    - math.exp(inner) * stats.norm.cdf(-0.5 / z - inner * z)
                )
                assert truth <= delta * (1 + 1e-9)
                assert truth >= delta * 0.97


def test_delta_at_is_the_other_way_round():
    for history in (
        [(GaussianMechanism(1.0, 2.0).event(), 3)],
        [(GaussianMechanism(1.0, 1.0, 0.2).event(), 10)],
    ):
        at = epsilon(history, 1e-4)
        assert delta_at(history, at) == pytest.approx(1e-4, rel=0.02)
        assert delta_at(history, 0.5 * at) > 1e-4


def test_events_of_several_kinds_compose():
    sampled, whole = GaussianMechanism(1.0, 1.0, 0.2).event(), GaussianMechanism(1.0, 4.0).event()
    got = epsilon([(sampled, 10), (whole, 4)], 1e-5)
    assert epsilon([(sampled, 10)], 1e-5) < got
    assert got < epsilon([(sampled, 10)], 5e-6) + epsilon([(whole, 4)], 5e-6)
    other = GaussianMechanism(1.0, 2.0, 0.1).event()
    assert got < epsilon([(sampled, 10), (whole, 4), (other, 5)], 1e-5)


def test_no_noise_has_no_guarantee():
    assert epsilon([(dp_accounting.GaussianDpEvent(0.0), 1)], 1e-5) == math.inf
