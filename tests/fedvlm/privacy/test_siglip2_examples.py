"""D11: example-level DP on SigLIP 2, whose images keep their shape: the gradients are right."""

import numpy as np
import pytest
import torch

from fedvlm.adapters import AdapterSpec, attach
from fedvlm.config import config_from
from fedvlm.federation import simulate
from fedvlm.models import load_model
from fedvlm.privacy.dpsgd import clipped_gradient_sum, per_example_gradients
from fedvlm.privacy.losses import bank, examples
from fedvlm.seeds import ExperimentSeed
from fedvlm.training.pairs import encode_pairs


@pytest.mark.parametrize("kind", ["lora", "ffa-lora", "prompt", "feature"])
def test_gradients_are_those_of_one_example_alone(kind, tiny_siglip2_folder, shapes):
    model = load_model(str(tiny_siglip2_folder))
    view = attach(model.vlm, AdapterSpec(kind, rank=2), ExperimentSeed(0))
    view.write(view.read() + np.random.default_rng(0).normal(0, 0.1, view.size).astype("f4"))
    pairs = encode_pairs(shapes, model, lambda *_: None)
    loss = bank(model.vlm, pairs, np.arange(20, 30))
    batch = examples(pairs, np.arange(5))
    found = per_example_gradients(model.vlm, loss, batch)
    named = dict(model.vlm.named_parameters())
    total = np.zeros(view.size)
    for row in range(5):
        value = loss(model.vlm, examples(pairs, np.array([row])))[0]
        expected = torch.autograd.grad(value, view.parameters)
        for parameter, gradient in zip(view.parameters, expected, strict=True):
            name = next(name for name, p in named.items() if p is parameter)
            assert torch.allclose(found[name][row], gradient, atol=1e-5), name
        flat = torch.cat([g.reshape(-1) for g in expected]).double()
        total += (flat * min(1.0, 0.5 / float(flat.norm()))).numpy()
    clipped = clipped_gradient_sum(model.vlm, view, loss, batch, 0.5)
    assert np.abs(clipped - total).max() < 1e-4


@pytest.mark.parametrize("kind", ["lora", "prompt"])
def test_a_run(kind, tiny_siglip2_folder, small_run):
    settings = {"model": str(tiny_siglip2_folder), "adapter": kind, "dp": "example", "rounds": 1}
    result = simulate(config_from(small_run | settings))
    assert result.privacy is not None
    assert len(result.rounds) == 2
