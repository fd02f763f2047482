"""Logit-DP as a loss that DP-SGD can use: its gradient, and its sensitivity under attack."""

import numpy as np
import pytest
import torch
from torch.utils import _pytree as pytree

from fedvlm.adapters import AdapterSpec, attach
from fedvlm.errors import ConfigError
from fedvlm.models.vlm import VLM
from fedvlm.privacy import Ledger, SimulatedNoise
from fedvlm.privacy import dpsgd as under_test
from fedvlm.privacy.dpsgd import MARGIN, DPSGDSettings, clipped_gradient_sum, train_privately
from fedvlm.privacy.losses import LogitDP, logit_dp_sensitivity
from fedvlm.seeds import ExperimentSeed
from tests.fedvlm.conftest import tiny_backbone, tiny_inputs

GROUPS, PLACES, TAU = 2, 4, 0.5
FULL = [[True] * PLACES] * GROUPS


def _model():
    vlm = VLM(tiny_backbone("clip"))
    view = attach(vlm, AdapterSpec("lora", rank=2), ExperimentSeed(0))
    view.write(np.random.default_rng(0).normal(0, 0.1, view.size).astype(np.float32))
    return vlm, view


def _batch(mask=FULL):
    images, texts = tiny_inputs("clip", GROUPS * PLACES)

    def deal(inputs):
        return {k: v.reshape(GROUPS, PLACES, *v.shape[1:]) for k, v in inputs.items()}

    return {"image": deal(images), "text": deal(texts), "mask": torch.tensor(mask)}


def _similarities(vlm, batch, group):
    rows = [r for r in range(PLACES) if batch["mask"][group, r]]

    def pick(part):
        return {k: v[group][rows] for k, v in batch[part].items()}

    return vlm.encode_image(pick("image")) @ vlm.encode_text(pick("text")).T


def _infonce(similarities):
    logits, rows = similarities / TAU, torch.arange(len(similarities))
    each = torch.nn.functional.cross_entropy
    return (each(logits, rows, reduction="sum") + each(logits.T, rows, reduction="sum")) / 2


def _flat(gradients):
    return torch.cat([g.reshape(-1) for g in gradients]).double().numpy()


MASK = [[True, True, True, False], [True] * PLACES]


@pytest.mark.parametrize("by_layers", [True, False])
def test_without_a_clip_it_is_infonce_itself(by_layers, monkeypatch):
    if not by_layers:
        monkeypatch.setattr(under_test, "taps_of", lambda vlm, trained: None)
    vlm, view = _model()
    batch = _batch(MASK)
    loss = torch.stack([_infonce(_similarities(vlm, batch, g)) for g in range(GROUPS)]).sum()
    expected = _flat(torch.autograd.grad(loss, view.parameters))
    got = clipped_gradient_sum(vlm, view, LogitDP(TAU, PLACES), batch, 1e6, physical_batch=5)
    assert np.abs(got - expected).max() < 1e-4 * np.abs(expected).max()


def test_each_similarity_is_clipped_by_itself():
    vlm, view = _model()
    batch, clip_norm = _batch(MASK), 0.05
    expected, clipped = np.zeros(view.size), 0
    for group in range(GROUPS):
        similarities = _similarities(vlm, batch, group)
        free = similarities.detach().requires_grad_()
        (weights,) = torch.autograd.grad(_infonce(free), free)
        for i in range(len(similarities)):
            for j in range(len(similarities)):
                gradient = _flat(
                    torch.autograd.grad(similarities[i, j], view.parameters, retain_graph=True)
                )
                norm = np.linalg.norm(gradient)
                clipped += norm > clip_norm
                expected += (
                    float(weights[i, j]) * gradient * min(1.0, (1 - MARGIN) * clip_norm / norm)
                )
    assert clipped > 5
    got = clipped_gradient_sum(vlm, view, LogitDP(TAU, PLACES), batch, clip_norm)
    assert np.abs(got - expected).max() < 1e-4 * np.abs(expected).max()


