"""Device, precision and pieces in a federation: whose choice they are, and that they hold."""

import json
import shutil
import threading
from dataclasses import replace

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from fedvlm.adapters import load_adapter
from fedvlm.config import config_from
from fedvlm.config.flower import for_nodes
from fedvlm.errors import ConfigError
from fedvlm.federation import load_task, simulate, task
from fedvlm.federation.floor import Floor
from fedvlm.federation.node import Node, read_node
from fedvlm.models import load_model
from fedvlm.models.placement import side_by_side


def test_a_device_that_isn_t_there_is_refused_before_anything_is_read(small_run, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    config = config_from({**small_run, "data": "/no/such/folder", "training.device": "cuda"})
    with pytest.raises(ConfigError, match="device = 'cuda'"):
        simulate(config)


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"device": "gpu"}, "device must be one of auto, cpu, cuda"),
        ({"dtype": "float16"}, "dtype must be one of float32, bfloat16"),
        ({"loss": "l2"}, "loss must be one of softmax, sigmoid"),
        ({"micro_batch": -1}, "micro_batch must be at least 0"),
        ({"dp": "example", "device": "cuda"}, 'dp = "example" is computed on the CPU'),
        ({"dp": "example", "dtype": "bfloat16"}, 'dp = "example" is computed on the CPU'),
        (
            {"adapter": "prototypes", "rounds": 1, "device": "mps"},
            'adapter = "prototypes" is computed',
        ),
        ({"rule": "fedex", "dtype": "bfloat16"}, "would round away"),
    ],
)
def test_settings_that_can_t_be_meant(settings, words):
    with pytest.raises(ConfigError, match=words):
        config_from(settings)


def test_where_the_server_computes_is_told_to_no_node():
    chosen = {"device": "cuda", "dtype": "bfloat16", "micro_batch": 8, "loss": "sigmoid"}
    told = for_nodes(config_from(chosen))
    assert told["training.loss"] == "sigmoid"  # what all train by
    for key in ("device", "dtype", "micro-batch", "checkpointing", "loaders"):
        assert f"training.{key}" not in told


def test_a_node_computes_as_its_owner_wrote(tmp_path, monkeypatch):
    (tmp_path / "pairs").mkdir()
    path = tmp_path / "node.toml"
    path.write_text('data = "pairs"\ndevice = "cuda:1"\ndtype = "bfloat16"\nmicro_batch = 32\n')
    path.chmod(0o600)
    asked = []
    monkeypatch.setattr(task, "load_own_task", lambda config, *_: asked.append(config))
    node = read_node(path)
    with pytest.raises(AttributeError):  # of the stand-in's None
        node.task(config_from({"device": "cpu", "micro_batch": 4, "loss": "sigmoid"}))
    training = asked[0].training
    assert (training.device, training.dtype, training.micro_batch) == ("cuda:1", "bfloat16", 32)
    assert training.loss == "sigmoid"


@pytest.mark.parametrize(
    "line", ['device = "gpu"', 'dtype = "int8"', 'micro_batch = "8"', "micro_batch = true"]
)
def test_a_node_s_file_with_what_no_machine_has(tmp_path, line):
    (tmp_path / "pairs").mkdir()
    path = tmp_path / "node.toml"
    path.write_text(f'data = "pairs"\n{line}\n')
    path.chmod(0o600)
    with pytest.raises(ConfigError, match=line.partition(" ")[0]):
        read_node(path)


def test_a_federation_in_pieces_is_the_federation(small_run):
    whole = simulate(config_from(small_run))
    pieces = simulate(config_from({**small_run, "micro_batch": 3}))
    layers = simulate(config_from({**small_run, "checkpointing": True}))
    for other in (pieces, layers):
        assert other.rounds[-1]["train_loss"] == pytest.approx(
            whole.rounds[-1]["train_loss"], abs=1e-3
        )


def test_a_bfloat16_federation_saves_a_float32_adapter_of_the_same_base(small_run, tmp_path):
    chosen = {**small_run, "dtype": "bfloat16", "protect": "secagg", "loss": "sigmoid"}
    result = simulate(config_from(chosen), out=tmp_path / "run")
    assert not any(entry.get("abandoned") for entry in result.rounds[1:])
    base = load_model(small_run["model"])
    told = json.loads((tmp_path / "run" / "adapter" / "base_model.json").read_text())
    assert told["weights_sha256"] == base.hashes.weights
    load_adapter(base.vlm, tmp_path / "run" / "adapter")
    assert {p.dtype for n, p in base.vlm.named_parameters() if "lora_" in n} == {torch.float32}


def test_workers_hold_the_base_model_once(small_run):
    config = config_from(small_run)
    found = [load_task(config)]
    thread = threading.Thread(target=lambda: found.append(load_task(config)))
    thread.start()
    thread.join()
    held = [dict(each.model.vlm.named_parameters()) for each in found]
    for name, tensor in held[0].items():
        same = tensor.data_ptr() == held[1][name].data_ptr()
        assert same == ("lora_" not in name), name


def test_a_model_s_folder_that_changes_is_loaded_anew(small_run, tmp_path):
    folder = shutil.copytree(small_run["model"], tmp_path / "clip")
    config = config_from({**small_run, "model": str(folder)})
    before = load_task(config).model.hashes.weights
    state = load_file(folder / "model.safetensors")
    state["logit_scale"] = state["logit_scale"] + 1
    save_file(state, folder / "model.safetensors", metadata={"format": "pt"})
    other = replace(config, training=replace(config.training, rounds=9))
    assert load_task(other).model.hashes.weights != before


def test_fedex_writes_to_weights_of_its_own(small_run):
    config = config_from({**small_run, "rule": "fedex", "rounds": 2})
    simulate(config)
    plain = load_task(config_from(small_run))
    assert plain.model.hashes.weights == load_model(small_run["model"]).hashes.weights


@pytest.mark.parametrize(
    ("workers", "device", "expected"),
    [(0, "cuda:0", 1), (3, "cuda:0", 3), (3, "cpu", 3), (0, "mps", 1)],
)
def test_one_client_at_a_time_on_a_card(workers, device, expected):
    assert side_by_side(workers, torch.device(device)) == expected


def test_features_are_for_training_and_pixels_for_attacks(small_run):
    held = load_task(config_from({**small_run, "adapter": "feature"}))
    assert set(held.pairs.images(np.arange(2))) == {"pixel_values"}
    assert held.inputs is not None
    assert set(held.inputs.images(held.splits.test[:2])) == {"pooled_image_features"}


def test_a_node_without_a_file_is_unchanged():
    assert Node(0, Floor()).device == "cpu"
