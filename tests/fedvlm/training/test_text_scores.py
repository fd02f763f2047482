"""Scores of answers in words."""

from collections import Counter

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fedvlm.training.text_scores import exact_match, rouge_l, text_scores, token_f1, words_of

WORDS = st.lists(st.sampled_from(["red", "blue", "dog", "cat", "big"]), max_size=7).map(" ".join)


@pytest.mark.parametrize(
    ("answer", "reference", "right"),
    [
        ("A red apple.", "red apple", 1.0),
        ("red  apple", "red\napple", 1.0),
        ("eight o ’ clock", "eight o’clock", 1.0),
        ("apple red", "red apple", 0.0),
        ("", "red", 0.0),
        ("red", "", 0.0),
        ("the", "a", 1.0),  # nothing but articles, as in SQuAD
        ("ÄPFEL", "äpfel", 1.0),
    ],
)
def test_exact_match(answer, reference, right):
    assert exact_match(answer, reference) == right


@given(WORDS, WORDS)
def test_f1_is_the_harmonic_mean_of_precision_and_recall(answer, reference):
    given_, wanted = words_of(answer), words_of(reference)
    shared = sum((Counter(given_) & Counter(wanted)).values())
    if not given_ or not wanted:
        assert token_f1(answer, reference) == float(given_ == wanted)
    elif not shared:
        assert token_f1(answer, reference) == 0
    else:
        precision, recall = shared / len(given_), shared / len(wanted)
        expected = 2 * precision * recall / (precision + recall)
        assert token_f1(answer, reference) == pytest.approx(expected)


def longest_common(one, two):
    """Return the length of the longest common subsequence, by its recurrence."""
    if not one or not two:
        return 0
    if one[-1] == two[-1]:
        return 1 + longest_common(one[:-1], two[:-1])
    return max(longest_common(one[:-1], two), longest_common(one, two[:-1]))


@given(WORDS, WORDS)
@settings(deadline=None)  # the library is imported by the first example
def test_rouge_l_is_that_of_the_longest_common_subsequence(answer, reference):
    one, two = answer.split(), reference.split()
    common = longest_common(tuple(one), tuple(two))
    expected = 2 * common / (len(one) + len(two)) if common else 0.0
    assert rouge_l(answer, reference) == pytest.approx(expected)


def test_scores_come_one_by_one():
    found = text_scores(["red apple", "x"], ["red apple", "green apple"])
    assert found["exact_match"] == [1.0, 0.0]
    assert found["token_f1"] == [1.0, 0.0]
    assert found["rouge_l"] == [1.0, 0.0]
    with pytest.raises(ValueError, match="zip"):
        text_scores(["a"], ["a", "b"])
