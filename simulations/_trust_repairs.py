"""Mitigations of the trust grid: how each is put into a federation, or onto its model."""

from collections.abc import Callable, Collection
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from flwr.app import Context as FlowerContext
from flwr.app import Message
from numpy.typing import NDArray

from fedvlm.config import Config
from fedvlm.data.unsafe import UNSAFE
from fedvlm.data.variants import DEFAULT_TONE, TONES, load_tones, thinned
from fedvlm.errors import ConfigError
from fedvlm.federation.client_app import app
from fedvlm.federation.grid import ClientFn
from fedvlm.federation.retrieval_task import RetrievalTask
from fedvlm.federation.task import Task, standing_in
from fedvlm.federation.terms import settings_of
from fedvlm.mitigation.clusters import resampled
from fedvlm.mitigation.composition import require_composition
from fedvlm.mitigation.fold import fold
from fedvlm.mitigation.mixing import Flood, MixGen
from fedvlm.mitigation.moments import Moments
from fedvlm.mitigation.projections import (
    apply_projection,
    calibrated_projection,
    leace,
    pair_moments,
)
from fedvlm.mitigation.repairs import Anchor, Counterfactual, Redirect, Repair, Robust
from fedvlm.mitigation.residual import residual
from fedvlm.mitigation.temperature import temperature_counts, temperature_from_counts
from fedvlm.mitigation.views import recoloured, view_of
from fedvlm.privacy.losses import bank
from fedvlm.training import EncodedPairs
from fedvlm.training.losses import contrastive_loss
from fedvlm.trust.context import Context, first_among
from fedvlm.trust.subject import Subject

_PUBLIC = 256
_VIEWS = ("light", "dark")
_REFUSAL = "no entry"
_STRENGTHS = (1.0, 10.0, 100.0, 1000.0)
_ADVERSARIES = (0.01, 0.1, 1.0)
_MOST_LOST = 0.01


def _public(task: Task) -> NDArray[np.int64]:
    return np.sort(task.seed.numpy("repair").permutation(task.splits.public)[:_PUBLIC])


def _public_pairs(task: Task, chosen: NDArray[np.int64]) -> EncodedPairs:
    """Return pairs with the images of public rows, which training holds none of."""
    if not isinstance(task, RetrievalTask):
        raise ConfigError("public pairs are embedded by a dual encoder")
    return task.with_images(chosen)


def _counterfactual(task: Task) -> Repair:
    rows = np.unique(np.concatenate(task.splits.clients))
    views = tuple(
        view_of(
            task.model, task.data, rows, f"recoloured {tone}", lambda x, t=tone: recoloured(x, t)
        )
        for tone in _VIEWS
    )
    return Counterfactual(views)


def _anchor(task: Task) -> Repair:
    chosen = _public(task)
    pairs = _public_pairs(task, chosen)
    texts = pairs.captions(pairs.caption_of[chosen])
    return Anchor(task.model.vlm, pairs.images(chosen), texts)


def _redirect(
    task: Task, refusal: str | None = None, listed: Collection[str] = frozenset(UNSAFE)
) -> Repair:
    """Lead listed captions to the nearest safe public caption, or all to one refusal."""
    processor, data = task.model.processor, task.data
    public = sorted({data.captions[row] for row in _public(task)} - set(listed))
    targets = [refusal] if refusal else public
    return Redirect(
        task.model.vlm,
        processor.texts(sorted(listed)),
        processor.texts(targets),
        processor.texts(public),
        np.flatnonzero([caption in listed for caption in data.captions]),
    )


def sanitised(listed: Collection[str] = frozenset(UNSAFE)) -> Callable[[Task], Task]:
    """Return what makes a client's task lead the captions of a forget list to a refusal."""
    return _with(lambda task: _redirect(task, _REFUSAL, listed))


