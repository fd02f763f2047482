"""Losses, retrieval scores and the local loop, each against an independent way to compute it."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from fedvlm.adapters import AdapterSpec, attach
from fedvlm.errors import ConfigError
from fedvlm.models import load_model
from fedvlm.seeds import ExperimentSeed
from fedvlm.training import (
    Evaluator,
    LocalSettings,
    contrastive_loss,
    encode_pairs,
    retrieval,
    train_adapter,
)


def _unit(rng, rows):
    return torch.nn.functional.normalize(torch.randn(rows, 8, generator=rng), dim=1)


def test_distinct_concepts_give_clip_s_loss():
    rng = torch.Generator().manual_seed(0)
    images, texts = _unit(rng, 5), _unit(rng, 5)
    logits = 3.0 * images @ texts.T
    target = torch.arange(5)
    expected = torch.nn.functional.cross_entropy(logits, target) / 2
    expected += torch.nn.functional.cross_entropy(logits.T, target) / 2
    got = contrastive_loss(images, texts, target, torch.tensor(3.0))
    assert torch.allclose(got, expected)


def test_pairs_of_one_concept_are_not_negatives_of_each_other():
    image = torch.eye(8)[:2]
    texts = torch.stack([image[0], image[0]])
    twins = torch.stack([image[0], image[0]])
    same = contrastive_loss(twins, texts, torch.tensor([7, 7]), torch.tensor(20.0))
    assert same.item() == pytest.approx(np.log(2))  # the best there is: both equally right


@settings(max_examples=25, deadline=None)
@given(st.integers(0, 2**32), st.integers(2, 130))
def test_one_of_100_is_the_expectation_over_drawn_distractors(seed, captions):
    rng = np.random.default_rng(seed)
    scores = rng.normal(size=(6, captions)).astype(np.float32)
    right = rng.integers(0, captions, 6)
    found = retrieval(scores, right).one_of_100
    hits = []
    for row, own in zip(scores, right, strict=True):
        others = np.delete(row, own)
        draws = rng.permuted(np.tile(others, (400, 1)), axis=1)[:, :99]
        hits.append((draws < row[own]).all(axis=1).mean())
    assert found == pytest.approx(np.mean(hits), abs=0.08)  # > 6 sigma of the sampling


def test_recalls_and_ties():
    scores = np.array([[3, 2, 1], [1, 3, 2], [1, 1, 0]], dtype=np.float32)
    found = retrieval(scores, np.array([0, 0, 0]))
    # Ranks 1, 3 and (a tie, counted against the model) 2.
    assert found.recall_at_1 == pytest.approx(1 / 3)
    assert found.recall_at_5 == 1.0


@pytest.fixture
def shapes_task(shapes, tiny_clip_folder):
    model = load_model(str(tiny_clip_folder))
    view = attach(model.vlm, AdapterSpec(rank=4, alpha=8), ExperimentSeed(0))
    return model.vlm, view, encode_pairs(shapes, model, lambda *_: None)


def test_training_lowers_the_loss_and_raises_the_score(shapes_task):
    vlm, view, pairs = shapes_task
    part = np.arange(54)
    evaluate = Evaluator(pairs, {"test": part}, None)
    before = evaluate(vlm)["test_one_of_100"]
    settings = LocalSettings(epochs=1, batch_size=18, learning_rate=1e-2)
    first = train_adapter(vlm, view, pairs, part, settings, np.random.default_rng(0))
    for epoch in range(12):
        last = train_adapter(vlm, view, pairs, part, settings, np.random.default_rng(epoch))
    assert last < 0.8 * first
    assert evaluate(vlm)["test_one_of_100"] > before + 0.1


def test_the_same_shuffle_gives_the_same_adapter(shapes_task):
    vlm, view, pairs = shapes_task
    start, found = view.read(), []
    for _ in range(2):
        view.write(start)
        train_adapter(vlm, view, pairs, np.arange(20), LocalSettings(), np.random.default_rng(3))
        found.append(view.read())
    assert np.array_equal(*found)


def test_the_proximal_term_keeps_the_adapter_near(shapes_task):
    vlm, view, pairs = shapes_task
    start, drift = view.read(), []
    for mu in (0.0, 1.0, 100.0):
        view.write(start)
        settings = LocalSettings(epochs=5, batch_size=18, proximal_mu=mu)
        train_adapter(vlm, view, pairs, np.arange(54), settings, np.random.default_rng(0))
        drift.append(np.linalg.norm(view.read() - start))
    assert drift[0] > drift[1] > drift[2]


def test_one_pair_is_not_enough(shapes_task):
    vlm, view, pairs = shapes_task
    with pytest.raises(ConfigError, match="at least 2 pairs"):
        train_adapter(vlm, view, pairs, np.arange(1), LocalSettings(), np.random.default_rng(0))


def test_evaluation_by_topic_and_domain(shapes_task):
    vlm, _, pairs = shapes_task
    rows, first = np.unique(pairs.caption_of, return_index=True)
    found = Evaluator(pairs, {"test": np.arange(54)}, (rows, pairs.topics[first]))(vlm)
    assert {"domain_filled", "domain_outline", "domain_small", "worst_domain"} <= set(found)
    assert 0 <= found["test_topic_accuracy"] <= 1
    assert found["worst_domain"] == min(v for k, v in found.items() if k.startswith("domain_"))


def test_an_empty_part_is_left_out(shapes_task):
    vlm, _, pairs = shapes_task
    parts = {"test": np.arange(9), "ood": np.arange(0)}
    assert not any(key.startswith("ood") for key in Evaluator(pairs, parts, None)(vlm))
