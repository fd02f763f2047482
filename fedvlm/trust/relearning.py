"""Does what a model was made to forget come back at once? Relearning of a forget list.

Whoever holds an adapter may tune it on pairs of their own. What is only hidden comes back in a few
steps, also for pairs that were not tuned on; what is not there has to be learned. So several
adapters are tuned alike, and what counts is the difference to one that never had the pairs.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from fedvlm.adapters.flat import FlatView
from fedvlm.config.training import LocalSettings
from fedvlm.errors import ConfigError
from fedvlm.models.vlm import VLM
from fedvlm.training.local import train_adapter
from fedvlm.training.pairs import EncodedPairs
from fedvlm.trust.context import first_among
from fedvlm.trust.contrasts import cluster_means, over_seeds
from fedvlm.trust.estimate import Estimate

Rows = NDArray[np.int64]
EPOCHS = (0, 1, 2, 4, 8)
_DRAWS = 1000
TRAINED, UNSEEN, RETAIN = "trained on", "other drawings", "retain"
Curve = Mapping[int, Mapping[str, Mapping[int, float]]]
"""Epochs of tuning → part → first places by concept, in [0, 1]."""


@dataclass(frozen=True, eq=False)
class Parts:
    """What an adapter is tuned on, and what is then asked.

    Attributes:
        tuning: Shape (n,), pairs of the forget list, n at least 2.
        scored: Pairs by part; none of them shows what a tuning pair shows.
        gallery: Shape (C,), rows of the captions that each image's own is looked for among.
    """

    tuning: Rows
    scored: Mapping[str, Rows]
    gallery: Rows


def parts_of(
    pairs: EncodedPairs, trained: Rows, unseen: Rows, retain: Rows, rng: np.random.Generator
) -> Parts:
    """Draw what is tuned on: half of each concept's unseen pairs, rounded up.

    Args:
        pairs: The data.
        trained: Pairs of the forget list that the federation trained on: all of them are scored.
        unseen: Pairs of the same concepts that nobody trained on; those that aren't tuned on are
            scored.
        retain: Pairs of other concepts.
        rng: Draws.
    """
    order = rng.permutation(unseen)
    order = order[np.argsort(pairs.concepts[order], kind="stable")]
    _, first, counts = np.unique(pairs.concepts[order], return_index=True, return_counts=True)
    place = np.arange(len(order)) - np.repeat(first, counts)
    tuned = place < np.repeat((counts + 1) // 2, counts)
    scored = {TRAINED: np.sort(trained), UNSEEN: np.sort(order[~tuned]), RETAIN: np.sort(retain)}
    gallery = np.unique(pairs.caption_of[np.concatenate([trained, unseen, retain])])
    return Parts(np.sort(order[tuned]), scored, gallery)


def first_places(
    vlm: VLM, pairs: EncodedPairs, scored: Mapping[str, Rows], gallery: Rows
) -> dict[str, dict[int, float]]:
    """Return how often images have their own caption first of 100: part → concept → mean.

    The rows of captions in `gallery`, shape (C,), are sorted, the parts' own among them.
    """
    texts = vlm.embed(pairs.captions(gallery), "text").double().numpy()
    found = {}
    for name, rows in scored.items():
        images = vlm.embed(pairs.images(rows), "image").double().numpy()
        right = np.searchsorted(gallery, pairs.caption_of[rows])
        found[name] = cluster_means(first_among(images, texts, right), pairs.concepts[rows])
    return found


def relearned(
    vlm: VLM,
    view: FlatView,
    pairs: EncodedPairs,
    state: NDArray[np.float32],
    parts: Parts,
    settings: LocalSettings,
    rng_of: Callable[[], np.random.Generator],
    epochs: Sequence[int] = EPOCHS,
) -> Curve:
    """Tune an adapter on the tuning part alone, and score it after some numbers of epochs.

    Each number of epochs starts anew with the same shuffles: eight go through what four gave.

    Args:
        vlm: A model with an adapter.
        view: Its trainable parameters; what they hold is put back.
        pairs: The data.
        state: Shape (P,), the adapter before tuning.
        parts: What is tuned on and what is scored.
        settings: Of local training; its epochs are not looked at.
        rng_of: Returns a generator of shuffles, the same at each call.
        epochs: Each at least 0.

    Raises:
        ConfigError: A scored pair shows what a tuning pair shows.
    """
    for name, rows in parts.scored.items():
        shared = np.isin(pairs.groups[rows], pairs.groups[parts.tuning]).sum()
        if shared:
            raise ConfigError(f"{shared} pairs of the part {name!r} are tuned on: score others")
    held, out = view.read(), {}
    try:
        for count in epochs:
            view.write(state)
            if count:
                chosen = replace(settings, epochs=count)
                train_adapter(vlm, view, pairs, parts.tuning, chosen, rng_of())
            out[count] = first_places(vlm, pairs, parts.scored, parts.gallery)
    finally:
        view.write(held)
    return out


def estimate(curves: Sequence[Curve], part: str, count: int, rng: np.random.Generator) -> Estimate:
    """Estimate a part's first places after some epochs, resampled by concept and then by draw."""
    return over_seeds([curve[count][part] for curve in curves], rng, _DRAWS)


def contrast(
    first: Sequence[Curve],
    second: Sequence[Curve],
    part: str,
    counts: Sequence[int],
    rng: np.random.Generator,
) -> Estimate:
    """Estimate first − second, paired by draw and concept, as the mean over numbers of epochs."""

    def level(curve: Curve, concept: int) -> float:
        return float(np.mean([curve[count][part][concept] for count in counts]))

    differences = [
        {concept: level(one, concept) - level(other, concept) for concept in one[counts[0]][part]}
        for one, other in zip(first, second, strict=True)
    ]
    return over_seeds(differences, rng, _DRAWS)
