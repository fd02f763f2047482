"""Which model this is: the same hash for the same weights, another one for one other bit."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file
from transformers import AutoTokenizer

from fedvlm.adapters import AdapterSpec, attach
from fedvlm.models import VLM, load_model, tokenizer_hash, weights_hash
from fedvlm.seeds import ExperimentSeed
from tests.fedvlm.conftest import tiny_backbone

FAMILIES = ("clip", "siglip", "siglip2")


def test_the_same_file_loaded_twice_and_saved_in_another_order(tiny_clip_folder, tmp_path):
    one, two = (load_model(str(tiny_clip_folder)) for _ in range(2))
    assert weights_hash(one.vlm) == weights_hash(two.vlm)
    assert one.hashes == two.hashes
    state = load_file(tiny_clip_folder / "model.safetensors")
    save_file(dict(reversed(state.items())), tmp_path / "again.safetensors")
    again = tiny_backbone("clip")
    again.load_state_dict(load_file(tmp_path / "again.safetensors"))
    assert weights_hash(again) == weights_hash(one.vlm)


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 2**32), st.sampled_from([torch.float32, torch.bfloat16, torch.float16]))
def test_one_bit_makes_another_hash(seed, dtype):
    rng = torch.Generator().manual_seed(seed)
    module = torch.nn.Sequential(torch.nn.Linear(5, 3), torch.nn.Linear(3, 2)).to(dtype)
    before = weights_hash(module)
    assert weights_hash(module) == before
    tensors = list(module.state_dict().values())
    chosen = tensors[int(torch.randint(len(tensors), (), generator=rng))]
    octets = chosen.view(-1).view(torch.uint8)
    place = int(torch.randint(octets.numel(), (), generator=rng))
    bit = int(torch.randint(8, (), generator=rng))
    octets[place] ^= 1 << bit
    assert weights_hash(module) != before
    octets[place] ^= 1 << bit
    assert weights_hash(module) == before


def test_name_dtype_and_shape_count():
    layer = torch.nn.Linear(4, 4, bias=False)
    before = weights_hash(layer)
    assert weights_hash(torch.nn.Sequential(layer)) != before
    other = torch.nn.Linear(8, 2, bias=False)
    other.weight.data = layer.weight.data.reshape(2, 8)
    assert weights_hash(other) != before
    held = torch.nn.Module()
    held.register_buffer("weight", layer.weight.detach())
    assert weights_hash(held) == before
    held.weight = layer.weight.detach().view(torch.int32)
    assert weights_hash(held) != before


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("kind", ["lora", "ffa-lora", "prompt", "feature"])
def test_an_adapter_does_not_change_the_base_model_s_hash(kind, family):
    vlm = VLM(tiny_backbone(family))
    before = weights_hash(vlm)
    targets = r".*self_attn\.(q_proj|v_proj)"
    view = attach(vlm, AdapterSpec(kind, rank=2, targets=targets, tokens=2), ExperimentSeed(0))
    assert weights_hash(vlm) == before
    view.write(view.read() + 1)
    assert weights_hash(vlm) == before


def test_tokenizers(tiny_clip_folder):
    tokenizer = AutoTokenizer.from_pretrained(tiny_clip_folder)
    before = tokenizer_hash(tokenizer)
    tokenizer(["a red circle"], padding="max_length", truncation=True, max_length=9)
    assert tokenizer_hash(tokenizer) == before
    assert tokenizer_hash(AutoTokenizer.from_pretrained(tiny_clip_folder)) == before
    tokenizer.add_tokens(["zebra"])
    assert tokenizer_hash(tokenizer) != before


def test_the_embedded_model_has_hashes_too():
    one, two = load_model(), load_model()
    assert one.hashes == two.hashes
    assert len(one.hashes.weights) == len(one.hashes.tokenizer) == 64
