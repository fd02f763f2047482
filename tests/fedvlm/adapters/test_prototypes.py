"""Prototypes on models of any family: an empty sum changes no ranking, a full one does."""

import numpy as np
import pytest
import torch

from fedvlm.adapters import AdapterSpec, attach, load_adapter, save_adapter
from fedvlm.errors import ConfigError
from fedvlm.models import VLM, weights_hash
from fedvlm.seeds import ExperimentSeed
from tests.fedvlm.conftest import tiny_config


def tiny(kind: str) -> VLM:
    """Return a tiny random model of a family."""
    from transformers import AutoModel

    torch.manual_seed(0)
    return VLM(AutoModel.from_config(tiny_config(kind)).eval())


def inputs() -> tuple[dict, dict]:
    """Return five images and seven captions."""
    generator = torch.Generator().manual_seed(1)
    ids = torch.randint(4, 90, (7, 8), generator=generator)
    ids[:, -1] = 3
    images = torch.randn(5, 3, 32, 32, generator=generator)
    return {"pixel_values": images}, {"input_ids": ids, "attention_mask": torch.ones_like(ids)}


@pytest.mark.parametrize("kind", ["clip", "siglip"])
def test_an_empty_sum_ranks_as_zero_shot_and_a_full_one_finds_its_images(kind, tmp_path):
    vlm = tiny(kind)
    images, texts = inputs()
    before, base = vlm.similarity(images, texts).detach(), weights_hash(vlm)
    spec = AdapterSpec("prototypes", rows=512)
    view = attach(vlm, spec, ExperimentSeed(0))
    assert weights_hash(vlm) == base
    after = vlm.similarity(images, texts)
    assert torch.equal(before.argsort(dim=1), after.argsort(dim=1))
    norms = vlm.embed(images, "image").norm(dim=1)
    assert torch.allclose(norms, torch.ones(5), atol=1e-5)
    head = vlm.head
    vlm.head = None
    embedded = vlm.embed(images, "image")
    vlm.head = head
    rows = head.rows_of(texts)[:5]
    places, vectors = head.terms(head.features(embedded, images), rows, np.arange(5))
    total = np.zeros((512, head.width + 1), dtype=np.float32)
    np.add.at(total, places, vectors.astype(np.float32))
    view.write(total.reshape(-1))
    width = vlm.embedding_dim  # beside the towers' own embeddings, which are random here
    likeness = vlm.embed(images, "image")[:, width:] @ vlm.embed(texts, "text")[:, width:].T
    assert likeness[:, :5].argmax(dim=1).tolist() == [0, 1, 2, 3, 4]
    save_adapter(vlm, spec, tmp_path)
    again = tiny(kind)
    assert load_adapter(again, tmp_path) == spec
    assert torch.equal(vlm.embed(texts, "text"), again.embed(texts, "text"))


def test_a_second_adapter_is_refused():
    vlm = tiny("clip")
    attach(vlm, AdapterSpec("prototypes"), ExperimentSeed(0))
    with pytest.raises(ConfigError, match="already has an adapter"):
        attach(vlm, AdapterSpec("feature"), ExperimentSeed(0))
    with pytest.raises(ConfigError, match="rows"):
        AdapterSpec("prototypes", rows=1)


def test_declared_captions_have_a_row_each_and_others_none():
    vlm = tiny("clip")
    attach(vlm, AdapterSpec("prototypes"), ExperimentSeed(0))
    _, texts = inputs()
    vlm.head.declare({key: value[:4] for key, value in texts.items()})
    rows = vlm.head.rows_of(texts)
    assert sorted(rows[:4]) == [0, 1, 2, 3]
    assert (rows[4:] == -1).all()
    places, _ = vlm.head.terms(np.ones((7, vlm.head.width)), rows, np.arange(7))
    assert len(places) == 4
