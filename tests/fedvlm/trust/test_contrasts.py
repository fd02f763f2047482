"""Contrasts keep their false-alarm rate, and find what is there."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fedvlm.errors import ConfigError
from fedvlm.trust.contrasts import (
    bootstrap,
    holm,
    mean_estimate,
    over_seeds,
    paired,
    sign_flip_p,
    tost,
    unpaired,
)
from fedvlm.trust.estimate import Estimate, UnresolvedError
from fedvlm.trust.fairness import gaps_to


def _five_equal_groups(rng, concepts):
    """Right or wrong, of five groups that are treated alike; concepts differ in difficulty."""
    difficulty = rng.beta(2, 2, concepts)
    values = (rng.random((5, concepts)) < difficulty).astype(float)
    groups = np.repeat(np.arange(5), concepts)
    return values.reshape(-1), groups, np.tile(np.arange(concepts), 5)


def _false_alarms(draws, concepts):
    alarms = 0
    for seed in range(draws):
        rng = np.random.default_rng(seed)
        found = gaps_to(*_five_equal_groups(rng, concepts), 0, rng)
        alarms += any(p <= 0.05 for _, p in found.values())
    return alarms / draws


def test_five_equal_groups_raise_few_alarms():
    """40 draws: P(more than 6 | rate 5 %) = 0.3 %."""
    assert _false_alarms(40, 60) <= 6 / 40


@pytest.mark.slow
def test_five_equal_groups_raise_at_most_six_percent_of_false_alarms():
    assert _false_alarms(400, 200) <= 0.06


def test_a_gap_is_found_with_its_sign():
    rng = np.random.default_rng(0)
    values, groups, concepts = _five_equal_groups(rng, 200)
    values = np.where((groups == 3) & (rng.random(len(values)) < 0.5), 0.0, values)
    found = gaps_to(values, groups, concepts, 0, rng)
    gap, p = found["3"]
    assert gap.high < 0
    assert p < 0.01
    assert all(found[name][1] > 0.05 for name in ("1", "2", "4"))


@given(st.lists(st.floats(0, 1), min_size=1, max_size=8))
def test_holm_is_between_the_p_and_bonferroni(values):
    given_p = {str(n): p for n, p in enumerate(values)}
    for name, adjusted in holm(given_p).items():
        assert given_p[name] <= adjusted <= min(1.0, len(values) * given_p[name]) or (
            adjusted >= given_p[name]
        )
    ordered = sorted(given_p, key=lambda name: given_p[name])
    found = holm(given_p)
    assert [found[n] for n in ordered] == sorted(found.values())


def test_sign_flip_p_of_few_pairs_is_exact_within_its_draws():
    # All 8 signings of three equal differences: 2 of them are as far from 0.
    p = sign_flip_p([1.0, 1.0, 1.0], np.random.default_rng(0), draws=20_000)
    assert p == pytest.approx(0.25, abs=0.01)


def test_paired_takes_concepts_both_have_and_needs_some():
    rng = np.random.default_rng(0)
    found = paired(([1.0, 2.0, 9.0], [0, 1, 7]), ([0.0, 1.0], [0, 1]), rng)
    assert found.value == 1.0
    assert not found.resolved
    with pytest.raises(UnresolvedError, match="share no concept"):
        paired(([1.0], [0]), ([1.0], [1]), rng)


def test_an_interval_covers_the_truth_as_often_as_it_says():
    covered = 0
    for seed in range(300):
        rng = np.random.default_rng(seed)
        shift = rng.normal(0, 1, 40)
        values = 0.3 + np.repeat(shift, 5) + rng.normal(0, 1, 200)
        one = mean_estimate(values, np.repeat(np.arange(40), 5))
        covered += one.low <= 0.3 <= one.high
    assert 0.92 <= covered / 300 <= 0.98


def test_rows_as_if_alone_would_not_cover():
    """The same data with every row its own cluster is far too sure."""
    covered = 0
    for seed in range(200):
        rng = np.random.default_rng(seed)
        values = 0.3 + np.repeat(rng.normal(0, 1, 40), 5) + rng.normal(0, 0.2, 200)
        one = mean_estimate(values, np.arange(200))
        covered += one.low <= 0.3 <= one.high
    assert covered / 200 < 0.85


def test_bootstrap_of_a_mean_agrees_with_t():
    rng = np.random.default_rng(0)
    values, clusters = rng.normal(0, 1, 500), np.repeat(np.arange(100), 5)
    one, other = (
        mean_estimate(values, clusters),
        bootstrap(lambda rows: float(values[rows].mean()), clusters, rng, 1000),
    )
    assert other.value == pytest.approx(one.value)
    assert (other.high - other.low) == pytest.approx(one.high - one.low, rel=0.15)


def test_seeds_that_differ_widen_the_interval():
    rng = np.random.default_rng(0)
    by_concept = rng.normal(0.1, 0.1, 200)
    same = [dict(enumerate(by_concept)) for _ in range(3)]
    apart = [dict(enumerate(by_concept + shift)) for shift in (-0.2, 0.0, 0.2)]
    one, other = over_seeds(same, rng), over_seeds(apart, rng)
    assert one.value == pytest.approx(other.value)
    # Half-width of a mean of three seeds of spread 0.2: about 1.96 · 0.2 / √3 = 0.23.
    assert one.high - one.low < 0.05
    assert 0.3 < other.high - other.low < 0.6


def test_seeds_that_draw_their_own_concepts_are_joined():
    """Three seeds of 60 of 400 concepts share some; the interval holds the mean of all of them.

    100 draws, nominal 5 % above or below: P(more than 12 | 5 %) = 0.1 %.
    """
    missed = 0
    for seed in range(100):
        rng = np.random.default_rng(seed)
        truth = rng.normal(0.1, 0.3, 400)
        truth -= truth.mean() - 0.1
        moved = rng.normal(0, 0.02, 3)
        drawn = [
            {int(key): truth[key] + shift for key in rng.permutation(400)[:60]} for shift in moved
        ]
        found = over_seeds(drawn, rng, draws=400)
        assert (found.rows, found.clusters) == (180, 60)
        missed += not found.low <= 0.1 <= found.high
    assert missed <= 12
    with pytest.raises(UnresolvedError, match="no concept"):
        over_seeds([{1: 0.5}, {}], np.random.default_rng(0))


def test_equivalence_is_not_the_absence_of_a_difference():
    rng = np.random.default_rng(0)
    wide = tost(rng.normal(0, 1, 20), margin=0.1)
    near = tost(rng.normal(0, 0.1, 400), margin=0.05)
    far = tost(rng.normal(0.1, 0.1, 400), margin=0.05)
    assert (wide.equivalent, near.equivalent, far.equivalent) == (False, True, False)
    assert tost([0.0, 0.0], 0.01).equivalent
    with pytest.raises(ConfigError, match="margin above 0"):
        tost([0.0, 0.0], 0.0)


def test_wrong_equivalence_at_the_margin_is_at_most_five_percent():
    yes = 0
    for seed in range(400):
        rng = np.random.default_rng(seed)
        yes += tost(rng.normal(0.05, 0.1, 100), margin=0.05).equivalent
    assert yes / 400 <= 0.08  # 5 % ± three standard errors of 1.1 %


def test_a_number_of_nineteen_rows_is_never_told():
    one = Estimate(0.5, 0.4, 0.6, rows=19, clusters=19)
    assert str(one) == "unresolved (19 of 20 needed)"
    assert one.to_dict()["value"] is None
    assert "0.5" in str(Estimate(0.5, 0.4, 0.6, rows=20, clusters=20))


def test_welch_is_used_where_nothing_is_paired():
    rng = np.random.default_rng(0)
    found = unpaired((rng.normal(1, 1, 50), np.arange(50)), (rng.normal(0, 1, 60), np.arange(60)))
    assert found.low > 0.3
    assert found.high < 1.7


def test_what_is_not_a_number_gives_no_estimate():
    with pytest.raises(UnresolvedError, match="not all finite"):
        mean_estimate([np.nan, 1.0], [0, 1])
