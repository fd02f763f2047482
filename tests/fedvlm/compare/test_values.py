"""From measurements to columns: gains paired, bounds at the claim's own unit, seeds joined."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fedvlm.compare import values
from fedvlm.leakage.vantage import Vantage
from fedvlm.reporting.comparison import Cell


def utility_of(run, zero):
    return {
        "accuracy": {"value": float(np.mean(run)), "low": 0.0, "high": 1.0},
        "by_concept": {
            name: {str(k): float(v) for k, v in enumerate(of)}
            for name, of in (("run", run), ("zero_shot", zero))
        },
    }


def _world(share, concepts=200, seed=0):
    rng = np.random.default_rng(seed)
    zero = rng.uniform(0.1, 0.4, concepts)
    plain = zero + rng.uniform(0.1, 0.5, concepts)
    return utility_of(zero + share * (plain - zero), zero), utility_of(plain, zero)


@settings(deadline=None, max_examples=40)
@given(st.floats(-0.5, 1.5))
def test_a_known_share_of_the_gain_is_found_within_its_interval(share):
    found = values.gain_kept(*_world(share), itself=False)
    assert found.value == pytest.approx(share, abs=1e-9)
    assert found.low - 1e-9 <= share <= found.high + 1e-9


def test_a_noisy_share_has_an_interval_that_tells_it_from_all_and_from_none():
    rng = np.random.default_rng(1)
    run, plain = _world(0.5)
    noisy = {k: v + rng.normal(0, 0.1) for k, v in run["by_concept"]["run"].items()}
    run["by_concept"]["run"] = noisy
    found = values.gain_kept(run, plain, itself=False)
    assert 0.3 < found.low < found.value < found.high < 0.7


def test_where_there_is_no_gain_no_share_of_it_is_told():
    flat = utility_of(np.full(50, 0.3), np.full(50, 0.3))
    assert "can't be told from none" in values.gain_kept(flat, flat, itself=False).failed
    assert "`none` isn't there" in values.gain_kept(flat, None, itself=False).failed


def _attacked(vantages, lower=1.5, refuted=False):
    rate = {"fpr": 0.01, "tpr": 0.2, "low": 0.1, "high": 0.3, "resolved": True}
    best = {
        "auc": 0.8, "auc_low": 0.7, "auc_high": 0.9, "attack": "lira", "tpr_at_fpr": [rate],
    }  # fmt: skip
    return {
        "best": {str(v): best for v in vantages},
        "epsilon_lower": {str(v): lower for v in vantages},
        "absent": {"V1": "the server saw no single update"},
        "refuted": refuted,
    }


def test_a_vantage_that_saw_nothing_is_told_and_not_left_out():
    found = values.attack_cells(_attacked([v for v in Vantage if v != Vantage.V1]))
    assert found["auc_V1"].value == found["tpr_V1"].value == "not seen"
    assert (found["auc_V2"].value, found["tpr_V2"].value) == (0.8, 0.2)
    assert found["auc_V2"].note == "lira"
    assert len(found) == 2 * len(Vantage)


def test_a_claim_per_client_is_never_held_against_attacks_on_examples():
    privacy = {"unit": "client", "epsilon": 8.0, "delta": 1e-2}
    found = values.epsilon_cells(privacy, _attacked(Vantage, lower=9.9), None)
    assert found["epsilon_audited"] is None
    row = {
        "claimed": {"epsilon": 8.0}, "epsilon_lower": 2.0, "members": 30, "non_members": 34,
        "vantage": "V2", "refuted": False, "no_bound": None,
    }  # fmt: skip
    outside = row | {"claimed": None, "epsilon_lower": 7.0, "vantage": "V1"}
    planted = {"rows": [outside, row], "conformance": {"violated": False}}
    found = values.epsilon_cells(privacy, _attacked(Vantage, lower=9.9), planted)
    assert found["epsilon_audited"].value == 2.0  # V1 sees updates before the noise: not covered
    assert "64 canaries" in found["epsilon_audited"].note
    broken = planted | {"conformance": {"violated": True}}
    assert "REFUTED" in values.epsilon_cells(privacy, None, broken)["epsilon_audited"].note


def test_a_claim_per_example_is_held_against_the_largest_bound():
    privacy = {"unit": "example", "epsilon": 1.0, "delta": 1e-3}
    found = values.epsilon_cells(privacy, _attacked(Vantage, 3.0, refuted=True), None)
    assert found["epsilon"].value == 1.0
    assert found["epsilon_audited"].value == 3.0
    assert "REFUTED" in found["epsilon_audited"].note


def test_a_trust_measure_without_a_number_says_why():
    found = values.trust_cells(
        {
            "tone_gap": {"why_not": "no tones"},
            "backdoor": {"after": {"value": None, "unresolved": "unresolved (3 of 20 needed)"}},
            "overconfidence": {
                "after": {"value": -0.4, "low": -0.5, "high": -0.3},
                "change": {"value": 0.1, "low": 0.05, "high": 0.15},
            },
        }
    )
    assert found["tone_gap"].failed == "no tones"
    assert "3 of 20" in found["backdoor"].failed
    assert "+0.100 [+0.050, +0.150]" in found["overconfidence"].note


@settings(deadline=None, max_examples=40)
@given(st.lists(st.floats(0, 1), min_size=2, max_size=6))
def test_seeds_are_joined_by_their_mean_with_an_interval_that_holds_it(numbers):
    found = values.over_seeds("accuracy", [Cell(each) for each in numbers])
    assert found.value == pytest.approx(np.mean(numbers))
    if np.ptp(numbers):
        assert found.low <= found.value <= found.high


def test_a_seed_that_failed_is_counted_and_one_seed_stays_as_it_is():
    one = Cell(0.5, 0.4, 0.6, note="noto")
    assert values.over_seeds("accuracy", [one]) is one
    found = values.over_seeds("accuracy", [one, Cell(failed="no"), Cell(0.7)])
    assert "2 of 3 seeds" in found.note
    assert values.over_seeds("accuracy", [Cell(failed="no"), None]).failed == "no"
    largest = values.over_seeds("epsilon_audited", [Cell(0.5), Cell(2.0, note="at V4")])
    assert (largest.value, largest.note) == (2.0, "at V4")
