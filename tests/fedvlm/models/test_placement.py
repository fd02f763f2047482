"""Devices and precision: what isn't there is refused in a line, what trains stays float32."""

import numpy as np
import pytest
import torch

from fedvlm.adapters import AdapterSpec, attach
from fedvlm.errors import ConfigError
from fedvlm.models import load_model, weights_hash
from fedvlm.models.placement import dtype_of, place, resolve_device
from fedvlm.models.sharing import Placed, shared_copy
from fedvlm.models.vlm import VLM
from fedvlm.seeds import ExperimentSeed
from fedvlm.training import LocalSettings, encode_pairs, train_adapter
from tests.fedvlm.conftest import tiny_backbone, tiny_inputs

CPU = torch.device("cpu")
SPECS = [AdapterSpec(rank=2), AdapterSpec("ffa-lora", rank=2), AdapterSpec("feature")]


@pytest.mark.parametrize(
    "name", ["gpu", "cuda:", "cuda:-1", "cuda:x", "cpu:0", "", "CUDA", "cuda:²"]
)
def test_names_that_no_device_has(name):
    with pytest.raises(ConfigError, match="device must be one of auto, cpu, cuda, cuda:N or mps"):
        resolve_device(name)


def test_cuda_where_there_is_none(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(ConfigError, match="cuda") as error:
        resolve_device("cuda")
    assert "set" in str(error.value)
    assert "\n" not in str(error.value)


def test_a_card_beyond_those_that_are_there(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(torch.version, "cuda", "13.0")
    with pytest.raises(ConfigError, match="only cuda:0 to cuda:1 is there"):
        resolve_device("cuda:2")
    assert resolve_device("cuda:1") == torch.device("cuda:1")
    assert resolve_device("cuda") == resolve_device("auto") == torch.device("cuda:0")


def test_mps_where_there_is_none(monkeypatch):
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: False)
    with pytest.raises(ConfigError, match="no MPS"):
        resolve_device("mps")


def test_auto_is_always_there():
    assert resolve_device("auto").type in ("cpu", "cuda", "mps")


def test_other_precisions():
    with pytest.raises(ConfigError, match="float32, bfloat16"):
        dtype_of("float16")


@pytest.mark.parametrize("spec", SPECS, ids=lambda spec: spec.kind)
@pytest.mark.parametrize("kind", ["clip", "siglip"])
def test_a_bfloat16_base_leaves_the_adapter_in_float32(kind, spec):
    vlm = VLM(tiny_backbone(kind))
    view = attach(vlm, spec, ExperimentSeed(0))
    added = {n: p.clone() for n, p in vlm.named_parameters() if "lora_" in n or p.requires_grad}
    start, schema, before = view.read(), view.schema, weights_hash(vlm)
    exact = [vlm.encode_image(tiny_inputs(kind)[0]), vlm.encode_text(tiny_inputs(kind)[1])]
    place(vlm, CPU, torch.bfloat16)
    now = dict(vlm.named_parameters())
    # FFA's A doesn't train, and is the same for parties of another precision all the same.
    assert all(now[name].dtype == torch.float32 and now[name].equal(p) for name, p in added.items())
    base = [p for n, p in now.items() if n not in added and "logit" not in n]
    assert {p.dtype for p in base} == {torch.bfloat16}
    assert np.array_equal(view.read(), start)
    assert view.schema == schema
    assert weights_hash(vlm) == before  # which checkpoint it is, not how it is held
    assert vlm.logit_scale.dtype == torch.float32
    found = [vlm.encode_image(tiny_inputs(kind)[0]), vlm.encode_text(tiny_inputs(kind)[1])]
    for a, b in zip(exact, found, strict=True):
        assert b.dtype == torch.float32
        assert 1e-6 < float((a - b).detach().abs().max()) < 0.05


def test_a_bfloat16_base_trains(shapes, tiny_clip_folder):
    model = load_model(str(tiny_clip_folder))
    view = attach(model.vlm, AdapterSpec(rank=4), ExperimentSeed(0))
    place(model.vlm, CPU, torch.bfloat16)
    pairs = encode_pairs(shapes, model, lambda *_: None)
    chosen = LocalSettings(epochs=1, batch_size=18, learning_rate=1e-2)
    losses = [
        train_adapter(model.vlm, view, pairs, np.arange(54), chosen, np.random.default_rng(e))
        for e in range(12)
    ]
    assert losses[-1] < 0.9 * losses[0]


def test_batch_norm_keeps_what_it_was_pretrained_with():
    backbone = tiny_backbone("clip")
    backbone.extra = torch.nn.BatchNorm1d(4)
    assert not VLM(backbone).train().backbone.extra.training


def test_copies_hold_their_base_weights_once(tiny_clip_folder):
    """Two workers: adapters, swapped weights and modes are their own, frozen numbers aren't."""
    base = load_model(str(tiny_clip_folder))
    before = base.hashes
    there = Placed(CPU, torch.bfloat16)
    copies = [shared_copy(base) for _ in range(2)]
    views = [attach(each.vlm, AdapterSpec(rank=2), ExperimentSeed(0)) for each in copies]
    assert np.array_equal(views[0].read(), views[1].read())
    held = [dict(copy.vlm.named_parameters()) for copy in copies]
    added = {name for name in held[0] if "lora_" in name}
    for stage in ("float32", "bfloat16"):
        for name, tensor in held[0].items():
            same = tensor.data_ptr() == held[1][name].data_ptr()
            assert same == (name not in added), (stage, name)
        for copy in copies:
            there.place(copy.vlm)
    views[0].write(np.ones(views[0].size, dtype=np.float32))
    assert not views[1].read().all()
    layer = next(m for m in copies[0].vlm.modules() if hasattr(m, "base_layer")).base_layer
    layer.weight.data = torch.zeros_like(layer.weight)  # as DP-SGD does for a moment
    assert all(p.float().abs().sum() > 0 for n, p in held[1].items() if n.endswith("q_proj.weight"))
    assert copies[0].hashes == before
    assert base.vlm.dtype == torch.float32
    assert weights_hash(base.vlm) == before.weights
