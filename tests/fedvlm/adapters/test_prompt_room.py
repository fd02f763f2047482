"""D10: the prompt adapter takes captions of any length; they are cut to what is left."""

import dataclasses

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from fedvlm.adapters import AdapterSpec, attach
from fedvlm.errors import ConfigError
from fedvlm.models import VLM, load_model
from fedvlm.seeds import ExperimentSeed
from fedvlm.training.pairs import encode_pairs
from tests.fedvlm.conftest import tiny_backbone

FULL = 16  # the tiny text towers' places
FAMILIES = ("clip", "siglip", "siglip2")


def _with_prompt(family, tokens=4, left_padding=None):
    vlm = VLM(tiny_backbone(family))
    vlm.left_padding = left_padding
    attach(vlm, AdapterSpec("prompt", tokens=tokens), ExperimentSeed(0))
    return vlm


def _clip_row(words, length):
    """Start, words (cut to fit), end, padding: what CLIP's tokenizer makes."""
    ids = [2, *words[: length - 2], 3]
    mask = [1] * len(ids) + [0] * (length - len(ids))
    return ids + [0] * (length - len(ids)), mask


def _siglip_row(words, length, pad=1, left=False):
    """Words (cut to fit), end, padding: what SigLIP's tokenizer makes."""
    ids = [*words[: length - 1], 3]
    padding = [pad] * (length - len(ids))
    return padding + ids if left else ids + padding


@settings(max_examples=60, deadline=None)
@given(
    st.lists(st.lists(st.integers(5, 90), max_size=20), min_size=1, max_size=4),
    st.integers(1, 12),
    st.integers(6, FULL),
)
def test_clip_captions_are_cut_as_its_tokenizer_would(captions, tokens, length):
    prompt = _PROMPTS["clip", tokens]
    rows = [_clip_row(words, length) for words in captions]
    inputs = {"input_ids": [r[0] for r in rows], "attention_mask": [r[1] for r in rows]}
    out = prompt({key: torch.tensor(value) for key, value in inputs.items()})
    room = min(FULL - tokens, length)
    for row, words in enumerate(captions):
        ids, mask = _clip_row(words, room)
        found = out["input_ids"][row].tolist()
        assert [found[0], *found[1 + tokens :]] == ids
        assert out["attention_mask"][row].tolist() == [1] * tokens + mask
    assert out["input_ids"].shape[1] <= FULL


@settings(max_examples=60, deadline=None)
@given(
    st.lists(st.lists(st.integers(5, 90), max_size=20), min_size=1, max_size=4),
    st.integers(1, 12),
    st.booleans(),
)
def test_siglip_captions_keep_their_words_and_the_place_that_is_read(captions, tokens, left):
    prompt = _PROMPTS["left" if left else "siglip", tokens]
    ids = torch.tensor([_siglip_row(words, FULL, left=left) for words in captions])
    out = prompt({"input_ids": ids})["input_ids"]
    assert out.shape == (len(captions), FULL)
    room = FULL - tokens
    for row, words in enumerate(captions):
        kept = out[row, tokens:].tolist()
        assert kept[-1] == ids[row, -1]
        own = [token for token in kept if token >= 5]
        assert own == words[: len(own)]
        assert len(own) == min(len(words), room - 1)


_PROMPTS = {
    (name, n): _with_prompt(
        "clip" if name == "clip" else "siglip", n, 1 if name == "left" else None
    ).prompt
    for name in ("clip", "siglip", "left")
    for n in range(1, 13)
}


@pytest.mark.parametrize("family", FAMILIES)
def test_full_captions_embed_and_train(family):
    vlm = _with_prompt(family)
    ids = torch.randint(5, 90, (3, FULL), generator=torch.Generator().manual_seed(0))
    ids[:, 0], ids[:, -1] = 2, 3
    embedded = vlm.encode_text({"input_ids": ids})
    assert embedded.shape == (3, vlm.embedding_dim)
    embedded[:, 0].sum().backward()
    grad = vlm.prompt.context.grad
    assert bool(grad.any(dim=1).all())


def test_one_long_caption_leaves_the_others_as_they_were(tiny_clip_folder, shapes):
    """D4: a single caption that fills the context doesn't stop a run, nor change other rows."""
    model = load_model(str(tiny_clip_folder))
    attach(model.vlm, AdapterSpec("prompt", tokens=4), ExperimentSeed(0))
    captions = list(shapes.captions)
    long = dataclasses.replace(shapes, captions=("a red circle " * 300, *captions[1:]))
    pairs, longer = (encode_pairs(data, model, lambda *_: None) for data in (shapes, long))
    with torch.no_grad():
        before = model.vlm.encode_text(pairs.captions(pairs.caption_of[1:]))
        after = model.vlm.encode_text(longer.captions(longer.caption_of))
    assert torch.allclose(before, after[1:], atol=1e-6)


def test_an_old_configuration_s_end_is_the_largest_id():
    backbone = tiny_backbone("clip")
    backbone.config.text_config.eos_token_id = 2
    vlm = VLM(backbone)
    attach(vlm, AdapterSpec("prompt", tokens=4), ExperimentSeed(0))
    ids = torch.tensor([[1, *range(10, 24), 95], [1, 10, 95, *[95] * 13]])
    out = vlm.prompt({"input_ids": ids})["input_ids"]
    assert out[:, 5:].tolist() == [[*range(10, 20), 95], [10, 95, *[95] * 9]]


@pytest.mark.parametrize("family", FAMILIES)
def test_a_context_that_leaves_no_room(family):
    _with_prompt(family, tokens=13)
    with pytest.raises(ConfigError, match="14 context tokens leave no room.*use at most 13"):
        _with_prompt(family, tokens=14)


def test_a_run_on_siglip_with_the_prompt_adapter(tiny_siglip_folder, small_run):
    from fedvlm.config import config_from
    from fedvlm.federation import simulate

    config = config_from(
        small_run | {"model": str(tiny_siglip_folder), "adapter": "prompt", "rounds": 1}
    )
    result = simulate(config)
    assert np.isfinite(result.rounds[1]["train_loss"])
