"""D4: a checkpoint is loaded whole and in float32, or refused in one clear line."""

import json
import shutil

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from fedvlm.errors import ConfigError
from fedvlm.models import load_model, weights_hash
from fedvlm.training.pairs import encode_pairs

WEIGHTS = "model.safetensors"


@pytest.fixture
def folder(tiny_clip_folder, tmp_path):
    """A copy of the tiny CLIP, to be damaged."""
    return shutil.copytree(tiny_clip_folder, tmp_path / "model")


def _refused(folder, *parts):
    with pytest.raises(ConfigError) as error:
        load_model(str(folder))
    text = str(error.value)
    assert "\n" not in text
    assert len(text) < 700
    for part in parts:
        assert part in text
    return text


def _change(path, change):
    content = json.loads(path.read_text())
    change(content)
    path.write_text(json.dumps(content))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
def test_any_float_is_loaded_as_float32(folder, dtype):
    state = {name: tensor.to(dtype) for name, tensor in load_file(folder / WEIGHTS).items()}
    save_file(state, folder / WEIGHTS, metadata={"format": "pt"})
    _change(folder / "config.json", lambda c: c.update(dtype=str(dtype).removeprefix("torch.")))
    vlm = load_model(str(folder)).vlm
    assert {p.dtype for p in vlm.parameters()} == {torch.float32}
    assert torch.get_default_dtype() == torch.float32
    for name, tensor in vlm.backbone.state_dict().items():
        assert torch.equal(tensor, state[name].float()), name


def test_mixed_floats_and_shards_and_the_older_format(folder):
    state = load_file(folder / WEIGHTS)
    expected = load_model(str(folder)).hashes
    torch.save(state, folder / "pytorch_model.bin")
    (folder / WEIGHTS).unlink()
    assert load_model(str(folder)).hashes == expected
    mixed = {n: t.bfloat16() if i % 2 else t for i, (n, t) in enumerate(state.items())}
    save_file(mixed, folder / WEIGHTS, metadata={"format": "pt"})
    vlm = load_model(str(folder)).vlm
    assert all(torch.equal(t, mixed[n].float()) for n, t in vlm.backbone.state_dict().items())


def test_missing_weights_are_named(folder):
    state = load_file(folder / WEIGHTS)
    gone = ["text_projection.weight", "visual_projection.weight", *sorted(state)[:4]]
    kept = {name: tensor for name, tensor in state.items() if name not in gone}
    save_file(kept, folder / WEIGHTS, metadata={"format": "pt"})
    _refused(folder, "lacks 6 of the model's weights", sorted(gone)[0], "and 3 more")


def test_weights_without_a_place_are_named(folder):
    _change(folder / "config.json", lambda c: c["vision_config"].update(num_hidden_layers=1))
    _refused(folder, "no place for 16", "vision_model.encoder.layers.1")


def test_weights_of_another_shape_are_named(folder):
    _change(folder / "config.json", lambda c: c.update(projection_dim=8))
    _refused(folder, "another shape", "text_projection.weight ((16, 32) in the file, (8, 32)")


def test_quantised_weights(folder):
    state = load_file(folder / WEIGHTS)
    state["text_projection.weight"] = (state["text_projection.weight"] * 100).to(torch.int8)
    save_file(state, folder / WEIGHTS, metadata={"format": "pt"})
    _refused(folder, "text_projection.weight is stored as I8")
    _change(folder / "config.json", lambda c: c.update(quantization_config={"bits": 4}))
    _refused(folder, "quantised")


def test_weights_that_are_not_finite(folder):
    state = load_file(folder / WEIGHTS)
    state["text_projection.weight"][0, 0] = torch.nan
    save_file(state, folder / WEIGHTS, metadata={"format": "pt"})
    _refused(folder, "not finite: text_projection.weight")


@pytest.mark.parametrize("keep", [0, 5, 100, 2000, -1])
def test_torn_weights(folder, keep):
    path = folder / WEIGHTS
    path.write_bytes(path.read_bytes()[:keep])
    _refused(folder, "model.safetensors is", "fetch it again")


@pytest.mark.parametrize("name", [WEIGHTS, "tokenizer.json", "config.json"])
def test_git_lfs_pointers(folder, name):
    (folder / name).write_text(
        "version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 605157884\n"
    )
    _refused(folder, f"{name} is a Git LFS pointer", "git lfs pull")


