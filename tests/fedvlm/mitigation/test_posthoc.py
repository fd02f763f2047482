"""Mitigations after training do what they claim, on data where the claim is known."""

import os

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from fedvlm.errors import ConfigError
from fedvlm.mitigation.composition import COMPOSITION, require_composition
from fedvlm.mitigation.duplicates import exact_duplicates, near_duplicates
from fedvlm.mitigation.fold import fold
from fedvlm.mitigation.moments import Moments
from fedvlm.mitigation.projections import (
    apply_projection,
    calibrated_projection,
    leace,
    pair_moments,
)
from fedvlm.mitigation.pseudonyms import pseudonym, pseudonymised
from fedvlm.mitigation.rerank import bias_at, interleaved, without_flagged
from fedvlm.mitigation.residual import residual
from fedvlm.mitigation.temperature import GRID, temperature_counts, temperature_from_counts
from fedvlm.trust.attribute_probe import attribute_probe

VALUES = ("a", "b", "c")


def _attributed(rng, rows=900, dim=12):
    attributes = np.array(VALUES)[rng.integers(0, 3, rows)]
    z = rng.normal(size=(rows, dim)) @ rng.normal(size=(dim, dim))
    z[:, 0] += 4.0 * (attributes == "a")
    z[:, 3] -= 4.0 * (attributes == "c")
    return z, attributes


@given(st.integers(0, 10_000))
@settings(max_examples=15, deadline=None)
def test_leace_leaves_no_covariance_with_the_attribute(seed):
    rng = np.random.default_rng(seed)
    z, attributes = _attributed(rng, 200, 6)
    matrix = leace(Moments.of(z, attributes, VALUES))
    after = Moments.of(z @ matrix.T, attributes, VALUES)
    assert np.abs(after.cross_covariance).max() < 1e-8 * np.abs(z).max()
    assert np.linalg.matrix_rank(matrix, tol=1e-6) == 6 - 2  # K − 1 directions, no more


def test_leace_takes_a_probe_to_chance():
    rng = np.random.default_rng(0)
    z, attributes = _attributed(rng)
    concepts = np.arange(len(z)) // 3
    before = attribute_probe(z, attributes, concepts, rng)
    matrix = leace(Moments.of(z, attributes, VALUES))
    after = attribute_probe(z @ matrix.T, attributes, concepts, rng)
    assert before.low > 0.25
    assert after.value < 0.05


def test_a_residual_hides_what_an_adversary_reads_and_moves_nothing_for_nothing():
    rng = np.random.default_rng(0)
    z, attributes = _attributed(rng)
    z /= np.linalg.norm(z, axis=1, keepdims=True)
    concepts = np.arange(len(z)) // 3
    before = attribute_probe(z, attributes, concepts, rng)
    still = residual(z, attributes, 0.0, torch.Generator().manual_seed(0), steps=5)
    assert np.abs(still - np.eye(12)).max() < 1e-6
    moved = residual(z, attributes, 1.0, torch.Generator().manual_seed(0))
    # By a probe that is fitted afterwards, which is more than what the adversary had.
    after = attribute_probe(apply_projection(z, moved), attributes, concepts, rng)
    assert before.low > 0.5
    assert after.value < 0.7 * before.value
    with pytest.raises(ConfigError, match="two values"):
        residual(z, np.zeros(len(z)), 1.0, torch.Generator())


def test_leace_moves_what_it_keeps_least():
    """Any other projection with the same null covariance moves embeddings at least as far."""
    rng = np.random.default_rng(0)
    z, attributes = _attributed(rng)
    z = z - z.mean(axis=0)
    moments = Moments.of(z, attributes, VALUES)
    ours = leace(moments)
    basis = np.linalg.qr(moments.cross_covariance)[0][:, :2]
    other = np.eye(12) - basis @ basis.T
    assert np.abs(other @ moments.cross_covariance).max() < 1e-8
    moved = [((z @ m.T - z) ** 2).sum() for m in (ours, other)]
    assert moved[0] <= moved[1] * (1 + 1e-9)


