"""LoRA with less to remember: the gradients of the plain layers, and the model left as it was."""

import gc
from typing import Any

import numpy as np
import peft
import pytest
import torch
import transformers

from fedvlm.adapters import AdapterSpec, FlatView, attach
from fedvlm.models.placement import place
from fedvlm.models.vlm import VLM
from fedvlm.seeds import ExperimentSeed
from fedvlm.training.contrastive import checkpointed
from fedvlm.training.lean import lean
from tests.fedvlm.conftest import tiny_backbone, tiny_inputs


def _model(kind, spec, dtype=torch.float32):
    vlm = VLM(tiny_backbone(kind))
    view = attach(vlm, spec, ExperimentSeed(0))
    rng = np.random.default_rng(0)
    view.write(rng.normal(0, 0.1, view.size).astype(np.float32))
    place(vlm, torch.device("cpu"), dtype)
    return vlm.train(), view


def _loss(vlm, inputs):
    images, texts = inputs
    logits = 5 * vlm.encode_image(images) @ vlm.encode_text({"input_ids": texts["input_ids"]}).T
    return torch.nn.functional.cross_entropy(logits, torch.arange(len(logits)))


def _run(vlm, view, inputs):
    for parameter in view.parameters:
        parameter.grad = None
    loss = _loss(vlm, inputs)
    loss.backward()
    return loss.item(), torch.cat([p.grad.reshape(-1) for p in view.parameters])


@pytest.mark.parametrize("kind", ["clip", "siglip", "siglip2"])
@pytest.mark.parametrize(
    "spec",
    [
        AdapterSpec(rank=3, alpha=6),
        AdapterSpec("ffa-lora", rank=3, alpha=6),
        AdapterSpec(rank=2, alpha=1, targets="q_proj,v_proj"),
        AdapterSpec(rank=2, alpha=1, targets="fc2"),
    ],
    ids=["lora", "ffa", "attention", "fc2"],
)
def test_the_same_loss_and_gradients(kind, spec):
    vlm, view = _model(kind, spec)
    inputs = tiny_inputs(kind)
    plain = _run(vlm, view, inputs)
    with lean(vlm, always=True):
        found = _run(vlm, view, inputs)
        with checkpointed(vlm, True):
            twice = _run(vlm, view, inputs)
    for other in (found, twice):
        assert other[0] == pytest.approx(plain[0], abs=1e-6)
        assert float((other[1] - plain[1]).norm() / plain[1].norm()) < 1e-5
    assert not any("forward" in vars(module) for module in vlm.modules())
    assert _run(vlm, view, inputs)[1].equal(plain[1])


def test_a_bfloat16_base_with_float32_factors():
    """Rounded otherwise than peft, and as near to the float32 gradients as peft is."""
    spec, inputs = AdapterSpec(rank=3, alpha=6), tiny_inputs("clip")
    exact = _run(*_model("clip", spec), inputs)[1]
    vlm, view = _model("clip", spec, torch.bfloat16)
    peft = _run(vlm, view, inputs)[1]
    with lean(vlm, always=True):
        found = _run(vlm, view, inputs)[1]
    errors = [float((x - exact).norm() / exact.norm()) for x in (peft, found)]
    assert errors[1] < max(0.05, 1.5 * errors[0])
    assert {p.dtype for p in view.parameters} == {torch.float32}


def _saved_bytes(vlm, inputs, **wanted):
    """Bytes that the graph of a step holds beside parameters and inputs."""
    sizes: dict[int, int] = {}

    def pack(tensor):
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in known:
            sizes[storage.data_ptr()] = storage.nbytes()
        kept.append(tensor)
        return tensor

    known = {p.untyped_storage().data_ptr() for p in vlm.parameters()}
    kept: list[torch.Tensor] = []
    gc.collect()
    with (
        lean(vlm, always=wanted["lean"]),
        torch.autograd.graph.saved_tensors_hooks(pack, lambda t: t),
    ):
        _loss(vlm, inputs)
    return sum(sizes.values())


def test_less_is_remembered():
    vlm, _ = _model("clip", AdapterSpec(rank=3, alpha=6))
    images, texts = tiny_inputs("clip", 16)
    plain, found = (_saved_bytes(vlm, (images, texts), lean=use) for use in (False, True))
    assert plain > 1.5 * found


def test_small_models_are_left_alone():
    vlm, _ = _model("clip", AdapterSpec())
    with lean(vlm):
        assert not any("forward" in vars(module) for module in vlm.modules())


def test_a_language_model_s_gated_mlp_and_rms_norms():
    config = transformers.LlamaConfig(
        vocab_size=40, hidden_size=16, intermediate_size=32, num_hidden_layers=2,
        num_attention_heads=2, num_key_value_heads=1,
    )  # fmt: skip
    model = transformers.LlamaForCausalLM(config)
    modules = ["q_proj", "v_proj", "up_proj", "down_proj"]
    model: Any = peft.get_peft_model(model, peft.LoraConfig(r=2, target_modules=modules))
    view, ids = FlatView(model), torch.arange(12).view(2, 6)
    view.write(np.random.default_rng(0).normal(0, 0.1, view.size).astype(np.float32))

    def gradients():
        model.zero_grad()
        model(input_ids=ids, labels=ids).loss.backward()
        return torch.cat([p.grad.reshape(-1) for p in view.parameters])

    plain = gradients()
    with lean(model, always=True):
        found = gradients()
    assert float((found - plain).norm() / plain.norm()) < 1e-5
