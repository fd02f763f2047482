"""D6: an adapter from peft says here what it says there, or one line names what isn't supported."""

import json
import shutil

import numpy as np
import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from safetensors.torch import load_file, save_file

from fedvlm.adapters import AdapterSpec, attach, load_adapter, merge, save_adapter
from fedvlm.errors import ConfigError, FedVLMError, IntegrityError
from fedvlm.models import VLM
from fedvlm.seeds import ExperimentSeed
from tests.fedvlm.conftest import tiny_backbone, tiny_inputs

CONFIG, WEIGHTS = "adapter_config.json", "adapter_model.safetensors"
KINDS = {
    "rslora": {"use_rslora": True},
    "float alpha": {"lora_alpha": 6.4},
    "alpha below one": {"lora_alpha": 0.5},
    "alpha by module": {"alpha_pattern": {"q_proj": 17, "layers.1.self_attn.v_proj": 3.5}},
    "rank by module": {"rank_pattern": {"v_proj": 5}, "use_rslora": True},
    "DoRA": {"use_dora": True},
    "chosen layers": {"layers_to_transform": [1]},
    "excluded": {"exclude_modules": ["vision_model.encoder.layers.0.self_attn.q_proj"]},
    "bias of B": {"lora_bias": True},
    "dropout": {"lora_dropout": 0.3},
    "a pattern": {"target_modules": r".*text_model.*\.(fc1|out_proj)"},
    "every linear layer": {"target_modules": "all-linear"},
    "gaussian": {"init_lora_weights": "gaussian"},
}


def _scores(vlm, family):
    images, texts = tiny_inputs(family)
    with torch.no_grad():
        return vlm.similarity(images, texts)


def _save(folder, family="clip", **settings):
    """Save an adapter by peft with large random values; returns what the model says with it."""
    config = LoraConfig(**({"r": 4, "target_modules": ["q_proj", "v_proj"]} | settings))
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = get_peft_model(tiny_backbone(family), config)
        for name, parameter in model.named_parameters():
            if "lora_" in name:
                torch.nn.init.normal_(parameter, 1.0 if "magnitude" in name else 0.0, 0.3)
        model.save_pretrained(folder)


def _theirs(folder, family="clip"):
    return _scores(VLM(PeftModel.from_pretrained(tiny_backbone(family), folder).eval()), family)


@pytest.mark.parametrize("family", ["clip", "siglip"])
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.filterwarnings("ignore")
def test_it_says_what_it_says_in_peft(kind, family, tmp_path):
    _save(tmp_path / "a", family, **KINDS[kind])
    expected = _theirs(tmp_path / "a", family)
    plain = _scores(VLM(tiny_backbone(family)), family)
    assert (expected - plain).abs().max() > 1e-4
    vlm = VLM(tiny_backbone(family))
    spec = load_adapter(vlm, tmp_path / "a")
    assert (_scores(vlm, family) - expected).abs().max() <= 1e-6
    save_adapter(vlm, spec, tmp_path / "b")
    assert (_theirs(tmp_path / "b", family) - expected).abs().max() <= 1e-6
    merged = merge(vlm)
    assert (_scores(merged, family) - expected).abs().max() <= (2e-5 if kind == "DoRA" else 1e-5)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision(dtype, tmp_path):
    _save(tmp_path)
    state = {name: t.to(dtype) for name, t in load_file(tmp_path / WEIGHTS).items()}
    save_file(state, tmp_path / WEIGHTS, metadata={"format": "pt"})
    vlm = VLM(tiny_backbone("clip"))
    load_adapter(vlm, tmp_path)
    assert {p.dtype for p in vlm.parameters()} == {torch.float32}
    assert (_scores(vlm, "clip") - _theirs(tmp_path)).abs().max() <= 1e-6


def test_the_older_file(tmp_path):
    _save(tmp_path)
    expected = _theirs(tmp_path)
    torch.save(load_file(tmp_path / WEIGHTS), tmp_path / "adapter_model.bin")
    (tmp_path / WEIGHTS).unlink()
    vlm = VLM(tiny_backbone("clip"))
    load_adapter(vlm, tmp_path)
    assert (_scores(vlm, "clip") - expected).abs().max() <= 1e-6


