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
from fedvlm.trust.gendered import added_rate, signed_rate, twin_gender
from fedvlm.trust.own_groups import group_gaps
from fedvlm.trust.readings import Reading

Measure = Callable[[], Reading]
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
    test = context.test
    return out | group_gaps(
        *(context.data, test, groups),
        values=lambda: context.exact(test),
        labels=context.right(test),
        clusters=context.clusters(test),
        rng=context.rng,
        suffix=", exact match",
        skip=_NO_GROUPS,
    )