def test_the_factor_is_the_formula_for_sums_twice():
    # 1/τ is the chain rule's: halving τ at least doubles what an example moves.
    assert LogitDP(TAU, PLACES).factor == 2 * PLACES * logit_dp_sensitivity(1.0, TAU, PLACES)
    assert LogitDP(TAU / 2, PLACES).factor >= 2 * LogitDP(TAU, PLACES).factor
    assert LogitDP(0.01, 8).factor == pytest.approx(2 * 8 * 200, rel=0.01)
    with pytest.raises(ConfigError):
        LogitDP(0.0, 4)
    with pytest.raises(ConfigError):
        LogitDP(0.5, 1)
    vlm, view = _model()
    with pytest.raises(ConfigError, match="groups of 3 places"):
        clipped_gradient_sum(vlm, view, LogitDP(TAU, 3), _batch(), 1.0)


def test_no_example_moves_the_sum_by_more():
    vlm, view = _model()
    loss, clip_norm = LogitDP(TAU, PLACES), 1e-3
    full = clipped_gradient_sum(vlm, view, loss, _batch(), clip_norm)
    moved = []
    for place in range(PLACES):  # it leaves, and nobody takes its place
        mask = [[p != place for p in range(PLACES)], [True] * PLACES]
        less = clipped_gradient_sum(vlm, view, loss, _batch(mask), clip_norm)
        moved.append(np.linalg.norm(full - less))
    assert 0 < max(moved) <= loss.factor / 2 * clip_norm * (1 + 1e-4)
    swapped = _batch()  # it leaves a full group, and lets another one in
    images = swapped["image"]["pixel_values"].clone()
    images[0, 0] = -3 * images[0, 1]
    swapped["image"]["pixel_values"] = images
    other = clipped_gradient_sum(vlm, view, loss, swapped, clip_norm)
    assert np.linalg.norm(full - other) <= loss.factor * clip_norm * (1 + 1e-4)


@pytest.mark.parametrize("value", [float("nan"), float("inf"), 1e30])
def test_a_poisoned_example_moves_no_more(value):
    vlm, view = _model()
    loss, clip_norm = LogitDP(TAU, PLACES), 0.5
    clean = clipped_gradient_sum(
        vlm, view, loss, _batch([[False, True, True, True], [True] * PLACES]), clip_norm
    )
    batch = _batch()
    batch["image"]["pixel_values"] = batch["image"]["pixel_values"].clone()
    batch["image"]["pixel_values"][0, 0] = value
    got = clipped_gradient_sum(vlm, view, loss, batch, clip_norm)
    assert np.isfinite(got).all()
    assert np.linalg.norm(got - clean) <= loss.factor / 2 * clip_norm * (1 + 1e-4)


def test_dp_sgd_trains_with_it_and_pays_for_its_sensitivity():
    vlm, view = _model()
    before, loss = view.read(), LogitDP(TAU, PLACES)
    settings = DPSGDSettings(0.01, 1.5, 0.5, 2, GROUPS, 1e-2, physical_batch=8)
    mechanism = settings.mechanism(loss)
    assert mechanism.std == pytest.approx(1.5 * 0.01 * loss.factor)
    ledger = Ledger("example", 20.0, 1e-5)
    noise = SimulatedNoise(ExperimentSeed(0), "logit")

    def make(rows):
        mask = np.zeros(GROUPS * PLACES, dtype=bool)
        mask[rows] = True
        batch = _batch(mask.reshape(GROUPS, PLACES).tolist())
        kept = batch["mask"].any(dim=1)
        return pytree.tree_map(lambda v: v[kept], batch)

    train_privately(vlm, view, make, GROUPS * PLACES, loss, settings, noise, ledger)
    assert not np.array_equal(before, view.read())
    assert ledger.releases == 2
    assert set(ledger._events) == {mechanism.event()}
