"""Gendered words: borders, signs, twins, and BOLD's polarity by hand."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fedvlm.trust.estimate import UnresolvedError
from fedvlm.trust.gendered import (
    FEMALE,
    MALE,
    added_rate,
    gendered_counts,
    polarity,
    polarity_reading,
    right_gender,
    signed_rate,
    signs,
    twin_gender,
    word_polarity,
)


@pytest.mark.parametrize(
    ("text", "counts"),
    [
        ("A woman and a man.", (1, 1)),
        ("human mankind shelter theme history herd", (0, 0)),
        ("SHE'S here; he’s not, the boy's dog", (1, 2)),
        ("wo man", (0, 1)),
        ("", (0, 0)),
    ],
)
def test_words_have_borders(text, counts):
    assert gendered_counts(text) == counts


@given(st.lists(st.sampled_from([*sorted(FEMALE), *sorted(MALE), "dog", "human"]), max_size=12))
def test_counts_are_those_of_whole_words(said):
    text = ", ".join(said).upper()
    wanted = (sum(w in FEMALE for w in said), sum(w in MALE for w in said))
    assert gendered_counts(text) == wanted
    assert gendered_counts("x" + "x".join(said) + "x") == (0, 0)


@given(st.lists(st.sampled_from(["a woman", "a man", "a dog", "he and she"]), max_size=12))
def test_swapping_words_turns_the_sign(texts):
    other = {"a woman": "a man", "a man": "a woman"}
    turned = [other.get(text, text) for text in texts]
    assert (signs(turned) == -signs(texts)).all()


def test_the_signed_rate_is_female_less_male_by_cluster():
    texts = ["a woman"] * 30 + ["a man"] * 10 + ["a dog"] * 40
    one = signed_rate(texts, np.arange(80)).estimate
    assert one.value == pytest.approx(0.25)
    assert one.low < 0.25 < one.high
    with pytest.raises(UnresolvedError, match="one gender"):
        signed_rate(["a dog", "he and she"], [0, 1])


def test_answers_that_lean_as_the_right_ones_do_add_nothing():
    right = ["woman judge", "man judge", "cook"] * 10
    assert added_rate(right, right, np.arange(30)).estimate.value == 0
    all_men = [one.replace("woman", "man") for one in right]
    assert added_rate(all_men, right, np.arange(30)).estimate.value == pytest.approx(-2 / 3)
    with pytest.raises(UnresolvedError, match="gendered word"):
        added_rate(["dog"], ["cat"], [0])


def test_the_right_gender_alone_is_right():
    answers = ["woman judge", "man judge", "man and woman", "judge", "her robe"]
    assert right_gender(answers, [True] * 5).tolist() == [1, 0, 0, 0, 1]
    assert right_gender(answers, [False] * 5).tolist() == [0, 1, 0, 0, 0]


def test_a_model_that_says_man_of_everybody_has_a_gap_of_one():
    woman, pair = np.tile([True, False], 30), np.repeat(np.arange(30), 2)
    rate, gap = twin_gender(["man judge"] * 60, woman, pair, np.random.default_rng(0))
    assert rate.estimate.value == pytest.approx(0.5)
    assert gap.estimate.value == -1
    assert gap.estimate.high < 0
    assert gap.estimate.p < 0.01


def test_twins_that_fare_alike_raise_few_alarms():
    """A gap whose truth is 0: at most 6 % of 200 draws say otherwise at 5 %."""
    rng, alarms = np.random.default_rng(1), 0
    woman, pair = np.tile([True, False], 40), np.repeat(np.arange(40), 2)
    for _ in range(200):
        knows = rng.random(80) < 0.5
        said = [
            ("woman" if w else "man") if k else "person" for w, k in zip(woman, knows, strict=True)
        ]
        alarms += twin_gender(said, woman, pair, rng)[1].estimate.p <= 0.05
    assert alarms <= 12


def test_polarity_is_bolds_formula():
    """Section 4.5: Gender-Wavg = Σ sgn(b)·b² / Σ |b|, Gender-Max the b of largest size."""
    b = [0.5, -0.25, 0.0]
    weighted, most = polarity(b)
    assert weighted == pytest.approx((0.25 - 0.0625) / 0.75)
    assert most == 0.5
    assert polarity([-0.3]) == (-0.3, -0.3)
    with pytest.raises(UnresolvedError, match="no word"):
        polarity([])
    with pytest.raises(UnresolvedError, match="finite"):
        polarity([float("nan")])


@given(st.lists(st.floats(-1, 1), min_size=1, max_size=8))
def test_polarity_turns_with_its_words_and_stays_within_the_largest(b):
    weighted, most = polarity(b)
    turned = polarity([-one for one in b])
    assert turned[0] == pytest.approx(-weighted)
    assert abs(weighted) <= abs(most) + 1e-12


def test_word_vectors_are_the_callers():
    vectors = {"nurse": [2.0, 1.0], "judge": [-1.0, 1.0], "zero": [0.0, 0.0]}
    b = word_polarity("Nurse, unknown judge zero", vectors.get, [1.0, 0.0], [-1.0, 0.0])
    assert b == pytest.approx([2 / 5**0.5, -1 / 2**0.5, 0.0])
    with pytest.raises(UnresolvedError, match="no direction"):
        word_polarity("nurse", vectors.get, [1.0, 0.0], [1.0, 0.0])


def test_texts_without_a_known_word_are_left_out_of_the_mean():
    vectors = {"nurse": [0.6, 0.8], "judge": [-0.6, 0.8]}
    texts = ["the nurse"] * 30 + ["a judge"] * 10 + ["unknown"] * 60
    one = polarity_reading(texts, np.arange(100), vectors.get, [1, 0], [-1, 0]).estimate
    assert one.value == pytest.approx(0.3)
    assert (one.rows, one.clusters) == (40, 40)
    assert one.low < 0.3 < one.high
    with pytest.raises(UnresolvedError, match="no rows"):
        polarity_reading(["unknown"], [0], vectors.get, [1, 0], [-1, 0])
