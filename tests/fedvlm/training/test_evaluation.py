"""Evaluation: what is no number never wins (D9); how sure a score is stands beside it (U3)."""

import tracemalloc
from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from fedvlm.models import load_model
from fedvlm.training import Evaluator, encode_pairs, evaluation, retrieval
from fedvlm.training.evaluation import _also_right, accuracy, mean_interval

_RISING = ("recall_at_1", "recall_at_5", "recall_at_10", "one_of_100")
_case = st.tuples(st.integers(0, 2**32 - 1), st.integers(1, 8), st.integers(2, 130))


def _draw(case):
    seed, rows, columns = case
    rng = np.random.default_rng(seed)
    scores = rng.normal(size=(rows, columns)).astype(np.float32).round(1)  # with ties
    return rng, scores, rng.integers(0, columns, rows)


@settings(max_examples=100, deadline=None)
@given(_case, st.floats(0, 1), st.booleans())
def test_d9_no_score_that_is_replaced_by_nan_raises_a_metric(case, share, masked):
    rng, scores, right = _draw(case)
    also = rng.random(scores.shape) < 0.2 if masked else None
    broken = np.where(rng.random(scores.shape) < share, np.nan, scores).astype(np.float32)
    before, after = retrieval(scores, right, also), retrieval(broken, right, also)
    for name in _RISING:
        assert 0 <= getattr(after, name) <= getattr(before, name) <= 1
    assert after.candidates == before.candidates
    assert accuracy(broken, right) <= accuracy(scores, right)


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf, 0.0])
def test_d9_a_model_that_answers_the_same_to_all_finds_nothing(value):
    scores = np.full((7, 50), value, dtype=np.float32)
    found = retrieval(scores, np.arange(7))
    assert (found.recall_at_1, found.recall_at_10, found.one_of_100) == (0, 0, 0)
    assert accuracy(scores, np.arange(7)) == 0


def test_accuracy_is_that_of_an_argmax():
    rng = np.random.default_rng(0)
    scores, right = rng.normal(size=(500, 4)).astype(np.float32), rng.integers(0, 4, 500)
    assert accuracy(scores, right) == (scores.argmax(axis=1) == right).mean()
    assert accuracy(scores, np.full(500, -1)) == 0  # the right one isn't among the columns


@settings(max_examples=50, deadline=None)
@given(_case)
def test_other_right_captions_count_as_if_they_were_not_there(case):
    rng, scores, right = _draw(case)
    also = rng.random(scores.shape) < 0.3
    found = retrieval(scores, right, also)
    hits = []
    for row, own, others in zip(scores, right, also, strict=True):
        others[own] = False
        alone = row[~others]
        hits.append(retrieval(alone[None], np.array([own - others[:own].sum()])))
    for name in _RISING:
        assert getattr(found, name) == pytest.approx(np.mean([getattr(h, name) for h in hits]))
    assert found.candidates == min(hit.candidates for hit in hits)


def test_captions_of_one_label_are_right_for_all_its_pairs():
    gallery, caption_of = np.array([3, 5, 8, 9]), np.array([3, 5, 8, 9, 8])
    found = _also_right(gallery, caption_of, np.array([0, 0, 1, 2, 1]), np.array([0, 1, 2, 2, 4]))
    assert found.mask(0, 5).astype(int).tolist() == [
        [1, 1, 0, 0],
        [1, 1, 0, 0],
        [0, 0, 1, 1],
        [0, 0, 1, 1],
        [0, 0, 0, 0],
    ]
    assert _also_right(gallery, caption_of, caption_of).mask(0, 5) is None


@pytest.mark.parametrize("rate", [0.0, 0.01, 0.1, 0.5, 0.97, 1.0])
@pytest.mark.parametrize("images", [10, 40, 500])
def test_u3_the_interval_covers_as_often_as_it_says(rate, images):
    # Each image's chance is drawn from Beta, then answered right or wrong, or left as a chance.
    # 2,000 draws a case; a coverage of 95 % shows less than 93.5 % once in 1,000.
    rng = np.random.default_rng(0)
    chances = rng.beta(0.5, 0.5, (2000, images)) if rate == 0.5 else np.full((2000, images), rate)
    answers = (rng.random((2000, images)) < chances).astype(float)
    for values in (answers, (answers + chances) / 2):
        ends = [mean_interval(row, np.arange(images)) for row in values]
        covered = np.mean([low <= rate <= high for low, high in ends])
        assert covered >= 0.935
        assert all(0 <= low <= high <= 1 for low, high in ends)


