"""Fields of an input that a program takes no notice of are refused, or say what it assumes (M4)."""

import pytest
import torch

from secure.errors import ParameterError
from secure.smpc import Query, UnsupportedModuleError, compile, infer
from secure.smpc._inputs import require_mapped
from tests.secure.smpc.towers import MODELS, captions, images, patches, roberta_captions

pytestmark = pytest.mark.filterwarnings("ignore:the calibration is thin")
WIDTH = 9


def _plan(name, inputs):
    torch.manual_seed(0)
    return compile(MODELS[name][0]().eval(), inputs)


@pytest.fixture(scope="module")
def plans():
    return {
        "minilm": _plan("minilm", captions()),
        "padded": _plan("minilm", _padded(9, 4, 6)),
        "clip-text": _plan("clip-text", captions()),
        "siglip2-image": _plan("siglip2-image", patches()),
        "vit": _plan("vit", images()),
        "roberta": _plan("roberta", roberta_captions()),
    }


def _padded(*lengths):
    mask = torch.tensor([[1] * n + [0] * (WIDTH - n) for n in lengths])
    return {"input_ids": torch.randint(3, 58, mask.shape) * mask, "attention_mask": mask}


def _hidden(*places):
    mask = torch.ones(4, WIDTH, dtype=torch.long)
    mask[:, list(places)] = 0
    return {"attention_mask": mask}


def _grid(height, width):
    return {"spatial_shapes": torch.tensor([[height, width]] * 4)}


PIXEL_MASK = torch.tensor([[1, 1, 1, 1, 1, 0]] * 4)
REFUSED = [
    ("minilm", captions, {"position_ids": torch.arange(9).flip(0)}, "position_ids"),
    ("clip-text", captions, {"position_ids": torch.arange(9) + 1}, "position_ids"),
    ("minilm", captions, _hidden(4), "has padding"),
    # The first caption's end is its last token, the second's the fifth.
    ("clip-text", captions, _hidden(2), "before the caption's end"),
    ("padded", captions, _hidden(0), "hides the first token"),
    ("siglip2-image", patches, {"pixel_attention_mask": PIXEL_MASK}, "hides patches"),
    ("siglip2-image", patches, _grid(3, 2), "2 × 3"),
    ("vit", images, _hidden(4), "has padding"),
    ("vit", images, {"bool_masked_pos": torch.zeros(4, 4)}, "no notice of 'bool_masked_pos'"),
    ("vit", images, _grid(2, 2), "no notice of 'spatial_shapes'"),
    ("minilm", captions, {"anything": torch.ones(4)}, "no notice of 'anything'"),
    ("roberta", roberta_captions, {"position_ids": torch.arange(9)}, "other than 2, 3"),
]


@pytest.mark.parametrize(("name", "batch", "extra", "message"), REFUSED)
def test_m4_what_a_program_takes_no_notice_of_is_refused(plans, name, batch, extra, message):
    torch.manual_seed(1)
    with pytest.raises(ParameterError, match=message):
        infer(plans[name], {**batch(), **extra}, Query("embedding", batch=4))


HARMLESS = [
    ("minilm", captions, {"position_ids": torch.arange(9)}),
    ("minilm", captions, _hidden()),
    ("clip-text", captions, {"position_ids": torch.arange(9).expand(4, 9)}),
    ("siglip2-image", patches, {"pixel_attention_mask": torch.ones(4, 6)}),
    ("roberta", roberta_captions, {"position_ids": torch.arange(2, 11)}),
    ("padded", captions, _hidden(2, 5)),
]


@pytest.mark.parametrize(("name", "batch", "extra"), HARMLESS)
def test_fields_that_say_what_is_assumed_are_taken(plans, name, batch, extra):
    require_mapped(plans[name].program, {**batch(), **extra})


def test_m4_a_grid_must_be_named(plans):
    raw = {"pixel_values": patches()["pixel_values"]}
    with pytest.raises(ParameterError, match="spatial_shapes is missing"):
        require_mapped(plans["siglip2-image"].program, raw)


@pytest.mark.parametrize("place", [0, 4, 8])
def test_m4_padding_tokens_that_count_are_refused(plans, place):
    ids = roberta_captions()["input_ids"]
    ids[0, place] = 1
    message = "isn't hidden" if place == 8 else "stands before others"
    with pytest.raises(ParameterError, match=message):
        require_mapped(plans["roberta"].program, {"input_ids": ids})


def test_m4_masks_that_hide_middle_tokens_are_heeded_where_padding_is(plans):
    """Whatever the mask hides behind the first token, the result is the model's or refused."""
    torch.manual_seed(0)
    model = MODELS["minilm"][0]().eval()
    inputs = {**captions(), **_hidden(2, 5, 8)}
    with torch.no_grad():
        expected = model(**inputs).last_hidden_state.double()
    found = infer(plans["padded"], inputs, Query("embedding", batch=4)).value
    keep = inputs["attention_mask"].bool()
    assert float((found - expected)[keep].abs().max()) < 1e-2


def test_m4_compiling_refuses_what_it_does_not_map():
    torch.manual_seed(0)
    model = MODELS["minilm"][0]().eval()
    for extra in ({"position_ids": torch.arange(9).flip(0).expand(4, 9)},):
        with pytest.raises(ParameterError, match="position_ids|parts that the mapping"):
            compile(model, {**captions(), **extra})
    with pytest.raises(ParameterError, match="is a bool"):
        compile(model, {**captions(), "return_dict": True})  # type: ignore[dict-item]
    clip = MODELS["clip-text"][0]().eval()
    with pytest.raises((ParameterError, UnsupportedModuleError)):
        compile(clip, {**captions(), **_hidden(1)})
