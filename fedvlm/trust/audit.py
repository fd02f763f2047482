"""The trust audit: every column on the model before and after, each refusing on its own."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from fedvlm.adapters import merge
from fedvlm.data.emoji import Progress, quiet
from fedvlm.data.unsafe import UNSAFE
from fedvlm.errors import ConfigError, DataError, FedVLMError, one_line
from fedvlm.federation.retrieval_task import RetrievalTask
from fedvlm.federation.task import Task, load_task
from fedvlm.models import LoadedModel, load_model
from fedvlm.models.generative import LoadedGenerative
from fedvlm.trained import TrainedModel, load_trained
from fedvlm.trust.answering_context import ANSWERING_SIZES, AnsweringSizes
from fedvlm.trust.columns_fairness import group_columns, tone_columns, twin_columns
from fedvlm.trust.columns_privacy import membership_columns
from fedvlm.trust.columns_robustness import Robustness, Test, robustness_columns
from fedvlm.trust.columns_safety import safety_columns
from fedvlm.trust.context import DEFAULT_SIZES, Context, Sizes
from fedvlm.trust.contrasts import holm
from fedvlm.trust.readings import PILLARS, Column, Reading, change_of, reading_of
from fedvlm.trust.subject import Subject

PRIMARY = {"fairness": "tone_gap", "robustness": "overconfidence", "safety": "backdoor"}
"""One measure a pillar is tested; the others describe."""
_MASKING = {"square": "Square − PGD at ½/255", "transfer": "transfer − PGD at ½/255"}
TONE_MEASURES = frozenset(
    ("tone_gap", "tone_gap_light", "tone_skew", "tone_probe", "association", "filter_tones")
)
"""What is read off tone sets, and so the only measures that `Sizes.half` changes."""

Measures = dict[str, tuple[str, str, Callable[[], Reading]]]
Readings = Mapping[str, Reading | str]


def measures_of(
    context: Context, groups: tuple[str, ...] | None, unsafe: Mapping[str, str]
) -> Measures:
    """Return everything that is read off one model: name → pillar, title, measure."""
    held: dict[str, Test] = {}

    def test() -> Test:
        if "test" not in held:
            held["test"] = Test(context)
        return held["test"]

    def utility() -> Reading:
        return reading_of(test().first, test().concepts)

    out: Measures = {"one_of_100": ("utility", "test, one of 100", utility)}
    found = {
        "fairness": tone_columns(context)
        | (twin_columns(context) if context.of_emoji else {})
        | group_columns(context, lambda: test().first, groups),
        "robustness": robustness_columns(context, test),
        "safety": safety_columns(context, test, unsafe),
    }
    for pillar, columns in found.items():
        for name, (title, measure) in columns.items():
            out[name] = (pillar, title, measure)
    return out


def read_all(
    context: Context,
    groups: tuple[str, ...] | None = None,
    unsafe: Mapping[str, str] = UNSAFE,
    progress: Progress = quiet,
    known: Readings | None = None,
) -> dict[str, Reading | str]:
    """Read every measure off a model; one that the data can't carry is its reason, in one line.

    Args:
        context: The model and its data.
        groups: Columns of the table that hold groups; None takes what looks like groups.
        unsafe: Captions that count as unsafe, with reasons.
        progress: Called with (task, done, total).
        known: Readings of this model on this data that were made already; they are taken as given.
    """
    return read_measures(measures_of(context, groups, unsafe), progress, known)


def read_measures(
    measures: Measures, progress: Progress = quiet, known: Readings | None = None
) -> dict[str, Reading | str]:
    """Make measures one by one; one that the data can't carry is its reason, in one line.

    Args:
        measures: By name.
        progress: Called with (task, done, total).
        known: Readings that were made already; they are taken as given.
    """
    out: dict[str, Reading | str] = {}
    for number, (name, (_, _, measure)) in enumerate(measures.items()):
        progress("measures", number, len(measures))
        if known is not None and name in known:
            out[name] = known[name]
            continue
        try:
            out[name] = measure()
        except (DataError, ConfigError) as error:
            out[name] = one_line(error)
    progress("measures", len(measures), len(measures))
    return out


@dataclass(frozen=True, eq=False)
class TrustAudit:
    """Every column of one run beside zero-shot.

    Attributes:
        columns: By pillar, in the order of the table.
        adjusted: Holm's p of each primary measure's change.
        identity: Seed, data, model and sizes.
    """

    columns: tuple[Column, ...]
    adjusted: dict[str, float]
    identity: dict[str, Any] = field(default_factory=dict)

    def __getitem__(self, name: str) -> Column:
        return next(column for column in self.columns if column.name == name)

    def to_dict(self) -> dict[str, Any]:
        """Return the audit as JSON takes it."""
        return {
            "columns": [column.to_dict() for column in self.columns],
            "holm": self.adjusted,
            "identity": self.identity,
        }


def columns_from(
    measures: Measures,
    before: Readings,
    after: Readings,
    rng: np.random.Generator,
    primary: Mapping[str, str] = PRIMARY,
) -> list[Column]:
    """Join the readings of two models into columns; `primary` names the tested one a pillar."""
    out = []
    for name, (pillar, title, _) in measures.items():
        one, other = before.get(name, "not measured"), after.get(name, "not measured")
        if isinstance(one, str) or isinstance(other, str):
            reason = other if isinstance(other, str) else str(one)
            # What can be told of the run's model is told, also where zero-shot has no such number.
            told = other if isinstance(other, Reading) else None
            out.append(
                Column(
                    pillar,
                    name,
                    title,
                    after=None if told is None else told.estimate,
                    why_not=reason if told is None else None,
                )
            )
            continue
        out.append(
            Column(
                pillar,
                name,
                title,
                one.estimate,
                other.estimate,
                change_of(one, other, rng),
                primary=primary.get(pillar) == name,
                by_concept=other.by_concept or {},
            )
        )
        if name == "tone_gap":
            gains = Column(
                pillar, "gap_of_gains", "gap of gains, default − dark", after=out[-1].change
            )
            out.append(gains)
    return out


def _masking_columns(before: Context, after: Context) -> list[Column]:
    try:
        # The untouched model's captions in the run's order: the same columns, other weights.
        texts = before.subject.texts(before.captions)
        surrogate = before.subject.classifier(texts)
        test = Test(after)
        found = Robustness(after, lambda: test).masking(surrogate)
    except FedVLMError as error:
        reason = one_line(error)
        return [
            Column("robustness", f"masking_{which}", title, why_not=reason)
            for which, title in _MASKING.items()
        ]
    return [
        Column("robustness", f"masking_{which}", title, after=found[which].estimate)
        for which, title in _MASKING.items()
    ]


def _privacy_columns(before: Context, after: Context) -> list[Column]:
    try:
        found = membership_columns(before, after)
    except DataError as error:
        reason = one_line(error)
        return [Column("privacy", "membership", "membership AUC by designer", why_not=reason)]
    return [Column("privacy", name, title, after=one) for name, (title, one) in found.items()]


def audit_models(
    before: Context,
    after: Context,
    *,
    groups: tuple[str, ...] | None = None,
    unsafe: Mapping[str, str] = UNSAFE,
    known: Readings | None = None,
    known_after: Readings | None = None,
    progress: Progress = quiet,
) -> TrustAudit:
    """Audit a model beside what it was before.

    Args:
        before: The untouched model, on the same data.
        after: The model under audit.
        groups: Columns of the table that hold groups; None takes what looks like groups.
        unsafe: Captions that count as unsafe, with reasons.
        known: Readings of `before` where they were made already.
        known_after: Readings of `after`, likewise.
        progress: Called with (task, done, total).

    Returns:
        The audit. What the data can't carry is in its column's `why_not`; nothing stops the rest.
    """
    zero = read_all(before, groups, unsafe, progress) if known is None else known
    found = read_all(after, groups, unsafe, progress) if known_after is None else known_after
    measures = measures_of(after, groups, unsafe)
    columns = columns_from(measures, zero, found, after.rng("changes"))
    columns += _masking_columns(before, after) + _privacy_columns(before, after)
    return audit_of(columns)


def audit_of(columns: list[Column], identity: dict[str, Any] | None = None) -> TrustAudit:
    """Put columns in the table's order, and correct the primary ones' p-values for their number."""
    columns = sorted(columns, key=lambda column: PILLARS.index(column.pillar))
    tested = {
        c.name: c.change.p
        for c in columns
        if c.primary and c.change is not None and c.change.resolved and c.change.p is not None
    }
    return TrustAudit(tuple(columns), holm(tested), identity or {})


def contexts_of(
    folder: Path, sizes: Sizes, progress: Progress = quiet, untouched: Subject | None = None
) -> tuple[Context, Context, dict[str, Any]]:
    """Load a finished run: the untouched model's context, the run's, and what they are.

    A LoRA is merged, as it is when it is served: cosines move by float32's rounding.

    Args:
        folder: Of the run.
        sizes: How much is looked at.
        progress: Called with (task, done, total).
        untouched: The run's base model, where it was loaded already.

    Raises:
        ConfigError: The folder holds no finished run, or its data has changed since.
    """
    return _contexts(load_trained(folder), sizes, progress, untouched)


def task_of(trained: TrainedModel, progress: Progress = quiet) -> Task:
    """Load the data that a run was trained on.

    Raises:
        ConfigError: The run's server holds none, or it has changed since.
    """
    config = trained.config
    task = load_task(config, progress)
    if not len(task.data):
        raise ConfigError("the run's server holds no data: there is nothing to audit its model on")
    told = trained.result.data.get("fingerprint")
    if told is not None and told != task.data.fingerprint:
        raise ConfigError(
            f"{config.data.source} has changed since the run: its parts aren't the run's"
        )
    return task


def _contexts(
    trained: TrainedModel, sizes: Sizes, progress: Progress, untouched: Subject | None
) -> tuple[Context, Context, dict[str, Any]]:
    config = trained.config
    if not isinstance(trained.model, LoadedModel):
        raise ConfigError("this run's model answers in words; audit_trust audits it")
    task = task_of(trained, progress)
    if not isinstance(task, RetrievalTask):
        raise ConfigError("the run's data is made of questions; its model is a dual encoder")
    if untouched is None:
        untouched = Subject(load_model(config.model.name), progress)
    merge(trained.model.vlm)
    after = Context(Subject(trained.model, progress), task.data, task.splits, task.seed, sizes)
    before = Context(untouched, task.data, task.splits, task.seed, sizes)
    return before, after, identity_of(task, vars(sizes))


def identity_of(task: Task, sizes: Mapping[str, Any]) -> dict[str, Any]:
    """Return what an audit is of."""
    config = task.config
    return {
        "seed": task.seed.value,
        "model": config.model.name,
        "data": task.data.name,
        "protect": config.protection.protect,
        "dp": config.privacy.dp,
        "sizes": dict(sizes),
    }


def audit_trust(
    folder: Path,
    *,
    sizes: Sizes = DEFAULT_SIZES,
    groups: tuple[str, ...] | None = None,
    known: Readings | None = None,
    instructions: Path | None = None,
    answering: AnsweringSizes = ANSWERING_SIZES,
    progress: Progress = quiet,
) -> TrustAudit:
    """Audit the run in a folder beside zero-shot.

    Args:
        folder: Of a finished run.
        sizes: How much is looked at, of a dual encoder.
        groups: Columns of the run's table that hold groups; None takes what looks like groups.
        known: Readings of the untouched model on the same data, seed and sizes, where at hand.
        instructions: Table of image × instruction pairs of one's own, for a model that answers.
        answering: How much is looked at, of a model that answers.
        progress: Called with (task, done, total).

    Raises:
        ConfigError: There is no finished run, its data has changed, or instructions are given for
            a dual encoder.
        DataError: The table of instructions is wrong.
    """
    trained = load_trained(folder)
    if isinstance(trained.model, LoadedGenerative):
        from fedvlm.trust.answering_audit import audit_answers

        return audit_answers(
            trained,
            sizes=answering,
            groups=groups,
            known=known,
            instructions=instructions,
            progress=progress,
        )
    if instructions is not None:
        raise ConfigError("instructions are for models that answer; this run's is a dual encoder")
    before, after, identity = _contexts(trained, sizes, progress, None)
    found = audit_models(before, after, groups=groups, known=known, progress=progress)
    return TrustAudit(found.columns, found.adjusted, identity)
