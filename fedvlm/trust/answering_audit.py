"""The trust audit of a model that answers in words, beside its base model untouched."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from fedvlm.adapters import merge
from fedvlm.data.emoji import Progress, quiet
from fedvlm.errors import ConfigError, DataError, one_line
from fedvlm.federation.answering_task import AnsweringTask
from fedvlm.models import load_any
from fedvlm.models.generative import LoadedGenerative
from fedvlm.trained import TrainedModel
from fedvlm.training.generation import negative_log_likelihoods
from fedvlm.trust.answering_context import ANSWERING_SIZES, Answering, AnsweringSizes, Rows
from fedvlm.trust.answering_fairness import answering_fairness
from fedvlm.trust.answering_measures import (
    answering_robustness,
    answering_safety,
    answering_utility,
)
from fedvlm.trust.audit import (
    Measures,
    Readings,
    TrustAudit,
    audit_of,
    columns_from,
    identity_of,
    read_measures,
    task_of,
)
from fedvlm.trust.estimate import Estimate, UnresolvedError
from fedvlm.trust.instructions import Instruction, load_instructions
from fedvlm.trust.membership import membership_auc, membership_by_group
from fedvlm.trust.readings import Column
from fedvlm.trust.target import Target

PRIMARY_OF_ANSWERS = {
    "fairness": "gendered_gap",
    "robustness": "unseen_domain",
    "safety": "refused_unsafe",
}
"""One measure a pillar is tested; the others describe."""


def answering_measures(
    context: Answering,
    groups: tuple[str, ...] | None = None,
    instructions: Sequence[Instruction] | None = None,
) -> Measures:
    """Return everything that is read off one model: name → pillar, title, measure.

    Args:
        context: The model and its triples.
        groups: Columns of the table that hold groups; None takes what looks like groups.
        instructions: Image × instruction pairs of one's own.
    """
    found = {
        "utility": answering_utility(context),
        "fairness": answering_fairness(context, groups),
        "robustness": answering_robustness(context),
        "safety": answering_safety(context, instructions),
    }
    return {
        name: (pillar, title, measure)
        for pillar, columns in found.items()
        for name, (title, measure) in columns.items()
    }


def _gains(before: Answering, after: Answering, rows: Rows) -> np.ndarray:
    """Return how much likelier each answer became, in nats a token: shape (n,)."""
    base, own = (
        negative_log_likelihoods(one.target.model.vlm, one.encoded, rows) for one in (before, after)
    )
    return base - own


def membership_of_answers(
    before: Answering, after: Answering, names: tuple[str, ...] | None = None
) -> dict[str, tuple[str, Estimate]]:
    """Measure whose images a run remembers, by its answers' likelihoods: name → title and AUC.

    An image's score is the mean gain in its answers' log-likelihood a token from the base model to
    the run's, which is what whoever holds the released adapter can compute. Coins of membership
    fall by image, and so an image is one row however many triples it has.

    Args:
        before: The untouched model.
        after: The run's.
        names: Columns of the table to group by; None takes domains.

    Raises:
        UnresolvedError: The run holds no images out by a coin.
    """
    data, splits = after.data, after.splits
    sides = [np.concatenate(part) for part in (splits.clients, splits.non_members)]
    if not len(sides[1]):
        raise UnresolvedError(
            "membership needs non-members drawn like the members: run with membership = 'half'"
        )
    images = [
        after.sample(np.unique(data.groups[part]), after.sizes.members, f"members {number}")
        for number, part in enumerate(sides)
    ]
    rows = np.concatenate(
        [part[np.isin(data.groups[part], some)] for part, some in zip(sides, images, strict=True)]
    )
    gains = _gains(before, after, rows)
    shown, first, place = np.unique(data.groups[rows], return_index=True, return_inverse=True)
    scores = np.bincount(place, weights=gains) / np.bincount(place)
    inside = np.isin(shown, images[0])
    title = "membership AUC of answers"
    found = {"membership": (title, membership_auc(scores, inside, after.rng("membership")))}
    columns = {"domain": [data.domain_names[d] for d in data.domains[rows[first]]]}
    columns |= {
        key: [data.more[key][r] for r in rows[first]] for key in names or () if key in data.more
    }
    for key, groups in columns.items():
        if len(set(groups)) > 1:
            by_group = membership_by_group(scores, inside, groups, after.rng("membership", key))
            for name, one in by_group.items():
                found[f"membership_{key}_{name}"] = (f"{title}, {name}", one)
    return found


def _privacy(before: Answering, after: Answering, names: tuple[str, ...] | None) -> list[Column]:
    try:
        found = membership_of_answers(before, after, names)
    except (DataError, ConfigError) as error:
        reason = one_line(error)
        return [Column("privacy", "membership", "membership AUC of answers", why_not=reason)]
    return [Column("privacy", name, title, after=one) for name, (title, one) in found.items()]


def audit_answers(
    trained: TrainedModel,
    *,
    sizes: AnsweringSizes = ANSWERING_SIZES,
    groups: tuple[str, ...] | None = None,
    known: Readings | None = None,
    instructions: Path | None = None,
    progress: Progress = quiet,
) -> TrustAudit:
    """Audit a run whose model answers, beside its base model untouched.

    Args:
        trained: The run's model; its adapter is merged, as it is when it is served.
        sizes: How much is looked at.
        groups: Columns of the run's table that hold groups; None takes what looks like groups.
        known: Readings of the untouched model on the same data, seed and sizes, where at hand.
        instructions: Table of image × instruction pairs of one's own.
        progress: Called with (task, done, total).

    Returns:
        The audit. What the data can't carry is in its column's `why_not`; nothing stops the rest.

    Raises:
        ConfigError: The run's model is a dual encoder, or its data has changed.
        DataError: The table of instructions is wrong.
    """
    model = trained.model
    if not isinstance(model, LoadedGenerative):
        raise ConfigError("the run's model is a dual encoder and answers nothing")
    told = None if instructions is None else load_instructions(instructions)
    task = task_of(trained, progress)
    base = load_any(trained.config.model.name)
    if not isinstance(task, AnsweringTask) or not isinstance(base, LoadedGenerative):
        raise ConfigError("the run's base model is no longer one that answers")
    merge(model.vlm)
    before, after = (
        Answering(
            Target(one, name, sizes.most_tokens),
            *(task.encoded, task.data, task.splits, task.seed, sizes, progress),
        )
        for one, name in ((base, "untouched"), (model, "run"))
    )
    zero = known
    if zero is None:
        zero = read_measures(answering_measures(before, groups, told), progress)
    measures = answering_measures(after, groups, told)
    found = read_measures(measures, progress)
    rng = after.rng("changes")
    columns = columns_from(measures, zero, found, rng, primary=PRIMARY_OF_ANSWERS)
    columns += _privacy(before, after, groups)
    identity: dict[str, Any] = identity_of(task, vars(sizes))
    if told is not None:
        identity["instructions"] = len(told)
    return audit_of(columns, identity)