def test_u3_five_captions_of_an_image_are_not_five_images():
    rng = np.random.default_rng(1)
    images = np.repeat(np.arange(30), 5)
    hits = 0
    for _ in range(1000):
        values = np.repeat(rng.random(30) < 0.3, 5).astype(float)
        low, high = mean_interval(values, images)
        hits += low <= 0.3 <= high
    assert hits >= 935
    assert mean_interval(values, images) == mean_interval(values[::5], np.arange(30))


def test_u3_without_clusters_it_is_clopper_and_pearson_s():
    values = np.repeat([0.0, 1.0], [13, 7])
    exact = stats.binomtest(7, 20).proportion_ci(0.95, "exact")
    assert mean_interval(values, np.arange(20)) == pytest.approx((exact.low, exact.high))


def test_u3_the_true_size_of_one_of_100_stands_beside_it():
    rng = np.random.default_rng(0)
    for columns, candidates in ((38, 38), (100, 100), (500, 100)):
        scores = rng.normal(size=(20, columns)).astype(np.float32)
        found = retrieval(scores, rng.integers(0, columns, 20))
        assert found.candidates == candidates
        assert found.one_of_100_low <= found.one_of_100 <= found.one_of_100_high


@pytest.fixture
def task(shapes, tiny_clip_folder):
    model = load_model(str(tiny_clip_folder))
    return model.vlm, encode_pairs(shapes, model, lambda *_: None)


def test_u3_an_evaluator_says_how_sure_it_is(task):
    vlm, pairs = task
    found = Evaluator(pairs, {"test": np.arange(54), "ood": np.arange(12)}, None)(vlm)
    assert found["test_candidates"] == 18
    assert found["ood_candidates"] == 4
    assert found["test_one_of_100_low"] < found["test_one_of_100"] < found["test_one_of_100_high"]
    # One image named by all rows is one observation: nothing narrower than [0, 1] but for its ends.
    one = replace(pairs, groups=np.zeros(54, dtype=np.int64), concepts=np.arange(54))
    wide = Evaluator(one, {"test": np.arange(54)}, None)(vlm)
    assert wide["test_one_of_100_high"] - wide["test_one_of_100_low"] > 0.9
    assert wide["test_candidates"] == 1  # all captions are right for it


def test_d9_a_model_of_nans_scores_nothing(task):
    vlm, pairs = task
    rows, first = np.unique(pairs.caption_of, return_index=True)
    evaluate = Evaluator(pairs, {"test": np.arange(54)}, (rows, pairs.topics[first]))
    with torch.no_grad():
        for parameter in vlm.parameters():
            parameter.fill_(float("nan"))
    found = evaluate(vlm)
    assert found.pop("test_candidates") == 18
    high = found.pop("test_one_of_100_high")
    assert set(found.values()) == {0.0}
    assert high < 0.1


@settings(max_examples=30, deadline=None)
@given(_case, st.integers(1, 40))
def test_chunks_count_what_the_whole_matrix_counts(case, held):
    """Whatever the chunk, with captions that are right too; no chunk holds more than it may."""
    seed, rows, columns = case
    rng = np.random.default_rng(seed)
    images, captions = (
        torch.from_numpy(rng.integers(-3, 4, (n, 2)).astype(np.float32)) for n in (rows, columns)
    )
    right = rng.integers(0, columns, rows)
    also = evaluation._also_right(np.arange(columns), right, rng.integers(0, 3, rows))
    whole = retrieval((images @ captions.T).numpy(), right, also.mask(0, rows))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(evaluation, "_HELD_SCORES", held)
        counts = evaluation.counted(images, captions, right, also)
    assert evaluation.retrieval_of_counts(*counts) == whole


def test_a_gallery_of_100_000_captions_makes_no_large_matrix():
    """2,000 images and 100,000 captions would be 800 MB; a chunk's scores are 16 MB."""
    rng = np.random.default_rng(0)
    captions = torch.nn.functional.normalize(torch.randn(100_000, 8), dim=1)
    right = rng.integers(0, 100_000, 400)
    images = captions[torch.from_numpy(right)]
    also = evaluation._also_right(np.arange(100_000), right, np.arange(400))
    tracemalloc.start()
    found = evaluation.retrieval_of_counts(*evaluation.counted(images, captions, right, also))
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert found.recall_at_1 == 1.0
    assert peak < 60e6
