"""An image's whole contribution is never longer than 1, whatever it is and however often."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from fedvlm.errors import IntegrityError
from fedvlm.heads import (
    Candidates,
    LinearHead,
    head_gradients,
    image_directions,
    image_sums,
    image_terms,
    whole_gradients,
)
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


SIZES = [1e-6, 1.0, 1e6, 1e200, np.nan, np.inf]


@settings(deadline=None, max_examples=100)
@given(st.integers(0, 2**32 - 1), st.sampled_from(SIZES), st.booleans(), st.booleans())
def test_one_image_moves_the_heads_gradient_by_its_clip(seed, size, own, hostile):
    """Also by its integers, whatever map the server sent, and whatever the feature was."""
    rng = np.random.default_rng(seed)
    features, texts = unit_rows(rng.normal(size=(1, 6))), unit_rows(rng.normal(size=(5, 7)))
    right = texts[[2]] if not own else (texts[[0]] - texts[[1]]) / 2
    weights = rng.normal(size=(6, 7)) * size
    if hostile:
        features[0, rng.integers(6)] = rng.choice([np.nan, np.inf])
    head, wanted = LinearHead(clip_norm=0.5), Candidates(texts, own)
    moved = head_gradients(head, weights, features, right, wanted)
    assert np.isfinite(moved).all()
    assert norm(moved) <= 0.5
    whole = whole_gradients(*image_directions(head, weights, features, right, wanted), 1000)
    assert norm(whole) <= 500


def worst_direction(rng, head, texts, own):
    """Search for a map, a feature and a text whose direction is as long as can be."""
    longest = 0.0
    for _ in range(40):
        x = unit_rows(rng.normal(size=(1, 6)))
        right = texts[[rng.integers(len(texts))]] if not own else unit_rows(rng.normal(size=(1, 7)))
        # A map under which the right caption has no chance, and its opposite all of it.
        weights = -(10.0 ** rng.uniform(-1, 3)) * x.T @ right
        factors = image_directions(head, weights, x, right, Candidates(texts, own))
        longest = max(longest, norm(np.outer(*(each[0] for each in factors))))
    return longest


def test_a_hostile_map_reaches_the_clip_and_never_passes_it():
    rng = np.random.default_rng(0)
    texts = unit_rows(np.vstack([rng.normal(size=(4, 7)), np.eye(7)[:1], -np.eye(7)[:1]]))
    for own in (False, True):
        found = worst_direction(rng, LinearHead(clip_norm=0.75), texts, own)
        assert 0.7 < found <= 0.75  # the search isn't idle


def test_an_image_changes_no_other_images_direction():
    """A softmax over the batch would couple them; here its captions are declared or public."""
    rng = np.random.default_rng(1)
    x, texts = unit_rows(rng.normal(size=(5, 6))), unit_rows(rng.normal(size=(8, 7)))
    weights, head = rng.normal(size=(6, 7)), LinearHead()
    for own in (False, True):
        alone = image_directions(head, weights, x[:1], texts[:1], Candidates(texts, own))
        beside = image_directions(head, weights, x, texts[:5], Candidates(texts, own))
        assert np.allclose(alone[1][0], beside[1][0], rtol=0, atol=1e-12)


def test_a_direction_descends_the_softmax_loss():
    """Held against a difference quotient of the loss, where nothing is clipped."""
    rng = np.random.default_rng(2)
    x, texts = unit_rows(rng.normal(size=(1, 4))), unit_rows(rng.normal(size=(6, 3)))
    weights, head = 0.1 * rng.normal(size=(4, 3)), LinearHead(clip_norm=10.0)

    def loss(w, right, own):
        mapped = head.temperature * x @ w
        logits = (mapped @ texts.T)[0]
        if own:
            logits = np.append(logits, mapped @ right[0])
        best = float((mapped @ right[0])[0])
        return float(np.log(np.exp(logits).sum())) - best

    for own, right in ((False, texts[[3]]), (True, unit_rows(rng.normal(size=(1, 3))))):
        found = head_gradients(head, weights, x, right, Candidates(texts, own))
        oracle = np.zeros_like(weights)
        for at in np.ndindex(weights.shape):
            step = np.zeros_like(weights)
            step[at] = 1e-6
            oracle[at] = loss(weights - step, right, own) - loss(weights + step, right, own)
        assert np.allclose(found, oracle / 2e-6 / head.temperature, atol=1e-6)
