"""One protocol over CLIP, SigLIP and SigLIP 2, from memory and from a folder."""

import dataclasses
import shutil

import numpy as np
import pytest
import torch

from fedvlm.errors import ConfigError
from fedvlm.models import VLM, load_model
from fedvlm.training.pairs import encode_pairs
from tests.fedvlm.conftest import tiny_backbone, tiny_inputs

KINDS = ("clip", "siglip", "siglip2")


@pytest.mark.parametrize("kind", KINDS)
def test_embeddings_match_the_model_s_own_logits(kind):
    backbone = tiny_backbone(kind)
    vlm = VLM(backbone)
    images, texts = tiny_inputs(kind)
    with torch.no_grad():
        ours = vlm.logit_scale * vlm.similarity(images, texts)
        theirs = backbone(**images, **texts).logits_per_image
        if kind != "clip":  # SigLIP adds a bias, which no ranking depends on
            theirs = theirs - backbone.logit_bias
        norms = vlm.encode_image(images).norm(dim=1)
    assert torch.allclose(ours, theirs, atol=1e-5)
    assert torch.allclose(norms, torch.ones(3), atol=1e-6)
    assert vlm.encode_text(texts).shape == (3, vlm.embedding_dim)


def test_embed_equals_encode_batch_by_batch():
    vlm = VLM(tiny_backbone("clip"))
    images, texts = tiny_inputs("clip", rows=7)
    with torch.no_grad():
        whole = vlm.encode_image(images)
    assert torch.allclose(vlm.embed(images, "image", batch_size=2), whole, atol=1e-6)
    assert vlm.embed(texts, "text").shape == (7, 16)


def test_another_kind_of_model_is_refused():
    with pytest.raises(ConfigError, match="no image and text encoder"):
        VLM(torch.nn.Linear(2, 2))


def test_a_folder_in_hugging_face_s_format(tiny_clip_folder, shapes):
    model = load_model(str(tiny_clip_folder))
    inputs = model.processor.images(shapes, np.arange(4), lambda *_: None)(np.arange(4))
    assert inputs["pixel_values"].shape == (4, 3, 32, 32)
    texts = model.processor.texts(["a red circle", "a blue bar"])
    assert texts["input_ids"].shape == (2, 16)
    assert model.vlm.similarity(inputs, texts).shape == (4, 2)


@pytest.mark.parametrize(
    ("kind", "side"), [("clip", "right"), ("siglip", "right"), ("siglip", "left")]
)
def test_a_caption_embeds_to_the_same_in_any_batch(kind, side, tiny_clip_folder, shapes, tmp_path):
    """Otherwise one pair would move another's gradient, and no clip norm would bound it."""
    from transformers import AutoTokenizer

    shutil.copytree(tiny_clip_folder, tmp_path / kind)
    tiny_backbone(kind).save_pretrained(tmp_path / kind)
    tokenizer = AutoTokenizer.from_pretrained(tiny_clip_folder, padding_side=side)
    assert "attention_mask" in tokenizer("a red circle")
    tokenizer.save_pretrained(tmp_path / kind)
    model = load_model(str(tmp_path / kind))
    pairs = encode_pairs(shapes, model, lambda *_: None)
    text = model.processor.texts(["a circle", "a red circle", "a a a a red circle"])
    pairs = dataclasses.replace(pairs, text=text)
    with torch.no_grad():
        alone = [model.vlm.encode_text(pairs.captions(np.array([row])))[0] for row in range(3)]
        together = model.vlm.encode_text(pairs.captions(np.arange(3)))
    assert torch.allclose(torch.stack(alone), together, atol=1e-5)
    assert not torch.allclose(together[0], together[2], atol=1e-3)


def test_a_folder_that_holds_no_model(tmp_path):
    with pytest.raises(ConfigError, match="can't load folder"):
        load_model(str(tmp_path))


def test_a_model_of_another_family(tmp_path):
    from transformers import BertConfig

    BertConfig().save_pretrained(tmp_path)
    with pytest.raises(ConfigError, match="is a 'bert' model; use one of clip"):
        load_model(str(tmp_path))
