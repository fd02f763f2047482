"""Scores of answers against their definitions, written down a second time without arrays."""

import itertools
import math
import zlib

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fedvlm.errors import ConfigError
from fedvlm.leakage import text_scores as text

ROWS = st.lists(st.lists(st.floats(-30, -1e-6), min_size=1, max_size=12), min_size=1, max_size=6)


def padded(rows):
    out = np.full((len(rows), max(map(len, rows))), np.nan)
    for place, row in enumerate(rows):
        out[place, : len(row)] = row
    return out


@given(ROWS, st.floats(0.01, 1))
def test_min_k_is_the_mean_of_the_least_likely_tokens(rows, share):
    found = text.min_k(padded(rows), share)
    for row, score in zip(rows, found, strict=True):
        taken = sorted(row)[: max(1, math.floor(share * len(row)))]
        assert score == pytest.approx(sum(taken) / len(taken))


@given(ROWS)
def test_the_whole_of_min_k_is_the_mean_log_probability(rows):
    values = padded(rows)
    assert text.min_k(values, 1.0) == pytest.approx(text.mean_log_probability(values))


@given(ROWS, st.floats(-9, 0), st.floats(0.1, 5), st.floats(0.01, 1))
def test_min_k_plus_plus_normalises_each_token(rows, mean, deviation, share):
    values = padded(rows)
    found = text.min_k_plus_plus(
        values, np.full(values.shape, mean), np.full(values.shape, deviation), share
    )
    scaled = [[(one - mean) / deviation for one in row] for row in rows]
    assert found == pytest.approx(text.min_k(padded(scaled), share))


def test_min_k_plus_plus_of_a_distribution():
    """A token as likely as the distribution expects scores 0; a sure one above."""
    p = np.array([0.5, 0.25, 0.25])
    log = np.log(p)
    mean = (p * log).sum()
    deviation = math.sqrt((p * log**2).sum() - mean**2)
    found = text.min_k_plus_plus(
        np.array([[log[0]], [mean]]), np.full((2, 1), mean), np.full((2, 1), deviation), 1.0
    )
    assert found[0] > 0
    assert found[1] == pytest.approx(0)


@given(st.lists(st.floats(-8, 8), min_size=2, max_size=9))
def test_renyi_entropies_fall_with_their_order(logits):
    values = np.array([logits])
    log = values - np.log(np.exp(values).sum())
    orders = (0.5, 1.0, 2.0, math.inf)
    found = [float(text.renyi_entropy(log, order)[0]) for order in orders]
    assert all(one >= two - 1e-9 for one, two in itertools.pairwise(found))
    shannon = -sum(math.exp(one) * one for one in log[0])
    assert found[1] == pytest.approx(shannon, abs=1e-9)
    assert found[2] == pytest.approx(-math.log(sum(math.exp(2 * one) for one in log[0])))
    assert found[0] <= math.log(len(logits)) + 1e-9


def test_max_renyi_takes_the_largest_entropies():
    values = np.array([[0.1, 3.0, 2.0, 0.2], [1.0, 1.0, np.nan, np.nan]])
    assert text.max_renyi(values, 0.5) == pytest.approx([-2.5, -1.0])
    assert text.max_renyi(values, 0) == pytest.approx([-3.0, -1.0])


def test_zlib_ratio_is_the_loss_over_the_compressed_length():
    values = padded([[-1.0, -2.0, -3.0], [-6.0]])
    answers = ["a" * 40, "q8#xzv"]
    found = text.zlib_ratio(values, answers)
    sizes = [len(zlib.compress(one.encode())) for one in answers]
    assert found == pytest.approx([-6 / sizes[0], -6 / sizes[1]])


def test_exposure_ranks_among_canaries_that_were_not_planted():
    reference = np.arange(-10.0, -2.0)  # eight
    assert text.exposure(np.array([-1.0]), reference) == pytest.approx([math.log2(9)])
    assert text.exposure(np.array([-99.0]), reference) == pytest.approx([0.0])
    assert text.exposure(np.array([-2.5]), reference) == pytest.approx([math.log2(9)])
    assert text.exposure(np.array([-3.0]), reference) == pytest.approx([math.log2(9 / 2)])


def test_exposure_of_what_was_not_planted_is_small():
    """Its mean is at most log2(e) where canaries are drawn alike; a planted one's stands out."""
    rng = np.random.default_rng(0)
    found = np.concatenate(
        [text.exposure(rng.normal(size=20), rng.normal(size=200)) for _ in range(50)]
    )
    assert found.mean() < math.log2(math.e) + 0.1
    assert text.exposure(np.array([9.0]), rng.normal(size=200))[0] == pytest.approx(math.log2(201))


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_what_is_not_finite_is_refused(bad):
    values = np.full((2, 3), -1.0)
    values[1] = bad
    with pytest.raises(ConfigError):
        text.min_k(values)
    with pytest.raises(ConfigError):
        text.exposure(np.array([bad]), np.zeros(3))


def test_wrong_shares_and_lengths_are_refused():
    values = np.full((2, 3), -1.0)
    for share in (0.0, -0.5, 1.5, float("nan")):
        with pytest.raises(ConfigError):
            text.min_k(values, share)
    with pytest.raises(ConfigError):
        text.zlib_ratio(values, ["one"])
    with pytest.raises(ConfigError):
        text.exposure(np.zeros(2), np.zeros(0))