def _mixed(task: Task) -> Repair:
    """Mix each pair with one of the public ones, by its number."""
    chosen = _public(task)
    pairs, data, processor = _public_pairs(task, chosen), task.data, task.model.processor
    rows = np.unique(np.concatenate(task.splits.clients))
    partners = chosen[MixGen.partner(rows, len(chosen))]
    joined = [
        f"{data.captions[row]} and {data.captions[other]}"
        for row, other in zip(rows, partners, strict=True)
    ]
    texts = pairs.captions(pairs.caption_of[chosen])
    return MixGen(task.model.vlm, pairs.images(chosen), texts, rows, processor.texts(joined))


def _flooded(task: Task) -> Repair:
    """Put the floor where the model before training has pairs of concepts that it knows.

    Public concepts in the clients' own styles: what a pair costs that is known and was not trained
    on. Under example-level DP the loss is that beside the public bank, else that of a batch.
    """
    vlm, pairs = task.model.vlm, task.pairs
    rows = task.seed.numpy("flood").permutation(task.splits.retention)
    rows = rows[: len(rows) // 64 * 64]
    images = vlm.embed(pairs.images(rows), "image")
    texts = vlm.embed(pairs.captions(pairs.caption_of[rows]), "text")
    with torch.no_grad():
        if task.config.privacy.dp == "example":
            public = np.sort(task.seed.numpy("bank").permutation(task.splits.public)[:_PUBLIC])
            contrast = bank(vlm, _public_pairs(task, public), public)
            floor = float(contrast.of(vlm, images, texts).mean())
        else:
            concepts = torch.from_numpy(pairs.concepts[rows])
            parts = zip(images.split(64), texts.split(64), concepts.split(64), strict=True)
            floor = float(
                np.mean([float(contrastive_loss(*part, vlm.logit_scale)) for part in parts])
            )
    return Flood(floor)


def _resampled(task: Task) -> Task:
    """Let each client draw its weak clusters more often, as the model before training has them."""
    if not isinstance(task, RetrievalTask):
        raise ConfigError("weak clusters are found by the embeddings of a dual encoder")
    vlm, pairs = task.model.vlm, task.pairs
    drawn = []
    for number, rows in enumerate(task.splits.clients):
        gallery, right = np.unique(pairs.caption_of[rows], return_inverse=True)
        images = vlm.embed(pairs.images(rows), "image").double().numpy()
        texts = vlm.embed(pairs.captions(gallery), "text").double().numpy()
        errors = 1 - first_among(images, texts, right)
        drawn.append(resampled(rows, images, errors, task.seed.numpy("resample", number)))
    return replace(task, splits=replace(task.splits, clients=tuple(drawn)))


def _with(make: Callable[[Task], Repair]) -> Callable[[Task], Task]:
    return lambda task: replace(task, repair=make(task))  # pyright: ignore[reportCallIssue]


TRAINED: dict[str, Callable[[Task], Task]] = {
    "counterfactual": _with(_counterfactual),
    "robust": _with(lambda task: Robust()),
    "anchor": _with(_anchor),
    "redirect": _with(_redirect),
    "sanitise": sanitised(),
    "mixgen": _with(_mixed),
    "flood": _with(_flooded),
    "resample": _resampled,
}
"""Mitigations in training, by name: what each makes of a client's task."""


def repaired_client(config: Config, name: str) -> ClientFn:
    """Return a client that trains with a mitigation.

    Raises:
        ConfigError: The mitigation doesn't go with the run's protection.
    """
    require_composition(name, config.protection.protect, config.privacy.dp)
    return changed_client(TRAINED[name])


def changed_client(make: Callable[[Task], Task]) -> ClientFn:
    """Return a client that trains on a changed task; what is made is made once a model."""
    made: dict[int, tuple[Any, Task]] = {}

    def change(task: Task) -> Task:
        # Once a model: what is public is embedded by the model before training. The model is held
        # beside what was made of it, so that its number stays its own.
        if id(task.model) not in made:
            task.reset()
            made[id(task.model)] = (task.model, make(task))
        return made[id(task.model)][1]

    def client(message: Message, context: FlowerContext) -> Message:
        if message.metadata.message_type.partition(".")[0] != "train":
            return app(message, context)
        with standing_in(settings_of(context), change):
            return app(message, context)

    return client


def _tone_pairs(context: Context) -> tuple[NDArray[Any], NDArray[Any], NDArray[Any], NDArray[Any]]:
    """Embed the tones of every second concept, those that the audit of halves leaves out."""
    tones = load_tones()
    rows = thinned(tones, context.sizes.designers)
    rows = rows[tones.concepts[rows] % 2 == 0]
    tone = np.array([tones.more["tone"][row] for row in rows])
    return context.subject.images(tones, rows), tone, tones.concepts[rows], tones.domains[rows]


def _validation(subject: Subject, context: Context, matrix: NDArray[np.float64]) -> float:
    rows = context.splits.validation
    captions = sorted({context.data.captions[row] for row in rows})
    images = apply_projection(subject.images(context.data, rows), matrix)
    right = context.right(rows, captions)
    return float(first_among(images, subject.texts(captions), right).mean())


def _leace(context: Context) -> dict[str, Any]:
    images, tone, _, _ = _tone_pairs(context)
    fold(context.subject.model.vlm, leace(Moments.of(images, tone, TONES)))
    return {}


def _calibrated(context: Context) -> dict[str, Any]:
    """Choose λ on validation: the largest that costs at most a point there."""
    images, tone, concepts, domains = _tone_pairs(context)
    place = {(c, d, t): n for n, (c, d, t) in enumerate(zip(concepts, domains, tone, strict=True))}
    first, second = [], []
    for (concept, domain, name), number in place.items():
        if name != DEFAULT_TONE:
            first.append(number)
            second.append(place[concept, domain, DEFAULT_TONE])
    moments = pair_moments(images[first], images[second])
    best = _validation(context.subject, context, np.eye(images.shape[1]))
    chosen, matrix = 0.0, np.eye(images.shape[1])
    for strength in _STRENGTHS:
        tried = calibrated_projection(moments, len(first), strength)
        if _validation(context.subject, context, tried) >= best - _MOST_LOST:
            chosen, matrix = strength, tried
    fold(context.subject.model.vlm, matrix)
    return {"strength": chosen}


def _dear(context: Context) -> dict[str, Any]:
    """Choose λ on validation, as for the calibrated projection."""
    images, tone, _, _ = _tone_pairs(context)
    best = _validation(context.subject, context, np.eye(images.shape[1]))
    chosen, matrix = 0.0, np.eye(images.shape[1])
    for strength in _ADVERSARIES:
        tried = residual(images, tone, strength, context.seed.torch("trust", "dear"))
        if _validation(context.subject, context, tried) >= best - _MOST_LOST:
            chosen, matrix = strength, tried
    fold(context.subject.model.vlm, matrix)
    return {"strength": chosen}


def _temperature(context: Context) -> dict[str, Any]:
    """Scale the logits by what the counts of validation pairs say."""
    rows = context.splits.validation
    captions = sorted({context.data.captions[row] for row in rows})
    images = context.subject.images(context.data, rows)
    cosines = images @ context.subject.texts(captions).T
    counts = temperature_counts(cosines, context.right(rows, captions), context.subject.scale)
    factor = temperature_from_counts(counts)
    backbone: Any = context.subject.model.vlm.backbone
    with torch.no_grad():
        backbone.logit_scale.add_(float(np.log(factor)))
    return {"factor": factor}


POSTHOC: dict[str, Callable[[Context], dict[str, Any]]] = {
    "leace": _leace,
    "calibrated": _calibrated,
    "dear": _dear,
    "temperature": _temperature,
}
"""Mitigations of a trained model, by name; each changes it in place."""