def test_no_weights(folder):
    (folder / WEIGHTS).unlink()
    _refused(folder, "has no weights")


def test_no_image_processor(folder):
    (folder / "preprocessor_config.json").unlink()
    _refused(folder, "has no preprocessor_config.json")


def test_no_tokenizer(folder):
    for path in folder.glob("*token*"):
        path.unlink()
    _refused(folder, "no tokenizer (tokenizer.json")


def test_captions_that_all_become_the_same_ids(folder, shapes):
    """A tokenizer made up from nothing knows no word: every caption is one unknown token."""
    content = json.loads((folder / "tokenizer.json").read_text())
    content["pre_tokenizer"] = None
    (folder / "tokenizer.json").write_text(json.dumps(content))
    model = load_model(str(folder))
    with pytest.raises(ConfigError, match="18 different captions become 1 different rows of ids"):
        encode_pairs(shapes, model, lambda *_: None)


def test_a_tokenizer_larger_than_the_embedding(folder):
    state = load_file(folder / WEIGHTS)
    name = "text_model.embeddings.token_embedding.weight"
    state[name] = state[name][:9].clone()
    save_file(state, folder / WEIGHTS, metadata={"format": "pt"})
    _change(folder / "config.json", lambda c: c["text_config"].update(vocab_size=9))
    _refused(folder, "the tokenizer has 14 tokens and the model embeds 9")


def test_an_added_token_beyond_the_embedding(folder):
    """It does no harm until a caption has it."""
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(folder)
    tokenizer.add_tokens([f"extra{number}" for number in range(90)])
    tokenizer.save_pretrained(folder)
    processor = load_model(str(folder)).processor
    assert processor.texts(["a red circle"])["input_ids"].max() < 96
    with pytest.raises(ConfigError, match=r"'a extra89' into id \d+, and the model embeds 96"):
        processor.texts(["a red circle", "a extra89"])


def test_an_end_token_that_the_model_does_not_read(folder):
    _change(folder / "config.json", lambda c: c["text_config"].update(eos_token_id=77))
    _refused(folder, "ends captions with id 3", "the one with id 77")


def test_an_image_processor_of_another_model(folder):
    path = folder / next(
        name
        for name in ("preprocessor_config.json", "processor_config.json")
        if (folder / name).exists()
    )
    before = path.read_text()
    _change(path, lambda c: c["crop_size"].update(height=24, width=24))
    _refused(folder, "pixels of shape (3, 24, 24), and the model takes (3, 32, 32)")
    path.write_text(before)
    _change(path, lambda c: c.update(image_std=[0.0, 0.0, 0.0]))
    _refused(folder, "not finite")


@pytest.mark.parametrize("name", ["/nowhere/at/all", "./nowhere", "a/b/c"])
def test_a_missing_folder_is_not_the_network_s_fault(name):
    text = _refused(name, "there is no such folder")
    assert "hub" not in text


def test_code_that_comes_with_a_model_is_never_run(folder, tmp_path):
    (folder / "evil.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w').close()\n")
    _change(
        folder / "config.json",
        lambda c: c.update(auto_map={"AutoConfig": "evil.C", "AutoModel": "evil.M"}),
    )
    load_model(str(folder))
    assert not (tmp_path / "ran").exists()


def test_a_pickle_that_runs_code_is_refused(folder, tmp_path):
    class Evil:
        def __reduce__(self):
            return (open, (str(tmp_path / "ran"), "w"))

    (folder / WEIGHTS).unlink()
    torch.save({"text_projection.weight": Evil()}, folder / "pytorch_model.bin")
    _refused(folder, "torn or not a file of weights")
    assert not (tmp_path / "ran").exists()


def test_loading_says_nothing(folder, capfd):
    """D4: no table for each client, whatever the checkpoint lacks."""
    load_model(str(folder))
    state = load_file(folder / WEIGHTS)
    state.pop("text_projection.weight")
    save_file(state, folder / WEIGHTS, metadata={"format": "pt"})
    _refused(folder, "lacks 1")
    assert capfd.readouterr() == ("", "")


def _flip(path, rng, low=0, high=None):
    data = bytearray(path.read_bytes())
    for _ in range(int(rng.integers(1, 4))):
        data[int(rng.integers(low, high or len(data)))] = int(rng.integers(256))
    path.write_bytes(bytes(data))


