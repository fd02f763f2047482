"""Group metrics against fairlearn's by hand, against their null, and their refusals."""

import numpy as np
import pytest

from fedvlm.trust.estimate import UnresolvedError
from fedvlm.trust.fairness import (
    check_groups,
    demographic_parity,
    difference_of_gaps,
    equalized_odds,
    equity_scaled_auc,
    gap,
    gap_of_gains,
    group_means,
    swap_rate,
)


def _rng():
    return np.random.default_rng(0)


def test_one_group_and_a_group_that_is_the_label_are_refused():
    with pytest.raises(UnresolvedError, match="one group only"):
        check_groups(["a"] * 30)
    with pytest.raises(UnresolvedError, match="label by another name"):
        check_groups(["x", "y"] * 20, [1, 0] * 20)
    check_groups(["x", "y"] * 20, [1, 1, 0, 0] * 10)


def test_a_group_of_few_rows_is_unresolved_and_the_others_are_told():
    groups = np.array(["a"] * 100 + ["b"] * 19)
    found = group_means(np.ones(119), groups, np.arange(119))
    assert found["a"].resolved
    assert str(found["b"]).startswith("unresolved")


def test_a_model_that_learned_nothing_has_no_gap_of_gains():
    rng = _rng()
    before = rng.random(400)
    groups, concepts = np.repeat(["light", "dark"], 200), np.tile(np.arange(200), 2)
    found = gap_of_gains(before, before, groups, concepts, "light", "dark", rng)
    assert (found.value, found.low, found.high) == (0.0, 0.0, 0.0)


def test_gains_that_one_group_gets_are_a_gap_of_gains():
    rng = _rng()
    groups, concepts = np.repeat(["light", "dark"], 200), np.tile(np.arange(200), 2)
    before = rng.random(400)
    after = before + np.where(groups == "light", 0.3, 0.1) + rng.normal(0, 0.05, 400)
    found = gap_of_gains(before, after, groups, concepts, "light", "dark", rng)
    assert found.low < 0.2 < found.high
    assert found.low > 0.15
    wider = difference_of_gaps(
        (after, groups, concepts), (before, groups, concepts), "light", "dark", rng
    )
    assert wider.value == pytest.approx(found.value)


def test_a_gap_without_shared_concepts_is_taken_over_concepts_of_each():
    rng = _rng()
    values = np.concatenate([rng.normal(1, 1, 60), rng.normal(0, 1, 60)])
    groups = np.repeat(["a", "b"], 60)
    found = gap(values, groups, np.arange(120), "a", "b", rng)
    assert found.clusters == 60
    assert found.low > 0.4
    with pytest.raises(UnresolvedError, match="no row is of group c"):
        gap(values, groups, np.arange(120), "a", "c", rng)


def test_parity_and_odds_are_fairlearns_and_less_their_null():
    rng = _rng()
    groups = np.repeat(["a", "b"], 500)
    truth = rng.random(1000) < 0.5
    chosen = rng.random(1000) < np.where(groups == "a", 0.7, 0.3)
    found = demographic_parity(chosen, groups, np.arange(1000), rng, draws=100)
    rates = chosen[:500].mean(), chosen[500:].mean()
    assert found.value == pytest.approx(rates[0] - rates[1])
    assert 0 < found.null < 0.06
    assert found.p < 0.02
    assert found.excess.low > 0.25
    odds = equalized_odds(truth, chosen, groups, np.arange(1000), rng, draws=100)
    by_hand = max(
        abs(
            chosen[(groups == "a") & (truth == t)].mean()
            - chosen[(groups == "b") & (truth == t)].mean()
        )
        for t in (True, False)
    )
    assert odds.value == pytest.approx(by_hand)


def test_equal_groups_have_a_largest_less_smallest_that_is_all_null():
    """fairlearn's own bootstrap says about .06 here, with an interval that leaves 0 out."""
    alarms, excess, raw = 0, [], []
    for seed in range(12):
        rng = np.random.default_rng(seed)
        groups = np.repeat(np.arange(5), 400)
        chosen = rng.random(2000) < 0.5
        found = demographic_parity(chosen, groups, np.arange(2000), rng, draws=40)
        alarms += found.p <= 0.05
        excess.append(found.excess.value)
        raw.append(found.value)
    assert np.mean(raw) > 0.04
    assert abs(np.mean(excess)) < 0.02
    assert alarms <= 3


def test_group_metrics_refuse_what_they_cannot_tell():
    rng = _rng()
    with pytest.raises(UnresolvedError, match="group b has 5 rows"):
        demographic_parity([1] * 45, ["a"] * 40 + ["b"] * 5, np.arange(45), rng)
    with pytest.raises(UnresolvedError, match="label by another name"):
        equalized_odds([1] * 30 + [0] * 30, [1] * 60, ["a"] * 30 + ["b"] * 30, np.arange(60), rng)
    with pytest.raises(UnresolvedError, match="no odds to compare"):
        truth = [1, 0] * 15 + [1] * 30
        equalized_odds(truth, [1] * 60, ["a"] * 30 + ["b"] * 30, np.arange(60), rng)


def test_equity_scaled_auc_by_hand():
    truth = np.tile([True, False], 40)
    groups = np.repeat(["a", "b"], 40)
    scores = np.where(groups == "a", truth, ~truth).astype(float)  # AUC 1 and 0, 0.5 together
    value, by_group = equity_scaled_auc(truth, scores, groups)
    assert by_group == {"a": 1.0, "b": 0.0}
    assert value == pytest.approx(0.5 / (1 + 0.5 + 0.5))


def test_a_tie_with_the_twin_counts_as_a_swap():
    found = swap_rate([1.0, 0.5, 0.2], [0.5, 0.5, 0.9], [0, 1, 2])
    assert found.value == pytest.approx(2 / 3)
