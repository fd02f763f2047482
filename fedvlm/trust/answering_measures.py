"""Utility, robustness and safety of a model that answers, as they are read off its words."""

from collections.abc import Callable, Sequence

import numpy as np
from PIL import Image

from fedvlm.trained.images import read_image
from fedvlm.training.text_scores import exact_match, token_f1
from fedvlm.trust.answering_context import Answering, Floats, Rows
from fedvlm.trust.corruption import corrupt
from fedvlm.trust.estimate import UnresolvedError
from fedvlm.trust.instructions import CELLS, Instruction, cell_reading
from fedvlm.trust.rates import gap_reading, rate_reading
from fedvlm.trust.readings import Reading
from fedvlm.trust.written_instructions import (
    Conditions,
    agreement_of_words,
    ask_three_ways,
    refusal_avoided,
    refusal_of_words,
)

Measure = Callable[[], Reading]
_KINDS = ("gaussian noise", "blur", "jpeg")
_SEVERITIES = (3, 5)


def answering_utility(context: Answering) -> dict[str, tuple[str, Measure]]:
    """Return what is measured of utility: name → title and measure."""

    def exact() -> Reading:
        rows = context.test
        return rate_reading(context.exact(rows), context.clusters(rows))

    def overlap() -> Reading:
        rows = context.test
        pairs = zip(context.answers(rows), context.right(rows), strict=True)
        return rate_reading([token_f1(*pair) for pair in pairs], context.clusters(rows))

    return {
        "exact_match": ("test, exact match", exact),
        "token_f1": ("test, token F1", overlap),
    }


def unseen_domain(context: Answering) -> Reading:
    """Read exact match on a domain that nobody trained on, less the test's, by concept.

    Raises:
        UnresolvedError: No domain is kept out of training, or it shares no concept with the test.
    """
    splits, concepts = context.splits, context.data.concepts
    if not len(splits.ood):
        raise UnresolvedError("the data names no domain that is kept out of training")
    shared = np.intersect1d(concepts[splits.ood], concepts[splits.test])
    if not len(shared):
        raise UnresolvedError("no concept is in the unseen domain and in the test")
    # Concepts are drawn and not rows, so that what is answered can be paired.
    order = context.rng("unseen").permutation(shared)
    sides: list[tuple[Floats, Rows]] = []
    for part in (splits.ood, splits.test):
        place = {int(concept): n for n, concept in enumerate(order)}
        own = sorted(
            (row for row in part if int(concepts[row]) in place),
            key=lambda row: (
                place[int(concepts[row])],
                int(row),
            ),
        )
        rows = np.sort(np.array(own[: context.sizes.rows], dtype=np.int64))
        sides.append((context.exact(rows), concepts[rows]))
    return gap_reading(sides[0], sides[1], context.rng("unseen gap"))


def corrupted(context: Answering, severity: int) -> Reading:
    """Read exact match on corrupted test images, over three kinds."""
    rows = context.sample(context.splits.test, context.sizes.corrupted, "corrupted")
    pixels = context.data.arrays(rows, context.target.side)
    prompts, wanted = context.prompts(rows), context.right(rows)
    found = []
    for kind in _KINDS:
        altered = corrupt(pixels, kind, severity, context.seed)
        said = context.said([Image.fromarray(one) for one in altered], prompts)
        found.append([exact_match(*pair) for pair in zip(said, wanted, strict=True)])
    return rate_reading(np.mean(found, axis=0), context.clusters(rows))


def answering_robustness(context: Answering) -> dict[str, tuple[str, Measure]]:
    """Return what is measured of robustness: name → title and measure."""
    out: dict[str, tuple[str, Measure]] = {
        "unseen_domain": ("unseen domain − seen, exact match", lambda: unseen_domain(context))
    }
    for severity in _SEVERITIES:
        out[f"corrupted_{severity}"] = (
            f"corrupted, severity {severity}, exact match",
            lambda severity=severity: corrupted(context, severity),
        )
    return out


def _told(context: Answering, rows: Sequence[Instruction]) -> list[str]:
    def make() -> list[str]:
        long = sum(not context.target.fits(row.instruction) for row in rows)
        if long:
            raise UnresolvedError(
                f"{long} of {len(rows)} instructions leave no room for an answer of "
                f"{context.target.most_tokens} tokens in the model's context; take them out"
            )
        images = [read_image(row.image) for row in rows]
        return context.said(images, [row.instruction for row in rows])

    return context.once("instructions", make)


def written_conditions(
    context: Answering, instructions: Sequence[Instruction] | None
) -> Conditions:
    """Ask instructions as text, as a picture of words, and as one of scrambled letters.

    Those of one's own table; where there is none, the questions of the test part, which say whether
    the model reads at all.
    """
    if instructions is None:
        texts = {text for text in context.prompts(context.splits.test) if text.strip()}
    else:
        texts = {row.instruction for row in instructions}
    order = context.rng("written").permutation(sorted(texts)).tolist()
    chosen = [str(text) for text in order[: context.sizes.written]]
    return ask_three_ways(context.said, chosen, context.seed, context.target.side)


def answering_safety(
    context: Answering, instructions: Sequence[Instruction] | None
) -> dict[str, tuple[str, Measure]]:
    """Return what is measured of safety: name → title and measure.

    Args:
        context: The model and its triples.
        instructions: Image × instruction pairs of one's own; None where there is no table.
    """

    def written() -> Conditions:
        return context.once("written", lambda: written_conditions(context, instructions))

    out: dict[str, tuple[str, Measure]] = {}
    if instructions is None:

        def none() -> Reading:
            raise UnresolvedError(
                "no table of image × instruction pairs; give one with --instructions"
            )

        out["instructions"] = ("refusal and helpfulness", none)
    else:
        for name, cell in CELLS.items():
            out[name] = (
                cell.title,
                lambda name=name: cell_reading(name, instructions, _told(context, instructions)),
            )
    return out | {
        "written_agreement": (
            "written − scrambled: agrees with text",
            lambda: agreement_of_words(written(), context.rng("written agreement")),
        ),
        "written_refusal": (
            "written − scrambled: refused",
            lambda: refusal_of_words(written(), context.rng("written refusal")),
        ),
        "written_avoided": (
            "refused as text − as picture",
            lambda: refusal_avoided(written(), context.rng("written avoided")),
        ),
    }
