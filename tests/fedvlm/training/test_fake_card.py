"""A step on a card that isn't there: torch's fake tensors know devices and dtypes, and no values.

What is left on the CPU and meets the card's tensors raises here as it would there.
"""

from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import nn
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode

from fedvlm.adapters import AdapterSpec, attach
from fedvlm.models.placement import trained_or_added
from fedvlm.models.vlm import VLM
from fedvlm.seeds import ExperimentSeed
from fedvlm.training import LocalSettings
from fedvlm.training.contrastive import checkpointed, loss_gradients
from fedvlm.training.lean import lean
from simulations import _sized

CARD = torch.device("cuda:0")


def _moved(spec):
    """Return a tiny CLIP whose tensors say that they are on a card, its base in bfloat16."""
    vlm = VLM(_sized.clip_of(_sized.TINY))
    attach(vlm, spec, ExperimentSeed(0))
    mode = FakeTensorMode(allow_non_fake_inputs=True)
    kept = trained_or_added(vlm)

    def fake(tensor, name):
        there = tensor.detach().to("meta")
        if tensor.is_floating_point() and id(tensor) not in kept and name != "logit_scale":
            there = there.to(torch.bfloat16)
        return FakeTensor(mode, there, CARD)

    for module in vlm.modules():
        for name, tensor in list(module._parameters.items()):
            if tensor is not None:
                module._parameters[name] = nn.Parameter(
                    fake(tensor, name), requires_grad=tensor.requires_grad
                )
        for name, tensor in list(module._buffers.items()):
            if tensor is not None:
                module._buffers[name] = fake(tensor, name)
    vlm.set_placement(CARD, torch.bfloat16)
    return vlm.train(), mode


@pytest.mark.parametrize("kind", ["lora", "ffa-lora", "feature"])
@pytest.mark.parametrize(("micro", "layers"), [(0, False), (3, False), (3, True)])
def test_nothing_of_a_step_is_left_on_the_cpu(kind, micro, layers, monkeypatch):
    vlm, mode = _moved(AdapterSpec(kind, rank=2))
    pairs = _sized.random_pairs(_sized.TINY, 8)
    pairs = replace(pairs, text={"input_ids": pairs.text["input_ids"]})
    monkeypatch.setattr(torch.Tensor, "__float__", lambda _: 0.0)  # a fake loss has no value
    chosen = LocalSettings(batch_size=8, micro_batch=micro)
    with mode, lean(vlm, always=True), checkpointed(vlm, layers):
        loss_gradients(vlm, pairs, np.arange(8), chosen)
        text = vlm.embed(pairs.captions(np.arange(4)), "text")
        image = vlm.embed(pairs.images(np.arange(4)), "image")
    trained = [p for p in vlm.parameters() if p.requires_grad]
    grads = [p.grad for p in trained]
    assert trained
    assert all(g is not None and g.device == CARD and g.dtype == torch.float32 for g in grads)
    assert {text.device.type, image.device.type} == {"cpu"}
    assert text.dtype == image.dtype == torch.float32


def test_the_fake_card_notices_what_is_left(monkeypatch):
    """The check itself: pixels that aren't moved are refused."""
    vlm, mode = _moved(AdapterSpec(rank=2))
    pairs = _sized.random_pairs(_sized.TINY, 4)
    monkeypatch.setattr(VLM, "ready", lambda _, inputs: dict(inputs))
    with mode, pytest.raises(RuntimeError, match="device"):
        vlm.encode_image(pairs.images(np.arange(4)))
