"""The embedded data as frozen features, cached once, and what a head is measured on."""

import hashlib
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from fedvlm.data import Splits, load_emoji, make_splits
from fedvlm.files import cache_dir, whole_file
from fedvlm.heads import Control, TextMap, fit_control, fit_whitening
from fedvlm.heads.text import whiten_texts
from fedvlm.heads.whitening import unit_rows
from fedvlm.seeds import ExperimentSeed
from fedvlm.training.evaluation import retrieval

Floats = NDArray[np.float64]
PARTS = ("validation", "test", "ood", "withheld")
SIZE = 255


@dataclass(frozen=True)
class World:
    """Frozen features of every pair and caption.

    Attributes:
        images: Shape (N, D): zero-shot embeddings.
        texts: Shape (C, D).
        caption_of: Shape (N,).
        features: Shape (N, d): whitened by public pairs, unit rows.
        control: Fitted to public pairs.
        text_map: Whitened text embeddings, by public captions.
        splits: Who holds what, by seed.
    """

    images: Floats
    texts: Floats
    caption_of: NDArray[np.int64]
    features: Floats
    control: Control
    text_map: TextMap

    @cached_property
    def directions(self) -> Floats:
        """The control's prototypes of every caption: shape (C, d)."""
        return self.control.prototypes(self.texts)

    def score(self, part: NDArray[np.int64], scores_of) -> float:
        """Return one of 100 of a part, in percent.

        Args:
            part: Rows.
            scores_of: (rows, captions) → scores of shape (N, C).
        """
        gallery = np.unique(self.caption_of[part])
        right = np.searchsorted(gallery, self.caption_of[part])
        return 100 * retrieval(scores_of(part, gallery), right).one_of_100

    def zero_shot(self, part: NDArray[np.int64], gallery: NDArray[np.int64]) -> Floats:
        """Return cosines of shape (N, C)."""
        return self.images[part] @ self.texts[gallery].T

    def by_control(self, part: NDArray[np.int64], gallery: NDArray[np.int64]) -> Floats:
        """Return the control's scores: shape (N, C)."""
        likeness = self.features[part] @ unit_rows(self.directions[gallery]).T
        return 0.3 * self.zero_shot(part, gallery) + likeness


def splits_of(seed: int) -> Splits:
    """Return the federation's splits of a seed, ten clients."""
    return make_splits(load_emoji(lambda *_: None), ExperimentSeed(seed), clients=10)


def load_world() -> World:
    """Load the features from the cache, or compute them (20 s)."""
    data = load_emoji(lambda *_: None)
    key = hashlib.sha256(data.fingerprint.encode()).hexdigest()[:16]
    path = cache_dir() / "features" / f"heads-{key}.npz"
    if not path.exists():
        with whole_file(path) as temporary, temporary.open("wb") as file:
            np.savez(file, **_computed(data))  # pyright: ignore[reportArgumentType]
    with np.load(path, allow_pickle=False) as held:
        raw, images, texts = held["raw"], held["images"], held["texts"]
    caption_of = data.distinct_captions[1]
    public = splits_of(0).public
    whitening = fit_whitening(raw[public], data.concepts[public], 0.5, SIZE)
    features = whitening(raw)
    control = fit_control(features[public], caption_of[public], texts)
    text_map = whiten_texts(texts[np.unique(caption_of[public])])
    return World(images, texts, caption_of, features, control, text_map)


def _computed(data) -> dict[str, NDArray[np.float32]]:
    import torch

    from fedvlm.models import load_model
    from fedvlm.models.stem import stem_features
    from fedvlm.training import encode_pairs

    model, rows = load_model("embedded"), np.arange(len(data))
    pairs = encode_pairs(data, model, lambda *_: None, rows)
    raw = np.asarray(stem_features(data, rows, lambda *_: None), dtype=np.float32).mean((2, 3))
    parts = [
        model.vlm.embed(pairs.images(rows[start : start + 256]), "image")
        for start in range(0, len(rows), 256)
    ]
    return {
        "raw": raw,
        "images": torch.cat(parts).numpy(),
        "texts": model.vlm.embed(pairs.text, "text").numpy(),
    }
