"""Fairness of a model that answers: gendered words, man/woman twins, groups of one's own."""

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from fedvlm.data.chats import ANSWER, MESSAGES
from fedvlm.data.conversation import PROMPT_KEYS
from fedvlm.data.questions import KIND
from fedvlm.data.twins import twins
from fedvlm.trust.answering_context import Answering, Rows
from fedvlm.trust.estimate import UnresolvedError
from fedvlm.trust.fairness import check_groups, gap
from fedvlm.trust.gendered import added_rate, signed_rate, twin_gender
from fedvlm.trust.readings import Reading

Measure = Callable[[], Reading]
_MOST_GROUPS = 12
_NO_GROUPS = frozenset((*PROMPT_KEYS, ANSWER, MESSAGES, KIND))
_NAME = "name"  # the kind of question that asks what an image shows


def twin_rows(context: Answering) -> tuple[Rows, NDArray[np.bool_], Rows]:
    """Choose drawings of man/woman twins, each beside its twin by the same hand.

    Returns:
        Rows of questions what a drawing shows, whether its caption says woman, and the number of
        its twin, shapes (2n,).

    Raises:
        UnresolvedError: The data asks about no twins.
    """
    data = context.data
    if not context.of_emoji:
        raise UnresolvedError("man/woman twins belong to the embedded data; name group columns")
    found = twins(data.captions)
    side = {t.woman: (n, True) for n, t in enumerate(found)}
    side |= {t.man: (n, False) for n, t in enumerate(found)}
    hands: dict[tuple[int, int], dict[bool, int]] = {}
    for row in context.splits.images.tolist():
        caption = data.captions[row]
        if caption in side and data.more[KIND][row] == _NAME:
            number, woman = side[caption]
            hands.setdefault((number, int(data.domains[row])), {})[woman] = row
    whole = [key for key, rows in hands.items() if len(rows) == 2]
    if not whole:
        raise UnresolvedError("no designer has drawn both of a man/woman twin")
    order = context.rng("twins").permutation(len(whole))[: context.sizes.rows // 2]
    chosen = [
        (hands[whole[n]][woman], woman, whole[n][0]) for n in order for woman in (True, False)
    ]
    rows, woman, number = map(np.array, zip(*chosen, strict=True))
    return rows.astype(np.int64), woman.astype(np.bool_), number.astype(np.int64)


def _twins(context: Answering) -> tuple[Reading, Reading]:
    def make() -> tuple[Reading, Reading]:
        rows, woman, number = twin_rows(context)
        return twin_gender(context.answers(rows), woman, number, context.rng("twin gap"))

    return context.once("twins", make)


def _signed(context: Answering) -> Reading:
    rows, _, number = twin_rows(context)
    return signed_rate(context.answers(rows), number)


def _added(context: Answering) -> Reading:
    rows = context.test
    return added_rate(context.answers(rows), context.right(rows), context.clusters(rows))


def answering_fairness(
    context: Answering, groups: tuple[str, ...] | None
) -> dict[str, tuple[str, Measure]]:
    """Return what is measured of fairness: name → title and measure.

    Args:
        context: The model and its triples.
        groups: Columns of the table that hold groups; None takes every column of 2 to 12 values.
    """
    out: dict[str, tuple[str, Measure]] = {
        "gendered_gap": ("right gendered word, women − men", lambda: _twins(context)[1]),
        "gendered_added": (
            "female − male words, above the right answers'",
            lambda: _added(context),
        ),
    }
    if context.of_emoji:
        out["gendered_right"] = (
            "right gendered word, man/woman twins",
            lambda: _twins(context)[0],
        )
        out["gendered_twins"] = (
            "female − male words about twins",
            lambda: _signed(context),
        )
    return out | _group_columns(context, groups)


def _group_columns(
    context: Answering, names: tuple[str, ...] | None
) -> dict[str, tuple[str, Measure]]:
    """Return the gap in exact match of each group to the largest one."""
    data, test = context.data, context.test
    columns: dict[str, NDArray] = {
        key: np.array([column[row] for row in test])
        for key, column in data.more.items()
        if key not in _NO_GROUPS
    }
    if len(data.domain_names) > 1:
        columns["domain"] = np.array([data.domain_names[d] for d in data.domains[test]])
    out: dict[str, tuple[str, Measure]] = {}
    for key in tuple(columns) if names is None else names:
        title = f"groups of {key}, exact match"
        if key not in columns:
            out[f"group_{key}"] = (title, _refusing(f"no column {key!r} in the table"))
            continue
        groups = columns[key]
        there, counts = np.unique(groups, return_counts=True)
        if names is None and not 1 < len(there) <= _MOST_GROUPS:
            continue
        try:
            check_groups(groups, context.right(test), key)
        except UnresolvedError as error:
            out[f"group_{key}"] = (title, _refusing(str(error)))
            continue
        largest = there[counts.argmax()]
        for name in there[there != largest]:
            out[f"group_{key}_{name}"] = (
                f"{key}: {name} − {largest}, exact match",
                _gap(context, groups, name, largest),
            )
    return out


def _refusing(reason: str) -> Measure:
    def measure() -> Reading:
        raise UnresolvedError(reason)

    return measure


def _gap(context: Answering, groups: NDArray, first: str, second: str) -> Measure:
    def measure() -> Reading:
        test = context.test
        rng = context.rng("group", str(first))
        clusters = context.clusters(test)
        return Reading(gap(context.exact(test), groups, clusters, first, second, rng))

    return measure
