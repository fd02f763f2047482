"""An image's whole contribution is never longer than 1, whatever it is and however often."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from fedvlm.errors import IntegrityError
from fedvlm.heads import LinearHead, head_gradients, image_sums, image_terms
from fedvlm.heads.contributions import whole_terms
from fedvlm.heads.whitening import unit_rows

HOSTILE = st.one_of(
    st.floats(allow_nan=True, allow_infinity=True, width=64),
    st.sampled_from([0.0, -0.0, 5e-324, 1e308, -1e308, 1.0, np.nan, np.inf]),
)


def norm(values) -> float:
    """Return an L2 norm in extended precision, so that the test's own rounding is no slack."""
    return float(np.sqrt((np.asarray(values, dtype=np.longdouble) ** 2).sum()))


@settings(deadline=None, max_examples=150)
@given(arrays(np.float64, st.tuples(st.integers(1, 4), st.integers(1, 40)), elements=HOSTILE))
def test_unit_rows_are_never_longer_than_one(values):
    rows = unit_rows(values)
    assert np.isfinite(rows).all()
    assert all(norm(row) <= 1 for row in rows)


@settings(deadline=None, max_examples=100)
@given(st.data())
def test_one_image_moves_the_sum_by_one_at_most(data):
    n, d = data.draw(st.integers(1, 12)), data.draw(st.integers(1, 9))
    features = data.draw(arrays(np.float64, (n, d), elements=HOSTILE))
    rows = np.array(data.draw(st.lists(st.integers(0, 5), min_size=n, max_size=n)))
    images = np.array(data.draw(st.lists(st.integers(0, 3), min_size=n, max_size=n)))
    numbers, _, vectors = image_terms(features, rows, images, 6)
    for image in np.unique(numbers):
        assert norm(vectors[numbers == image]) <= 1
        whole = whole_terms(vectors[numbers == image], 1000)
        assert norm(whole) <= 1000


def test_several_captions_an_image_and_doubled_rows_count_once():
    x = np.array([[3.0, 4.0]] * 6)
    rows, images = np.array([0, 1, 2, 0, 1, 2]), np.zeros(6, dtype=int)
    assert norm(image_sums(x, rows, images, 4)) <= 1
    once = image_sums(x[:1], rows[:1], images[:1], 4)
    assert np.array_equal(once, image_sums(x[[0] * 50], rows[[0] * 50], images[[0] * 50], 4))


def test_nan_and_features_beyond_the_bound():
    x = np.array([[np.nan, 1.0], [1e300, 1e300], [np.inf, 0.0]])
    total = image_sums(x, np.array([0, 1, 2]), np.arange(3), 3)
    assert np.array_equal(total[[0, 2]], np.zeros((2, 3)))
    assert 0.99 < norm(total[1]) <= 1


def test_a_row_outside_of_the_sum_is_refused():
    for row in (-1, 3):
        with pytest.raises(IntegrityError, match="outside"):
            image_sums(np.ones((1, 2)), np.array([row]), np.array([0]), 3)


@settings(deadline=None, max_examples=60)
@given(st.integers(0, 2**32 - 1), st.sampled_from([1e-6, 1.0, 1e6, 1e200, np.nan, np.inf]))
def test_one_image_moves_the_heads_gradient_by_its_clip(seed, size):
    rng = np.random.default_rng(seed)
    features, texts = unit_rows(rng.normal(size=(1, 6))), unit_rows(rng.normal(size=(5, 7)))
    weights = rng.normal(size=(6, 7)) * size
    moved = head_gradients(LinearHead(clip_norm=0.5), weights, features, texts, np.array([2]))
    assert np.isfinite(moved).all()
    assert norm(moved) <= 0.5