def test_a_pickle_that_runs_code(tmp_path):
    class Evil:
        def __reduce__(self):
            return (open, (str(tmp_path / "ran"), "w"))

    _save(tmp_path)
    (tmp_path / WEIGHTS).unlink()
    torch.save({"x": Evil()}, tmp_path / "adapter_model.bin")
    with pytest.raises(ConfigError, match="holds no readable adapter: adapter_model.bin"):
        load_adapter(VLM(tiny_backbone("clip")), tmp_path)
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"bias": "all"}, "bias = 'all'"),
        ({"modules_to_save": ["visual_projection"]}, "modules_to_save"),
        ({"trainable_token_indices": [1]}, "trainable_token_indices"),
        ({"init_lora_weights": "pissa"}, "init_lora_weights = 'pissa'"),
        ({"init_lora_weights": "olora"}, "init_lora_weights = 'olora'"),
        ({"layer_replication": [[0, 1]]}, "layer_replication"),
        ({"use_qalora": True}, "use_qalora"),
        ({"target_parameters": ["x.weight"]}, "target_parameters"),
        ({"of_the_future": 3}, "of_the_future = 3"),
        ({"peft_type": "LOHA"}, "peft_type 'LOHA'"),
        ({"peft_type": None}, "neither peft_type nor a known fedvlm_kind"),
        ({"r": 10**9}, "ranks"),
        ({"target_modules": "(q_proj"}, "peft can't use it"),
    ],
)
def test_what_is_not_supported_is_named(changes, named, tmp_path):
    _save(tmp_path)
    content = json.loads((tmp_path / CONFIG).read_text()) | changes
    (tmp_path / CONFIG).write_text(json.dumps(content))
    with pytest.raises(ConfigError) as error:
        load_adapter(VLM(tiny_backbone("clip")), tmp_path)
    assert named in str(error.value)
    assert "\n" not in str(error.value)


def test_values_that_are_not_finite(tmp_path):
    _save(tmp_path)
    state = load_file(tmp_path / WEIGHTS)
    next(iter(state.values()))[0, 0] = torch.nan
    save_file(state, tmp_path / WEIGHTS)
    with pytest.raises(IntegrityError, match="not finite"):
        load_adapter(VLM(tiny_backbone("clip")), tmp_path)


@pytest.mark.parametrize("kind", ["lora", "prompt", "feature"])
def test_another_base_model_of_the_same_shape_is_refused(kind, tmp_path):
    vlm = VLM(tiny_backbone("clip"))
    spec = AdapterSpec(kind, rank=2)
    attach(vlm, spec, ExperimentSeed(0))
    save_adapter(vlm, spec, tmp_path)
    load_adapter(VLM(tiny_backbone("clip")), tmp_path)
    other = tiny_backbone("clip")
    with torch.no_grad():
        other.text_projection.weight[0, 0] += 1e-3
    with pytest.raises(IntegrityError, match="made for another model: its base model's weights"):
        load_adapter(VLM(other), tmp_path)


_JUNK = (None, -1, 0, 1.5, "x", "", [], {}, ["q_proj"], [0], {"q_proj": -2}, True, 10**9, "1e9")


@pytest.mark.filterwarnings("ignore")
def test_damaged_folders_are_right_or_refused_in_one_line(tmp_path):
    _save(tmp_path / "whole")
    whole = _theirs(tmp_path / "whole")
    found = []
    for seed in range(90):
        rng = np.random.default_rng(seed)
        folder = shutil.copytree(tmp_path / "whole", tmp_path / "damaged", dirs_exist_ok=True)
        if seed % 3 == 0:
            path = folder / (CONFIG if rng.random() < 0.5 else WEIGHTS)
            data = bytearray(path.read_bytes())
            data[int(rng.integers(min(len(data), 2000)))] = int(rng.integers(256))
            path.write_bytes(bytes(data[: int(rng.integers(len(data)))] if seed % 2 else data))
        else:
            content = json.loads((folder / CONFIG).read_text())
            key = sorted(content)[int(rng.integers(len(content)))]
            content[key] = _JUNK[int(rng.integers(len(_JUNK)))]
            (folder / CONFIG).write_text(json.dumps(content))
        vlm = VLM(tiny_backbone("clip"))
        try:
            load_adapter(vlm, folder)
        except FedVLMError as error:
            found.append(str(error))
            continue
        found.append("right")
        try:
            expected = _theirs(folder)
        except Exception:  # peft reads more of the file than what decides the values
            expected = whole
        assert (_scores(vlm, "clip") - expected).abs().max() <= 1e-6, seed
    assert 10 < found.count("right") < 80
    assert not any("\n" in text for text in found)
