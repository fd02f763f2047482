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
from fedvlm.mitigation.composition import require_composition
from fedvlm.mitigation.fold import fold
from fedvlm.mitigation.making import MAKERS, Wish, make_repair, resampled_rows
from fedvlm.mitigation.material import Given
from fedvlm.mitigation.moments import Moments
from fedvlm.mitigation.projections import (
    apply_projection,
    calibrated_projection,
    leace,
    pair_moments,
)
from fedvlm.mitigation.residual import residual
from fedvlm.mitigation.temperature import temperature_counts, temperature_from_counts
from fedvlm.trust.context import Context, first_among
from fedvlm.trust.subject import Subject

_STRENGTHS = (1.0, 10.0, 100.0, 1000.0)
_ADVERSARIES = (0.01, 0.1, 1.0)
_MOST_LOST = 0.01


def _dual(task: Task) -> RetrievalTask:
    if not isinstance(task, RetrievalTask):
        raise ConfigError("the grid's federations train dual encoders")
    return task


def _with(kind: str, given: Given | None = None) -> Callable[[Task], Task]:
    def change(task: Task) -> Task:
        wish = Wish(kind, per_example=task.config.privacy.dp == "example")
        return replace(_dual(task), repair=make_repair(_dual(task), wish, given or Given()))

    return change


def sanitised(listed: Collection[str] = frozenset(UNSAFE)) -> Callable[[Task], Task]:
    """Return what makes a client's task lead the captions of a forget list to a refusal."""
    return _with("sanitise", Given(frozenset(listed)))


def _resampled(task: Task) -> Task:
    """Let each client draw its weak clusters more often."""
    parts = enumerate(task.splits.clients)
    drawn = tuple(resampled_rows(_dual(task), rows, number) for number, rows in parts)
    return replace(task, splits=replace(task.splits, clients=drawn))


TRAINED: dict[str, Callable[[Task], Task]] = {
    **{kind: _with(kind) for kind in MAKERS if kind != "adversary"},
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
