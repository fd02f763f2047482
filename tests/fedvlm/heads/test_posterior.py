"""What is made of a noised sum: the control where nobody holds a caption, never a peek."""

import numpy as np
import pytest

from fedvlm.errors import IntegrityError
from fedvlm.heads import (
    Prior,
    fit_control,
    fit_whitening,
    hashed_rows,
    image_sums,
    joint_images,
    joint_texts,
    mixed_scores,
    posterior_prototypes,
    presence,
)
from fedvlm.heads.whitening import unit_rows

CLASSES, WIDTH = 60, 48


@pytest.fixture(scope="module")
def world():
    """Captions with prototypes of their own, of which the first half is held."""
    rng = np.random.default_rng(0)
    true = unit_rows(rng.normal(size=(CLASSES, WIDTH)))
    caption = np.repeat(np.arange(CLASSES // 2), 4)
    images = unit_rows(true[caption] + 0.1 * rng.normal(size=(len(caption), WIDTH)))
    control = 0.3 * unit_rows(true + 0.15 * rng.normal(size=true.shape))
    return true, caption, images, control


def test_undeclared_rows_are_the_controls_to_the_letter(world):
    _, caption, images, control = world
    noised = image_sums(images, caption, np.arange(len(images)), CLASSES)
    noised = noised + np.random.default_rng(1).normal(size=noised.shape)
    declared = np.arange(CLASSES) < CLASSES // 2
    found = posterior_prototypes(noised, 1.0, control, declared)
    assert np.array_equal(found.vectors[~declared], unit_rows(control)[~declared])


def test_presence_is_inferred_from_what_was_released(world):
    _, caption, images, control = world
    clean = image_sums(images, caption, np.arange(len(images)), CLASSES)
    held = np.arange(CLASSES) < CLASSES // 2
    for std, least in ((0.0, 0.99), (0.2, 0.8)):
        noised = clean + std * np.random.default_rng(2).normal(size=clean.shape)
        chance = presence(noised, std, control)
        assert chance[held].mean() > least
        assert chance[~held].mean() < 1 - least


def test_much_noise_leaves_the_control(world):
    _, caption, images, control = world
    clean = image_sums(images, caption, np.arange(len(images)), CLASSES)
    noised = clean + 100 * np.random.default_rng(3).normal(size=clean.shape)
    found = unit_rows(posterior_prototypes(noised, 100.0, control, np.ones(CLASSES, bool)).vectors)
    assert (found * unit_rows(control)).sum(axis=1).min() > 0.9


def test_without_noise_a_prototype_is_its_images_mean(world):
    true, caption, images, control = world
    clean = image_sums(images, caption, np.arange(len(images)), CLASSES)
    found = posterior_prototypes(clean, 0.0, control).vectors
    held = CLASSES // 2
    assert ((images @ found[:held].T).argmax(axis=1) == caption).all()
    assert (found[:held] * true[:held]).sum(axis=1).min() > 0.9


def test_embeddings_rank_as_scores_do():
    rng = np.random.default_rng(4)
    zi, zt = unit_rows(rng.normal(size=(7, 5))), unit_rows(rng.normal(size=(9, 5)))
    x, m = unit_rows(rng.normal(size=(7, 6))), 0.7 * unit_rows(rng.normal(size=(9, 6)))
    m *= rng.uniform(0.2, 1, size=(9, 1))
    weights = rng.uniform(0.05, 0.5, size=9)
    left, right = joint_images(zi, x, 0.5), joint_texts(zt, m, weights, 0.5)
    assert np.allclose(np.linalg.norm(right, axis=1) ** 2, 1.5)
    assert np.allclose(np.linalg.norm(left, axis=1) ** 2, 1.5)
    assert np.allclose(left @ right.T, mixed_scores(zi @ zt.T, x, m, weights))


def test_control_smooths_over_text_and_whitening_is_round():
    rng = np.random.default_rng(5)
    texts = unit_rows(rng.normal(size=(30, 8)))
    lift = rng.normal(size=(8, 12))
    captions = np.repeat(np.arange(20), 3)
    raw = texts[captions] @ lift + 0.1 * rng.normal(size=(60, 12)) * np.linspace(1, 9, 12)
    whitening = fit_whitening(raw, captions, 0.01)
    spread = raw - np.array([raw[captions == c].mean(axis=0) for c in captions])
    variances = (spread @ whitening.matrix).var(axis=0)
    assert variances.max() / variances.min() < 1.5
    control = fit_control(whitening(raw), captions, texts)
    known = control.variances(texts)
    assert known[:20].max() < known[20:].min()
    hidden = unit_rows((texts[20:] @ lift - whitening.mean) @ whitening.matrix)
    likeness = unit_rows(control.prototypes(texts[20:])) @ hidden.T
    assert np.diag(likeness).mean() > likeness.mean() + 0.1


def test_rows_by_hash_are_the_seeds():
    words = [f"caption {i}".encode() for i in range(2000)]
    one, other = hashed_rows(words, 500, 1), hashed_rows(words, 500, 2)
    assert np.array_equal(one, hashed_rows(words, 500, 1))
    assert (one == other).mean() < 0.02
    assert np.bincount(one, minlength=500).max() < 20


def test_a_sum_that_is_not_finite_is_refused():
    with pytest.raises(IntegrityError, match="finite"):
        posterior_prototypes(np.full((2, 3), np.nan), 0.1, np.zeros((2, 2)), prior=Prior())
