"""Rows of the trust grid that change who computes, not what: the same model in private inference.

The run's image tower is asked in the clear, by two-party computation behind the public stem, and
with its projection under encryption. Each row is read off the same images, so that the rows can be
tested for equality; embeddings of captions are the owner's, in the clear.
"""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch.nn import functional as F

from fedvlm.data.variants import DEFAULT_TONE
from fedvlm.inference.owner import OwnedModel, load_owned
from fedvlm.trust.audit import contexts_of
from fedvlm.trust.calibration import confidences
from fedvlm.trust.columns_fairness import load_tone_rows
from fedvlm.trust.context import Context, Sizes, first_among
from fedvlm.trust.readings import Column, Reading, reading_of, reading_of_gap

Floats = NDArray[np.float64]
IMAGES, PAIRS = 320, 96  # of the test part, and default–dark pairs of tones: 512 images together
_BATCH = 16
_CALIBRATION = 128
_RELATIVE_ERROR = 3e-4
_DARK = "dark"


def _unit(values: Floats) -> Floats:
    return values / np.linalg.norm(values, axis=1, keepdims=True)


def _float(owned: OwnedModel, pixels: torch.Tensor, public: torch.Tensor) -> Floats:
    return owned.loaded.vlm.embed({"pixel_values": pixels}, "image").double().numpy()


def _smpc(owned: OwnedModel, pixels: torch.Tensor, public: torch.Tensor) -> Floats:
    from secure.smpc import Query, compile, infer

    plan = compile(owned.private_part, public, public_parts=owned.preparation.public_parts)
    query = Query("embedding", batch=_BATCH)
    parts = [
        infer(plan, {"pixel_values": pixels[at : at + _BATCH]}, query).value
        for at in range(0, len(pixels), _BATCH)
    ]
    return F.normalize(torch.cat(parts).double(), dim=-1).numpy()


def _pooled(owned: OwnedModel, pixels: torch.Tensor) -> Floats:
    backbone: Any = owned.loaded.vlm.backbone
    with torch.inference_mode():
        parts = [backbone.vision_model(pixel_values=one).pooler_output for one in pixels.split(128)]
    return torch.cat(parts).double().numpy()


def _he(owned: OwnedModel, pixels: torch.Tensor, public: torch.Tensor) -> Floats:
    from secure.he import Encrypted, EncryptedProjection, HEClient, HEParams

    values = _pooled(owned, pixels)
    # The range is set from public images, never from those that are encrypted.
    largest = 1.5 * float(np.linalg.norm(_pooled(owned, public), axis=1).max())
    params = HEParams.select(0, largest, _RELATIVE_ERROR * largest, batch=len(values))
    layer = EncryptedProjection.from_model(owned.loaded.vlm, "image", params, batch=len(values))
    client = HEClient(params)
    keys = client.evaluation_keys(layer.plan)
    sent = Encrypted.from_bytes(client.encrypt(values, layer.plan).to_bytes(), params)
    return _unit(client.decrypt(Encrypted.from_bytes(layer(sent, keys).to_bytes(), params)))


INFERENCES: dict[str, Callable[[OwnedModel, torch.Tensor, torch.Tensor], Floats]] = {
    "float": _float,
    "smpc": _smpc,
    "he": _he,
}
"""Who computes → embeddings of pixels; the last argument is public images, for ranges."""


def _tone_rows(context: Context, pairs: int) -> tuple[Any, NDArray[np.int64], NDArray[np.bool_]]:
    """Choose a default and a dark drawing of some concepts, each by one designer."""
    tones, rows = load_tone_rows(context)
    tone = np.array([tones.more["tone"][row] for row in rows])
    first = {}
    for place, row in enumerate(rows):
        if tone[place] in (DEFAULT_TONE, _DARK):
            key = (int(tones.concepts[row]), int(tones.domains[row]))
            first.setdefault(key, {})[tone[place]] = int(row)
    whole = [both for both in first.values() if len(both) == 2]
    chosen = context.rng("inference").permutation(len(whole))[:pairs]
    both = np.array([[whole[n][DEFAULT_TONE], whole[n][_DARK]] for n in chosen], dtype=np.int64)
    return tones, both.reshape(-1), np.arange(both.size) % 2 == 1


def run_inference(which: str, folder: Path, images: int = IMAGES, pairs: int = PAIRS) -> dict:
    """Ask a run's model for images of the test and of tones, and read the primary measures off.

    Args:
        which: A name in `INFERENCES`.
        folder: Of a finished run.
        images: Of the test part; with twice `pairs` a multiple of 16.
        pairs: Default–dark pairs of tones.

    Returns:
        Columns as an audit has them, and how far the embeddings are from those in the clear.
    """
    _, context, identity = contexts_of(folder, Sizes(designers=1))
    owned = load_owned(run=folder)
    data, splits = context.data, context.splits
    rows = context.sample(splits.test, images, "inference")
    tones, tone_rows, dark = _tone_rows(context, pairs)
    processor = owned.loaded.processor

    def pixels(source: Any, chosen: NDArray[np.int64]) -> torch.Tensor:
        return processor.images(source, chosen, lambda *_: None)(chosen)["pixel_values"]

    public = splits.public[:: max(1, len(splits.public) // _CALIBRATION)]
    asked = torch.cat([pixels(data, rows), pixels(tones, tone_rows)])
    exact = _float(owned, asked, asked)
    found = exact if which == "float" else INFERENCES[which](owned, asked, pixels(data, public))
    read = _columns(context, owned, found, rows, (tones, tone_rows, dark))
    texts = owned.embed_labels(context.captions).double().numpy()
    tops = [(one[: len(rows)] @ texts.T).argmax(axis=1) for one in (found, exact)]
    return {
        "columns": [column.to_dict() for column in read],
        "identity": {**identity, "images": len(asked)},
        "same_first": float((tops[0] == tops[1]).mean()),
        "largest_error": float(np.abs(found - exact).max()),
    }


def _columns(
    context: Context,
    owned: OwnedModel,
    found: Floats,
    rows: NDArray[np.int64],
    tones: tuple[Any, NDArray[np.int64], NDArray[np.bool_]],
) -> list[Column]:
    variants, tone_rows, dark = tones
    texts = owned.embed_labels(context.captions).double().numpy()
    right = context.right(rows, context.captions)
    test, concepts = found[: len(rows)], context.data.concepts[rows]
    sure, correct = confidences(test @ texts.T, right, context.subject.scale)
    names = sorted(set(variants.captions))
    words = owned.embed_labels(names).double().numpy()
    first = first_among(found[len(rows) :], words, context.right(tone_rows, names, variants))
    of = variants.concepts[tone_rows]
    gap = reading_of_gap((first[~dark], of[~dark]), (first[dark], of[dark]), context.rng("tones"))
    told: dict[str, tuple[str, str, Reading]] = {
        "one_of_100": (
            "utility",
            "test, one of 100",
            reading_of(first_among(test, texts, right), concepts),
        ),
        "tone_gap": ("fairness", "tone gap, default − dark", gap),
        "overconfidence": (
            "robustness",
            "confidence − accuracy",
            reading_of(sure - correct, concepts),
        ),
    }
    return [
        Column(pillar, name, title, after=one.estimate, by_concept=one.by_concept or {})
        for name, (pillar, title, one) in told.items()
    ]