def test_moments_of_nodes_add_up_to_those_of_all():
    rng = np.random.default_rng(0)
    z, attributes = _attributed(rng, 60, 5)
    whole = Moments.of(z, attributes, VALUES)
    parts = Moments.of(z[:20], attributes[:20], VALUES) + Moments.of(
        z[20:], attributes[20:], VALUES
    )
    assert np.allclose(whole.to_vector(), parts.to_vector())
    again = Moments.from_vector(whole.to_vector(), 5, 3)
    assert np.allclose(again.zz, whole.zz)
    assert np.allclose(again.za, whole.za)
    with pytest.raises(ConfigError, match="numbers"):
        Moments.from_vector(whole.to_vector()[1:], 5, 3)
    with pytest.raises(ConfigError, match="finite"):
        Moments.of(z * np.nan, attributes, VALUES)
    with pytest.raises(ConfigError, match="at least two"):
        leace(Moments.of(z[:9], ["a"] * 9, VALUES))


def test_a_calibrated_projection_shrinks_what_pairs_differ_in():
    rng = np.random.default_rng(0)
    first = rng.normal(size=(300, 8))
    second = first.copy()
    second[:, 2] += 1.0
    matrix = calibrated_projection(pair_moments(first, second), 300, 100.0)
    a, b = first @ matrix.T, second @ matrix.T
    assert np.abs(a - b).max() < 0.02  # 1 / (1 + λ)
    assert np.allclose(np.delete(a, 2, 1), np.delete(first, 2, 1))
    assert np.allclose(calibrated_projection(pair_moments(first, second), 300, 0.0), np.eye(8))
    prompt = np.eye(8)[5:6]
    assert np.allclose(calibrated_projection(np.zeros((8, 8)), 1, 1.0, prompt) @ np.eye(8)[5], 0)
    with pytest.raises(ConfigError):
        calibrated_projection(np.zeros((8, 8)), 0, 1.0)


def test_a_folded_projection_is_the_projection():
    """Also with a LoRA on the layer, and in a model that is merged afterwards."""
    import torch

    from fedvlm.adapters import AdapterSpec, attach
    from fedvlm.models import load_model
    from fedvlm.seeds import ExperimentSeed

    model = load_model("embedded")
    view = attach(model.vlm, AdapterSpec("lora", 4, 8), ExperimentSeed(0))
    rng = np.random.default_rng(0)
    view.write(rng.normal(0, 0.05, view.size).astype(np.float32))
    inputs = {"pixel_values": torch.from_numpy(rng.normal(size=(5, 320, 3, 3)).astype(np.float32))}
    before = model.vlm.embed(inputs, "image").numpy()
    texts = model.vlm.embed(model.processor.texts(["a dog", "a cat"]), "text").numpy()
    matrix = np.eye(256) - np.outer(before[0], before[0])
    fold(model.vlm, matrix)
    after = model.vlm.embed(inputs, "image").numpy()
    assert np.abs(after[1:] - apply_projection(before[1:], matrix)).max() < 1e-5
    assert np.allclose(model.vlm.embed(model.processor.texts(["a dog", "a cat"]), "text"), texts)
    with pytest.raises(ConfigError, match="finite matrix"):
        fold(model.vlm, np.eye(3))


def test_interleaving_balances_every_prefix_and_keeps_order_within_groups():
    rng = np.random.default_rng(0)
    groups = rng.integers(0, 2, 40)
    scores = rng.normal(size=(6, 40)) + 3 * groups
    order = interleaved(scores, groups)
    signs = np.where(groups[order] == 1, 1, -1)
    assert bias_at(np.where(groups[np.argsort(-scores, axis=1)] == 1, 1, -1), 10) > 0.8
    for k in range(2, 2 * min(np.bincount(groups)), 2):
        assert abs(bias_at(signs, k)) < 1e-9
    for row, ranked in zip(scores, order, strict=True):
        assert sorted(ranked.tolist()) == list(range(40))
        for group in (0, 1):
            own = [row[item] for item in ranked if groups[item] == group]
            assert own == sorted(own, reverse=True)


