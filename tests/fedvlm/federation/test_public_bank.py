"""Example-level DP contrasts with public images: they are embedded, also where no one trains."""

import io

import numpy as np
import pytest
import torch
from PIL import Image

from fedvlm.adapters import AdapterSpec, attach
from fedvlm.config import config_from
from fedvlm.data.dataset import ImageTextData
from fedvlm.data.splits import Splits
from fedvlm.federation.retrieval_task import RetrievalTask
from fedvlm.models import load_model
from fedvlm.seeds import ExperimentSeed
from fedvlm.training import encode_pairs


def _data(count):
    rng = np.random.default_rng(5)
    encoded = []
    for _ in range(count):
        held = io.BytesIO()
        Image.fromarray(rng.integers(0, 256, (16, 16, 3), dtype=np.uint8)).save(held, "PNG")
        encoded.append(held.getvalue())
    zeros = np.zeros(count, dtype=np.int64)
    return ImageTextData(
        name="bank",
        encoded=encoded,
        captions=tuple(f"thing {number}" for number in range(count)),
        concepts=np.arange(count, dtype=np.int64),
        domains=zeros,
        topics=zeros,
        public=np.arange(count) >= count // 2,
        domain_names=("one",),
        topic_names=("all",),
        ood_domain=None,
        pretraining_domains=("one",),
    )


@pytest.fixture
def task(tmp_path, monkeypatch):
    monkeypatch.setenv("FEDVLM_CACHE", str(tmp_path))  # nothing is embedded there yet
    data, model, seed = _data(12), load_model("embedded"), ExperimentSeed(0)
    private, public, none = np.arange(6), np.arange(6, 12), np.arange(0)
    splits = Splits((private,), (none,), private, private, none, none, none, public)
    config = config_from({"dp": "example", "rank": 2})
    view = attach(model.vlm, AdapterSpec("lora", 2, 4), seed)
    pairs = encode_pairs(data, model, lambda *_: None, splits.images)
    return RetrievalTask(config, seed, data, pairs, splits, model, view, view.read())


def test_the_bank_of_public_pairs_is_finite_where_no_cache_holds_them(task):
    """Else every example's loss is no number, its clipped gradient zero, and nothing is learned."""
    own = task.splits.clients[0]
    loss, batch = task.private_loss(own, None)
    with torch.no_grad():
        found = loss(task.model.vlm, batch(np.arange(len(own))))
    assert found.shape == (6,)
    assert torch.isfinite(found).all()
