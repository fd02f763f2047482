"""Rates keep an interval where nothing varies: no refusal in 40 is not "never"."""

import numpy as np
import pytest
from scipy.stats import binom

from fedvlm.trust.estimate import UnresolvedError
from fedvlm.trust.rates import gap_reading, rate_reading
from fedvlm.trust.readings import change_of


@pytest.mark.parametrize("n", [20, 40, 150])
def test_nothing_seen_in_n_still_allows_what_would_often_be_missed(n):
    one = rate_reading(np.zeros(n), np.arange(n)).estimate
    assert one.low == one.value == 0
    # At the upper limit, and at any rate above it, seeing nothing has a chance of at most 2.5 %.
    assert binom.pmf(0, n, one.high) == pytest.approx(0.025)
    other = rate_reading(np.ones(n), np.arange(n)).estimate
    assert (other.low, other.high) == pytest.approx((1 - one.high, 1.0))


def test_an_interval_of_a_rate_stays_within_it():
    values = np.zeros(30)
    values[0] = 1
    one = rate_reading(values, np.arange(30)).estimate
    assert one.low == 0 < one.value < one.high < 1
    assert rate_reading(1 - values, np.arange(30)).estimate.high == 1


def test_the_interval_is_by_cluster():
    """Ten copies of each row say what one says."""
    rng = np.random.default_rng(0)
    values = (rng.random(40) < 0.5).astype(float)
    once = rate_reading(values, np.arange(40)).estimate
    copies = rate_reading(np.repeat(values, 10), np.repeat(np.arange(40), 10)).estimate
    assert (copies.low, copies.high) == pytest.approx((once.low, once.high))
    assert copies.clusters == 40


def test_two_models_that_never_do_it_differ_by_an_interval_and_not_by_exactly_nothing():
    one = rate_reading(np.zeros(40), np.arange(40))
    change = change_of(one, one, np.random.default_rng(0))
    assert change.low < 0 == change.value < change.high


@pytest.mark.parametrize("chance", [0.02, 0.1, 0.3])
def test_a_gap_of_pairs_that_never_differ_holds_the_truth(chance):
    """95 % of intervals at least hold the true gap, those without a differing pair included."""
    rng, n, held = np.random.default_rng(0), 20, 0
    for _ in range(200):
        first = (rng.random(n) < chance).astype(float)
        found = gap_reading((first, np.arange(n)), (np.zeros(n), np.arange(n)), rng)
        if not first.any():
            held += found.estimate.low <= chance <= found.estimate.high
            assert found.estimate.p == 1
            assert found.by_concept is None
        else:
            held += 1  # Student's interval is another test's subject
    assert held >= 190


def test_pairs_that_always_differ_are_no_certainty_either():
    rows = np.arange(25)
    one = gap_reading((np.ones(25), rows), (np.zeros(25), rows), np.random.default_rng(0)).estimate
    assert one.value == one.high == 1
    assert 0.5 < one.low < 1
    assert one.p < 0.01


def test_no_row_is_no_rate():
    with pytest.raises(UnresolvedError, match="no rows"):
        rate_reading([], [])
