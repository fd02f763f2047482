"""Adapters: they start at zero-shot, train only themselves, and survive saving and merging."""

import dataclasses
import json
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file

from fedvlm.adapters import AdapterSpec, FlatView, attach, load_adapter, merge, save_adapter
from fedvlm.adapters.spec import DEFAULT_TARGETS
from fedvlm.errors import ConfigError, IntegrityError
from fedvlm.models import VLM
from fedvlm.seeds import ExperimentSeed
from tests.fedvlm.conftest import tiny_backbone, tiny_inputs

QV = r"(text_model|vision_model)\..*self_attn\.(q_proj|v_proj)"
SPECS = {
    "lora": AdapterSpec("lora", rank=2, alpha=4, targets=QV),
    "ffa-lora": AdapterSpec("ffa-lora", rank=2, alpha=4, targets=QV),
    "prompt": AdapterSpec("prompt", tokens=3),
    "feature": AdapterSpec("feature"),
}
EVERY = [(kind, family) for kind in SPECS for family in ("clip", "siglip", "siglip2")]


def _scores(vlm, family):
    images, texts = tiny_inputs(family)
    with torch.no_grad():
        return vlm.similarity(images, texts)


def _attached(kind, family="clip", seed=0):
    vlm = VLM(tiny_backbone(family))
    return vlm, attach(vlm, SPECS[kind], ExperimentSeed(seed))


def _shake(view, seed=0):
    view.write(view.read() + np.random.default_rng(seed).normal(0, 0.3, view.size).astype("f4"))


@pytest.mark.parametrize(("kind", "family"), EVERY)
def test_only_the_adapter_trains(kind, family):
    vlm, view = _attached(kind, family)
    frozen = {n: p.clone() for n, p in vlm.named_parameters() if not p.requires_grad}
    images, texts = tiny_inputs(family)
    optimizer = torch.optim.SGD(view.parameters, lr=1.0)
    before = view.read()
    for _ in range(2):  # LoRA's A has no gradient while B is zero
        loss = (1 - vlm.similarity(images, texts).diagonal()).sum()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert not np.array_equal(before, view.read())
    for name, parameter in vlm.named_parameters():
        if name in frozen:
            assert torch.equal(parameter, frozen[name]), name


@pytest.mark.parametrize("family", ["clip", "siglip", "siglip2"])
@pytest.mark.parametrize("kind", ["lora", "ffa-lora", "feature"])
def test_a_fresh_adapter_is_the_zero_shot_model(kind, family):
    vlm, _ = _attached(kind, family)
    assert torch.allclose(
        _scores(vlm, family), _scores(VLM(tiny_backbone(family)), family), atol=1e-5
    )


def test_every_party_starts_from_the_same_adapter():
    assert np.array_equal(_attached("lora")[1].read(), _attached("lora")[1].read())
    assert not np.array_equal(_attached("lora")[1].read(), _attached("lora", seed=1)[1].read())


def test_attaching_leaves_the_global_generator_alone():
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    _attached("lora")
    assert torch.equal(torch.rand(3), expected)


def test_ffa_lora_exchanges_b_only():
    _, full = _attached("lora")
    vlm, half = _attached("ffa-lora")
    assert half.size == full.size // 2
    assert all("lora_B" in name for name, p in vlm.named_parameters() if p.requires_grad)


@pytest.mark.parametrize(("kind", "family"), EVERY)
@pytest.mark.parametrize("targets", [QV, DEFAULT_TARGETS])
def test_merging_changes_nothing_that_the_model_says(kind, family, targets):
    """D5: merged and unmerged agree, whatever the targets, adapter and family."""
    vlm = VLM(tiny_backbone(family))
    view = attach(vlm, dataclasses.replace(SPECS[kind], targets=targets), ExperimentSeed(0))
    _shake(view)
    before = _scores(vlm, family)
    merged = merge(vlm)
    assert not any("lora" in name for name, _ in merged.named_parameters())
    assert (_scores(merged, family) - before).abs().max() <= 1e-5


@pytest.mark.parametrize("kind", SPECS)
def test_saving_and_loading(kind, tmp_path):
    vlm, view = _attached(kind)
    _shake(view)
    save_adapter(vlm, SPECS[kind], tmp_path)
    again = VLM(tiny_backbone("clip"))
    spec = load_adapter(again, tmp_path)
    assert spec.is_lora == SPECS[kind].is_lora
    assert torch.allclose(_scores(again, "clip"), _scores(vlm, "clip"), atol=1e-6)