_JUNK = (None, -1, 0, 3, 7, 10**12, 1.5, float("nan"), "", "gelu", "x" * 50, [], {}, [1, 2], True)


def _leaves(content, path=()):
    """Return the place of every value in a JSON tree."""
    items = content.items() if isinstance(content, dict) else enumerate(content)
    found = []
    for key, value in items:
        found.append((*path, key))
        if isinstance(value, dict | list):
            found += _leaves(value, (*path, key))
    return found


def _damage(folder, rng):
    """Damage one file of a model's folder; return what was done."""
    names = ["config.json", "tokenizer.json", "tokenizer_config.json", "preprocessor_config.json"]
    names = [name for name in names if (folder / name).exists()]
    kind = str(rng.choice(["tear", "header", "bytes", "json", "junk", "drop", "extra", "dtype",
                           "shape", "remove"]))  # fmt: skip
    path = folder / WEIGHTS
    if kind == "tear":
        path = folder / str(rng.choice([*names, WEIGHTS]))
        data = path.read_bytes()
        path.write_bytes(data[: int(rng.integers(len(data)))])
    elif kind == "header":
        _flip(path, rng, 0, 8 + int.from_bytes(path.read_bytes()[:8], "little"))
    elif kind == "bytes":
        _flip(path, rng, 8 + int.from_bytes(path.read_bytes()[:8], "little"))
    elif kind == "json":
        path = folder / str(rng.choice(names))
        _flip(path, rng)
    elif kind == "junk":
        path = folder / str(rng.choice(names[:1] * 4 + names))
        content = json.loads(path.read_text())
        places = _leaves(content)
        *above, last = places[int(rng.integers(len(places)))]
        at = content
        for key in above:
            at = at[key]
        if rng.random() < 0.2 and isinstance(at, dict):
            at.pop(last)
        else:
            at[last] = _JUNK[int(rng.integers(len(_JUNK)))]
        path.write_text(json.dumps(content))
        return f"{path.name}: {[*above, last]}"
    elif kind == "remove":
        path = folder / str(rng.choice([*names, WEIGHTS]))
        path.unlink()
    else:
        state = load_file(path)
        name = sorted(state)[int(rng.integers(len(state)))]
        if kind == "drop":
            state.pop(name)
        elif kind == "extra":
            state[f"{name}.more"] = torch.zeros(2)
        elif kind == "dtype":
            state[name] = state[name].to(
                [torch.bfloat16, torch.float16, torch.int8][int(rng.integers(3))]
            )
        else:
            state[name] = torch.zeros(*state[name].shape, 2)
        save_file(state, path, metadata={"format": "pt"})
    return f"{path.name}: {kind}"


def _right_or_refused(tiny_clip_folder, tmp_path, seed):
    """Damage a model; it is then loaded just as the file says, or refused in one line."""
    rng = np.random.default_rng(seed)
    folder = shutil.copytree(tiny_clip_folder, tmp_path / f"damaged-{seed}")
    done = _damage(folder, rng)
    refusal = model = None
    try:
        model = load_model(str(folder))
    except ConfigError as error:
        refusal = str(error)
    finally:
        state = load_file(folder / WEIGHTS) if _readable(folder / WEIGHTS) else {}
        shutil.rmtree(folder)
    if model is None:
        assert "\n" not in refusal, done
        assert len(refusal) < 700, done
        return done, refusal
    own = model.vlm.backbone.state_dict()
    assert own.keys() == state.keys(), done
    for name, tensor in own.items():
        assert torch.equal(tensor, state[name].float()), (done, name)
    assert len(weights_hash(model.vlm)) == 64
    with torch.no_grad():
        texts = model.vlm.encode_text(model.processor.texts(["a red circle", "a blue bar"]))
    assert bool(torch.isfinite(texts).all()), done
    return done, "right"


def _readable(path):
    try:
        load_file(path)
    except Exception:
        return False
    return True


def test_damaged_folders_are_right_or_refused_in_one_line(tiny_clip_folder, tmp_path):
    found = [_right_or_refused(tiny_clip_folder, tmp_path, seed)[1] for seed in range(40)]
    assert 2 < found.count("right") < 20


@pytest.mark.slow
def test_many_damaged_folders_are_right_or_refused_in_one_line(tiny_clip_folder, tmp_path):
    for seed in range(1000, 1400):
        _right_or_refused(tiny_clip_folder, tmp_path, seed)
