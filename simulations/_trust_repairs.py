"""Mitigations of the trust grid: how each is put into a federation, or onto its model."""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
from flwr.app import Context as FlowerContext
from flwr.app import Message
from numpy.typing import NDArray

from fedvlm.config import Config
from fedvlm.data.unsafe import UNSAFE, is_unsafe
from fedvlm.data.variants import DEFAULT_TONE, TONES, load_tones, thinned
from fedvlm.federation.client_app import app
from fedvlm.federation.grid import ClientFn
from fedvlm.federation.task import Task, standing_in
from fedvlm.federation.terms import settings_of
from fedvlm.mitigation.composition import require_composition
from fedvlm.mitigation.fold import fold
from fedvlm.mitigation.moments import Moments
from fedvlm.mitigation.projections import (
    apply_projection,
    calibrated_projection,
    leace,
    pair_moments,
)
from fedvlm.mitigation.repairs import Anchor, Counterfactual, Redirect, Repair, Robust
from fedvlm.mitigation.views import recoloured, view_of
from fedvlm.trust.context import Context, first_among
from fedvlm.trust.subject import Subject

_PUBLIC = 256
_VIEWS = ("light", "dark")
_REFUSAL = "no entry"
_STRENGTHS = (1.0, 10.0, 100.0, 1000.0)
_MOST_LOST = 0.01


def _public(task: Task) -> NDArray[np.int64]:
    return np.sort(task.seed.numpy("repair").permutation(task.splits.public)[:_PUBLIC])


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
    pairs = task.pairs
    texts = pairs.captions(pairs.caption_of[chosen])
    return Anchor(task.model.vlm, pairs.images(chosen), texts)


def _redirect(task: Task, refusal: str | None = None) -> Repair:
    """Lead unsafe captions to the nearest safe public caption, or all to one refusal."""
    processor, data = task.model.processor, task.data
    public = sorted({data.captions[row] for row in _public(task)} - set(UNSAFE))
    targets = [refusal] if refusal else public
    listed = np.flatnonzero(is_unsafe(data.captions))
    return Redirect(
        task.model.vlm,
        processor.texts(sorted(UNSAFE)),
        processor.texts(targets),
        processor.texts(public),
        listed,
    )


TRAINED: dict[str, Callable[[Task], Repair]] = {
    "counterfactual": _counterfactual,
    "robust": lambda task: Robust(),
    "anchor": _anchor,
    "redirect": _redirect,
    "sanitise": lambda task: _redirect(task, _REFUSAL),
}
"""Mitigations in training, by name."""


def repaired_client(config: Config, name: str) -> ClientFn:
    """Return a client that adds a mitigation's term to its loss.

    Raises:
        ConfigError: The mitigation doesn't go with the run's protection.
    """
    require_composition(name, config.protection.protect, config.privacy.dp)
    made: dict[int, Repair] = {}

    def change(task: Task) -> Task:
        if id(task.model) not in made:
            task.reset()  # what is public is embedded by the model before training
            made[id(task.model)] = TRAINED[name](task)
        return replace(task, repair=made[id(task.model)])

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


POSTHOC: dict[str, Callable[[Context], dict[str, Any]]] = {
    "leace": _leace,
    "calibrated": _calibrated,
}
"""Mitigations of a trained model, by name; each changes it in place."""