def test_peft_reads_what_we_save_and_we_read_what_peft_saves(tmp_path):
    from peft import LoraConfig, PeftModel, get_peft_model

    vlm, view = _attached("lora")
    _shake(view)
    save_adapter(vlm, SPECS["lora"], tmp_path / "ours")
    theirs = VLM(PeftModel.from_pretrained(tiny_backbone("clip"), tmp_path / "ours"))
    assert torch.allclose(_scores(theirs, "clip"), _scores(vlm, "clip"), atol=1e-6)

    config = LoraConfig(r=2, target_modules=["q_proj"], init_lora_weights=False)
    with torch.random.fork_rng():
        other = get_peft_model(tiny_backbone("clip"), config)
    other.save_pretrained(tmp_path / "theirs")
    ours = VLM(tiny_backbone("clip"))
    load_adapter(ours, tmp_path / "theirs")
    assert torch.allclose(_scores(ours, "clip"), _scores(VLM(other), "clip"), atol=1e-6)


@pytest.mark.parametrize("kind", ["lora", "prompt"])
def test_an_adapter_of_another_model_is_refused(kind, tmp_path):
    vlm, _ = _attached(kind)
    save_adapter(vlm, SPECS[kind], tmp_path)
    weights = tmp_path / "adapter_model.safetensors"
    state = load_file(weights)
    name = next(iter(state))
    save_file({name + "x" if key == name else key: t for key, t in state.items()}, weights)
    with pytest.raises(IntegrityError, match="another model"):
        load_adapter(VLM(tiny_backbone("clip")), tmp_path)
    state[name] = torch.zeros(7, 7)
    save_file(state, weights)
    with pytest.raises(IntegrityError, match="another shape"):
        load_adapter(VLM(tiny_backbone("clip")), tmp_path)


def test_a_folder_without_an_adapter(tmp_path):
    with pytest.raises(ConfigError, match="holds no readable adapter"):
        load_adapter(VLM(tiny_backbone("clip")), tmp_path)
    (tmp_path / "adapter_config.json").write_text(json.dumps({"fedvlm_kind": "prompt"}))
    (tmp_path / "adapter_model.safetensors").write_bytes(b"torn")
    with pytest.raises(ConfigError, match="holds no readable adapter"):
        load_adapter(VLM(tiny_backbone("clip")), tmp_path)


def test_two_adapters_are_refused():
    vlm, _ = _attached("feature")
    with pytest.raises(ConfigError, match="already has an adapter"):
        attach(vlm, SPECS["prompt"], ExperimentSeed(0))


def test_targets_that_match_nothing():
    with pytest.raises(ConfigError, match="no module of the model matches"):
        attach(VLM(tiny_backbone("clip")), AdapterSpec(targets="nothing"), ExperimentSeed(0))


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 2**32))
def test_flat_view_writes_what_it_reads(seed):
    view = FlatView(torch.nn.Sequential(torch.nn.Linear(3, 4), torch.nn.Linear(4, 2)))
    vector = np.random.default_rng(seed).normal(size=view.size).astype(np.float32)
    view.write(vector, view.schema)
    assert np.array_equal(view.read(), vector)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda v: v[:-1], "expected 8 float32 values"),
        (lambda v: v.astype(np.float64), "expected 8 float32 values, got float64"),
        (lambda v: np.where(np.arange(8) == 3, np.nan, v).astype("f4"), "1 values that are not"),
        (lambda v: np.where(np.arange(8) < 2, np.inf, v).astype("f4"), "2 values that are not"),
    ],
)
def test_flat_view_refuses_and_stays_as_it_was(change, message):
    view = FlatView(torch.nn.Linear(3, 2))
    before = view.read()
    with pytest.raises(IntegrityError, match=message):
        view.write(change(before.copy()))
    assert np.array_equal(view.read(), before)


def test_flat_view_refuses_another_schema():
    view, other = FlatView(torch.nn.Linear(3, 2)), FlatView(torch.nn.Linear(2, 3))
    with pytest.raises(IntegrityError, match="another schema"):
        view.write(view.read(), other.schema)


def test_flat_view_needs_something_trainable():
    with pytest.raises(IntegrityError, match="no trainable parameter"):
        FlatView(torch.nn.ReLU())


def test_threads_that_attach_at_once_start_from_one_adapter():
    """U5: peft draws from torch's global generator, which all threads share."""
    models = [VLM(tiny_backbone("clip")) for _ in range(12)]
    seed = ExperimentSeed(0)
    with ThreadPoolExecutor(max_workers=4) as pool:
        views = list(pool.map(lambda vlm: attach(vlm, SPECS["lora"], seed).read(), models))
    alone = _attached("lora")[1].read()
    for view in views:
        np.testing.assert_array_equal(view, alone)
