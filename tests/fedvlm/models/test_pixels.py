"""Pixels processed once are the pixels processed anew; features of a frozen tower likewise."""

import numpy as np
import pytest
import torch
import transformers

from fedvlm.adapters import AdapterSpec, attach
from fedvlm.data import loading, store
from fedvlm.data.loading import each
from fedvlm.errors import DataError
from fedvlm.models import load_model
from fedvlm.models.pixels import PartedProcessor, PixelInputs, processor_hash
from fedvlm.models.vlm import POOLED
from fedvlm.seeds import ExperimentSeed
from fedvlm.training import LocalSettings, encode_pairs, train_adapter
from fedvlm.training.pooled import image_tower_frozen, with_pooled

SQUARE = {"height": 32, "width": 32}
PROCESSORS = {
    "clip": lambda: transformers.CLIPImageProcessorPil(
        size={"shortest_edge": 32}, crop_size=SQUARE
    ),
    "siglip": lambda: transformers.SiglipImageProcessorPil(size=SQUARE),
    "siglip2": lambda: transformers.Siglip2ImageProcessorPil(patch_size=8, max_num_patches=16),
    "vit": lambda: transformers.ViTImageProcessorPil(size=SQUARE),
    "plain": lambda: transformers.ViTImageProcessorPil(
        size=SQUARE, do_normalize=False, do_rescale=False
    ),
}
QUIET = lambda *_: None  # noqa: E731


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("FEDVLM_CACHE", str(tmp_path / "cache"))


@pytest.mark.parametrize("memory", [0, 10**9])
@pytest.mark.parametrize("kind", PROCESSORS)
def test_rows_are_what_the_processor_makes(kind, memory, shapes, monkeypatch):
    monkeypatch.setattr(store, "IN_MEMORY", memory)
    processor = PROCESSORS[kind]()
    inputs = PixelInputs(shapes, np.arange(40), processor, QUIET)
    asked = np.array([3, 39, 3, 0, 17])
    expected = inputs.anew(asked)
    for _ in range(2):
        found = inputs(asked)
        assert found.keys() == expected.keys()
        for key, value in expected.items():
            assert found[key].dtype == value.dtype
            assert float((found[key] - value).abs().max()) <= 1e-5
    assert inputs._store is not None or kind == "plain"
    beyond = np.array([50])  # nobody announced it
    assert inputs(beyond)["pixel_values"].equal(inputs.anew(beyond)["pixel_values"])


def test_a_second_run_decodes_nothing(shapes, monkeypatch):
    monkeypatch.setattr(store, "IN_MEMORY", 0)
    first = PixelInputs(shapes, np.arange(54), PROCESSORS["clip"](), QUIET)(np.arange(9))
    again = PixelInputs(shapes, np.arange(54), PROCESSORS["clip"](), QUIET)
    monkeypatch.setattr(type(shapes), "image", lambda *_: pytest.fail("decoded again"))
    assert again(np.arange(9))["pixel_values"].equal(first["pixel_values"])


def test_other_options_are_other_pixels():
    hashes = {processor_hash(make()) for make in PROCESSORS.values()}
    assert len(hashes) == len(PROCESSORS)
    other = transformers.SiglipImageProcessorPil(size=SQUARE, image_mean=[0.4, 0.5, 0.5])
    assert processor_hash(other) not in hashes
    assert processor_hash(object()) is None


def test_a_processor_whose_parts_give_other_pixels_is_not_parted(shapes):
    class Odd(transformers.ViTImageProcessorPil):
        def __call__(self, images, **kwargs):
            found = super().__call__(images, **kwargs)
            if kwargs.get("do_normalize", True):
                found["pixel_values"] = found["pixel_values"] + 0.01
            return found

    with pytest.raises(ValueError, match="other pixel_values"):
        PartedProcessor(Odd(size=SQUARE))
    inputs = PixelInputs(shapes, np.arange(9), Odd(size=SQUARE), QUIET)
    assert inputs(np.arange(2))["pixel_values"].equal(inputs.anew(np.arange(2))["pixel_values"])


@pytest.mark.parametrize("processes", [0, 2])
def test_workers_give_what_one_gives_in_order(processes, monkeypatch):
    monkeypatch.setattr(loading, "_AHEAD", 3)
    found = list(each(lambda n: np.array([n * n]), range(40), processes))
    assert [int(x[0]) for x in found] == [n * n for n in range(40)]

    def broken(number):
        if number == 21:
            raise DataError("image 21 is broken")
        return np.array([number])

    taken = []
    with pytest.raises(DataError, match=r"^image 21 is broken$"):
        taken.extend(each(broken, range(40), processes))
    assert len(taken) == 21


@pytest.mark.parametrize(
    ("spec", "frozen"),
    [
        (AdapterSpec(rank=2), False),
        (AdapterSpec(rank=2, targets=r"text_model\..*q_proj"), True),
        (AdapterSpec("feature"), True),
        (AdapterSpec("prompt", tokens=2), True),
    ],
    ids=["lora", "text-lora", "feature", "prompt"],
)
def test_features_of_a_frozen_tower_train_the_same_adapter(spec, frozen, tiny_clip_folder, shapes):
    model = load_model(str(tiny_clip_folder))
    pairs = encode_pairs(shapes, model, QUIET)
    view = attach(model.vlm, spec, ExperimentSeed(0))
    assert image_tower_frozen(model.vlm) == frozen
    rows = np.arange(54)
    pooled = with_pooled(pairs, shapes, model, rows, QUIET)
    assert (pooled is not pairs) == frozen
    if not frozen:
        return
    assert set(pooled.images(rows[:3])) == {POOLED}
    start, ends = view.read(), []
    for each_pairs in (pairs, pooled):
        view.write(start)
        chosen = LocalSettings(epochs=1, batch_size=18, learning_rate=1e-3)
        train_adapter(model.vlm, view, each_pairs, rows, chosen, np.random.default_rng(0))
        ends.append(view.read())
    assert np.abs(ends[0] - start).max() > 1e-4
    assert np.mean(np.abs(ends[0] - ends[1]) > 1e-5) < 0.02
    # A model of other weights takes nothing of these features.
    with torch.no_grad():
        model.vlm.backbone.visual_projection.weight.mul_(2)
    other = load_model(str(tiny_clip_folder))
    assert other.hashes.weights != type(other)(model.vlm, model.processor, "other").hashes.weights
