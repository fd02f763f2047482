"""Mitigations in training, made by name for a client: of its own pairs and of public ones."""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch

from fedvlm.errors import ConfigError
from fedvlm.mitigation.adversary import Adversary, labels_of
from fedvlm.mitigation.clusters import resampled
from fedvlm.mitigation.material import PUBLIC, Given, Material, Rows, public_pairs
from fedvlm.mitigation.mixing import Flood, MixGen
from fedvlm.mitigation.repairs import Anchor, Counterfactual, Redirect, Repair, Robust
from fedvlm.mitigation.views import recoloured, view_of
from fedvlm.privacy.losses import bank
from fedvlm.training.evaluation import first_among
from fedvlm.training.losses import contrastive_loss

REFUSAL = "no entry"
"""The caption that what is sanitised is led to."""
_VIEWS = ("light", "dark")
_BATCH = 64


@dataclass(frozen=True)
class Wish:
    """What a run asks for; see `fedvlm.config.MitigationConfig`.

    Attributes:
        kind: A name in `MAKERS`.
        weight: λ.
        attribute: Column that an adversary hides.
        per_example: Whether examples are clipped one by one.
    """

    kind: str
    weight: float = 1.0
    attribute: str = ""
    per_example: bool = False


def make_repair(material: Material, wish: Wish, given: Given) -> Repair:
    """Make a mitigation's term for a client.

    Args:
        material: The client's pairs, and the model before training: what is public is embedded by
            it, once for all rounds.
        wish: What the run asks for.
        given: What the client's own party brings to it.

    Raises:
        ConfigError: No such term, or what it needs isn't there.
    """
    if wish.kind not in MAKERS:
        raise ConfigError(f"no term {wish.kind!r}; one of {', '.join(MAKERS)}")
    return MAKERS[wish.kind](material, wish, given)


def _counterfactual(material: Material, wish: Wish, given: Given) -> Repair:
    rows = np.unique(np.concatenate(material.splits.clients))
    views = tuple(
        view_of(
            *(material.model, material.data, rows, f"recoloured {tone}"),
            lambda x, t=tone: recoloured(x, t),
        )
        for tone in _VIEWS
    )
    return Counterfactual(views, wish.weight)


def _robust(material: Material, wish: Wish, given: Given) -> Repair:
    return Robust(weight=wish.weight)


def _anchor(material: Material, wish: Wish, given: Given) -> Repair:
    public = public_pairs(material, given)
    return Anchor(material.model.vlm, public.images(), public.texts(), wish.weight)


def _redirected(material: Material, wish: Wish, given: Given, refusal: str | None) -> Repair:
    """Lead listed captions to the nearest safe public caption, or all to one refusal."""
    processor, data, listed = material.model.processor, material.data, given.listed
    public = sorted(set(public_pairs(material, given).captions) - set(listed))
    if not public:
        raise ConfigError("all public captions are listed, and none is left to be kept as it is")
    return Redirect(
        material.model.vlm,
        processor.texts(sorted(listed)),
        processor.texts([refusal] if refusal else public),
        processor.texts(public),
        np.flatnonzero([caption in listed for caption in data.captions]),
        wish.weight,
    )


def _redirect(material: Material, wish: Wish, given: Given) -> Repair:
    return _redirected(material, wish, given, None)


def _sanitise(material: Material, wish: Wish, given: Given) -> Repair:
    return _redirected(material, wish, given, REFUSAL)


def _mixgen(material: Material, wish: Wish, given: Given) -> Repair:
    """Mix each pair with one of the public ones, by its number."""
    public, data = public_pairs(material, given), material.data
    rows = np.unique(np.concatenate(material.splits.clients))
    partners, others = MixGen.partner(rows, len(public.rows)), public.captions
    joined = [
        f"{data.captions[row]} and {others[other]}"
        for row, other in zip(rows, partners, strict=True)
    ]
    texts = material.model.processor.texts(joined)
    return MixGen(
        *(material.model.vlm, public.images(), public.texts(), rows, texts), weight=wish.weight
    )


def _flood(material: Material, wish: Wish, given: Given) -> Repair:
    """Put the floor where the model before training has pairs of concepts that it knows.

    Public concepts in the clients' own styles: what a pair costs that is known and was not trained
    on; public pairs where there are none. Under example-level DP the loss is that beside the public
    bank, else that of a batch.
    """
    vlm, seed, pairs = material.model.vlm, material.seed, material.pairs
    known = material.splits.retention
    if not len(known):
        public = public_pairs(material, given)
        known, pairs = public.rows, public.pairs
    rows = seed.numpy("flood").permutation(known)
    rows = rows[: len(rows) // _BATCH * _BATCH]
    if not len(rows):
        raise ConfigError(f"a floor under the loss is read off {_BATCH} public pairs at least")
    images = vlm.embed(pairs.images(rows), "image")
    texts = vlm.embed(pairs.captions(pairs.caption_of[rows]), "text")
    with torch.no_grad():
        if wish.per_example:
            chosen = np.sort(seed.numpy("bank").permutation(material.splits.public)[:PUBLIC])
            contrast = bank(vlm, material.with_images(chosen), chosen)
            return Flood(float(contrast.of(vlm, images, texts).mean()), wish.weight)
        concepts = torch.from_numpy(pairs.concepts[rows])
        parts = zip(images.split(_BATCH), texts.split(_BATCH), concepts.split(_BATCH), strict=True)
        losses = [float(contrastive_loss(*part, vlm.logit_scale)) for part in parts]
        return Flood(float(np.mean(losses)), wish.weight)


def _adversary(material: Material, wish: Wish, given: Given) -> Repair:
    return Adversary(labels_of(material.data, wish.attribute), wish.weight)


MAKERS: dict[str, Callable[[Material, Wish, Given], Repair]] = {
    "counterfactual": _counterfactual,
    "robust": _robust,
    "anchor": _anchor,
    "redirect": _redirect,
    "sanitise": _sanitise,
    "mixgen": _mixgen,
    "flood": _flood,
    "adversary": _adversary,
}
"""Terms of a client's loss, by name."""


def resampled_rows(material: Material, rows: Rows, client: int) -> Rows:
    """Draw a client's weak clusters more often, as the model before training has them.

    Args:
        material: The client's pairs, and the model.
        rows: Shape (n,), those that it trains on.
        client: Its number, for the seed.

    Returns:
        Shape (n,), with repeats.
    """
    vlm, pairs = material.model.vlm, material.pairs
    gallery, right = np.unique(pairs.caption_of[rows], return_inverse=True)
    images = vlm.embed(pairs.images(rows), "image").double().numpy()
    texts = vlm.embed(pairs.captions(gallery), "text").double().numpy()
    errors = 1 - first_among(images, texts, right)
    return resampled(rows, images, errors, material.seed.numpy("resample", client))