def test_what_is_flagged_comes_last():
    scores = without_flagged([[3.0, 2.0, 1.0]], [True, False, False])
    assert np.argsort(-scores[0]).tolist() == [1, 2, 0]


def test_a_temperature_from_summed_counts_is_one_from_all():
    rng = np.random.default_rng(0)
    cosines = rng.normal(0, 1, (3000, 10))
    chances = np.exp(1.0 * cosines)
    chances /= chances.sum(axis=1, keepdims=True)
    right = (chances.cumsum(axis=1) > rng.random((3000, 1))).argmax(axis=1)
    parts = sum(
        temperature_counts(cosines[at : at + 1000], right[at : at + 1000], 4.0)
        for at in (0, 1000, 2000)
    )
    assert (parts == temperature_counts(cosines, right, 4.0)).all()
    assert temperature_from_counts(parts) == pytest.approx(0.25, rel=0.35)
    one = temperature_counts(cosines[:1], right[:1], 4.0)
    assert np.sqrt((one.astype(float) ** 2).sum()) == pytest.approx(np.sqrt(len(GRID)))
    with pytest.raises(ConfigError):
        temperature_from_counts(np.zeros_like(parts))


def test_pseudonyms_hide_and_are_the_same_for_one_key_only():
    key, other = os.urandom(32), os.urandom(32)
    captions = ["Ann Lee and ANN  LEE walk", "Annabel walks", "o'neil, Ann"]
    found = pseudonymised(captions, ["Ann Lee", "Ann", "O'Neil"], key)
    assert "Ann Lee" not in found[0]
    assert found[0].split()[0] == found[0].split()[2]
    assert found[1] == "Annabel walks"
    assert found[2] == f"{pseudonym('O’NEIL'.replace('’', chr(39)), key)}, {pseudonym('ann', key)}"
    assert pseudonym("Ann", key) != pseudonym("Ann", other)
    with pytest.raises(ConfigError, match="32 bytes"):
        pseudonym("Ann", b"short")
    with pytest.raises(ConfigError, match="no names"):
        pseudonymised(captions, [], key)


def test_a_name_that_looks_like_a_pattern_is_a_name():
    key = os.urandom(32)
    assert pseudonymised(["a.b and axb"], ["a.b"], key)[0].endswith(" and axb")


def test_duplicates_by_content_and_by_embedding():
    assert exact_duplicates(["x", "y", "x", "x"]).tolist() == [2, 3]
    rng = np.random.default_rng(0)
    base = rng.normal(size=(30, 16))
    near = base[:10] + 0.01 * rng.normal(size=(10, 16))
    rows = np.concatenate([base, near])
    rows /= np.linalg.norm(rows, axis=1, keepdims=True)
    assert near_duplicates(rows, 0.99).tolist() == list(range(30, 40))
    # Another concept is no duplicate, however near.
    assert not len(near_duplicates(rows, 0.99, np.arange(40)))


def test_what_does_not_compose_is_refused_with_its_reason():
    for name in COMPOSITION:
        require_composition(name, "plain", "none")
    for name in ("fairclip", "adversary", "deduplicate", "resample"):
        with pytest.raises(ConfigError, match="example"):
            require_composition(name, "plain", "example")
    for name in ("krum", "median"):
        for protect in ("secagg", "secagg-active", "he"):
            with pytest.raises(ConfigError, match="secure sums hide"):
                require_composition(name, protect, "none")
    with pytest.raises(ConfigError, match="no mitigation 'x'"):
        require_composition("x", "plain", "none")
