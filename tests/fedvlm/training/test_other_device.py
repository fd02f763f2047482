"""A step on another device than the CPU: torch's meta device, which has dtypes and no values.

What is left on the CPU and meets the device's tensors raises here as it would on a card.
"""

from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import nn

from fedvlm.adapters import AdapterSpec, attach
from fedvlm.models.placement import trained_or_added
from fedvlm.models.vlm import VLM
from fedvlm.seeds import ExperimentSeed
from fedvlm.training import LocalSettings
from fedvlm.training.contrastive import checkpointed, loss_gradients
from fedvlm.training.lean import lean
from simulations import _sized

OTHER = torch.device("meta")


def _moved(spec):
    """Return a tiny CLIP on the other device, its base in bfloat16."""
    vlm = VLM(_sized.clip_of(_sized.TINY))
    attach(vlm, spec, ExperimentSeed(0))
    kept = trained_or_added(vlm)

    def there(tensor, name):
        moved = tensor.detach().to(OTHER)
        rounded = tensor.is_floating_point() and id(tensor) not in kept and name != "logit_scale"
        return moved.to(torch.bfloat16) if rounded else moved

    for module in vlm.modules():
        for name, tensor in list(module._parameters.items()):
            if tensor is not None:
                moved = nn.Parameter(there(tensor, name), requires_grad=tensor.requires_grad)
                module._parameters[name] = moved
        for name, tensor in list(module._buffers.items()):
            if tensor is not None:
                module._buffers[name] = there(tensor, name)
    vlm.set_placement(OTHER, torch.bfloat16)
    return vlm.train()


@pytest.mark.parametrize("loss", ["softmax", "sigmoid"])
@pytest.mark.parametrize("kind", ["lora", "ffa-lora", "feature"])
@pytest.mark.parametrize(("micro", "layers"), [(0, False), (3, False), (3, True)])
def test_nothing_of_a_step_is_left_on_the_cpu(kind, loss, micro, layers, monkeypatch):
    vlm, pairs = _moved(AdapterSpec(kind, rank=2)), _sized.random_pairs(_sized.TINY, 8)
    # No mask: transformers looks at its values.
    pairs = replace(pairs, text={"input_ids": pairs.text["input_ids"]})
    monkeypatch.setattr(torch.Tensor, "__float__", lambda _: 0.0)  # it has no value
    chosen = LocalSettings(batch_size=8, micro_batch=micro, loss=loss)
    with lean(vlm, always=True), checkpointed(vlm, layers):
        loss_gradients(vlm, pairs, np.arange(8), chosen)
    grads = [p.grad for p in vlm.parameters() if p.requires_grad]
    assert grads
    assert all(g is not None and g.device == OTHER and g.dtype == torch.float32 for g in grads)


def test_pixels_that_are_not_moved_are_noticed(monkeypatch):
    """The check itself."""
    vlm, pairs = _moved(AdapterSpec(rank=2)), _sized.random_pairs(_sized.TINY, 4)
    monkeypatch.setattr(VLM, "ready", lambda _, inputs: dict(inputs))
    with pytest.raises(RuntimeError, match="device"):
        vlm.encode_image(pairs.images(np.arange(4)))
