"""A step in pieces has the gradients of the whole step: for both losses, whatever trains."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from fedvlm.adapters import AdapterSpec, attach
from fedvlm.models import load_model
from fedvlm.seeds import ExperimentSeed
from fedvlm.training import LocalSettings, encode_pairs, train_adapter
from fedvlm.training.cached_gradients import backward_in_pieces
from fedvlm.training.contrastive import loss_gradients
from fedvlm.training.losses import sigmoid_loss

BATCH = np.arange(3, 50)


def _gradients(vlm, view, pairs, chosen):
    for parameter in view.parameters:
        parameter.grad = None
    vlm.train()
    loss = loss_gradients(vlm, pairs, BATCH, chosen)
    return loss, torch.cat([p.grad.reshape(-1) for p in view.parameters])


@pytest.fixture(scope="module", params=["clip", "siglip", "siglip2"])
def task(request, shapes):
    folder = request.getfixturevalue(f"tiny_{request.param}_folder")
    model = load_model(str(folder))
    view = attach(model.vlm, AdapterSpec(rank=4, alpha=8), ExperimentSeed(0))
    rng = np.random.default_rng(0)  # not B = 0, where A has no gradient
    view.write(rng.normal(0, 0.1, view.size).astype(np.float32))
    return model.vlm, view, encode_pairs(shapes, model, lambda *_: None)


@pytest.mark.parametrize("loss", ["softmax", "sigmoid"])
@pytest.mark.parametrize("micro", [1, 7, 46])
def test_pieces_have_the_whole_step_s_gradients(task, loss, micro):
    vlm, view, pairs = task
    whole = _gradients(vlm, view, pairs, LocalSettings(loss=loss))
    pieces = _gradients(vlm, view, pairs, LocalSettings(loss=loss, micro_batch=micro))
    assert pieces[0] == pytest.approx(whole[0], abs=1e-5)
    assert float((pieces[1] - whole[1]).norm() / whole[1].norm()) < 1e-5


@pytest.mark.parametrize("spec", [AdapterSpec("feature"), AdapterSpec("prompt", tokens=2)])
def test_a_frozen_tower_is_not_differentiated(tiny_clip_folder, shapes, spec):
    model = load_model(str(tiny_clip_folder))
    view = attach(model.vlm, spec, ExperimentSeed(0))
    pairs = encode_pairs(shapes, model, lambda *_: None)
    found = [_gradients(model.vlm, view, pairs, LocalSettings(micro_batch=m)) for m in (0, 8)]
    assert float((found[1][1] - found[0][1]).abs().max()) < 1e-5


def test_training_in_pieces_ends_where_whole_steps_end(task):
    vlm, view, pairs = task
    start, ends = view.read(), []
    chosen = LocalSettings(epochs=2, batch_size=18, learning_rate=1e-3, proximal_mu=0.1)
    for micro in (0, 5):
        view.write(start)
        rng = np.random.default_rng(1)
        train_adapter(vlm, view, pairs, np.arange(54), replace(chosen, micro_batch=micro), rng)
        ends.append(view.read())
    view.write(start)
    assert np.abs(ends[0] - start).max() > 1e-3
    # Adam divides by the gradient's size: rounding moves a coordinate with none by a step.
    assert np.mean(np.abs(ends[1] - ends[0]) > 1e-4) < 0.02


@settings(max_examples=40, deadline=None)
@given(
    st.integers(1, 9),
    st.integers(1, 9),
    st.integers(1, 10),
    st.integers(0, 2**32 - 1),
)
def test_any_two_towers_and_any_piece(rows, columns, size, seed):
    """In float64, with towers of unequal rows, the gradients are equal to 1e-12."""
    rng = torch.Generator().manual_seed(seed)
    x, y = (torch.randn(n, 3, generator=rng, dtype=torch.float64) for n in (rows, columns))
    layers = [torch.nn.Linear(3, 4).double() for _ in range(2)]

    def loss_of(a, b):
        return torch.logsumexp(a @ b.T, dim=1).sum() + (a**2).mean()

    loss_of(torch.tanh(layers[0](x)), torch.tanh(layers[1](y))).backward()
    expected = [p.grad.clone() for layer in layers for p in layer.parameters()]
    for layer in layers:
        layer.zero_grad()
    towers = tuple(
        ((lambda s, e, i=i, t=t: torch.tanh(layers[i](t[s:e]))), len(t))
        for i, t in ((0, x), (1, y))
    )
    backward_in_pieces(towers, loss_of, size)
    found = [p.grad for layer in layers for p in layer.parameters()]
    assert all(torch.allclose(a, b, atol=1e-12) for a, b in zip(found, expected, strict=True))


def test_the_sigmoid_loss_is_siglip_s_own():
    """Against transformers' formula, with all concepts distinct."""
    rng = torch.Generator().manual_seed(0)
    a, b = (torch.nn.functional.normalize(torch.randn(6, 8, generator=rng), dim=1) for _ in "ab")
    scale, bias = torch.tensor(7.0), torch.tensor(-3.0)
    logits = (b @ a.T) * scale + bias
    signs = 2 * torch.eye(6) - 1
    expected = -torch.nn.functional.logsigmoid(signs * logits).sum(dim=-1).mean()
    assert torch.allclose(sigmoid_loss(a, b, torch.arange(6), scale, bias), expected)
