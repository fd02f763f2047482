"""Fairness as it is read off one model: tones, twins, skew, association, probe, own groups."""

from collections.abc import Callable
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from fedvlm.data.dataset import ImageTextData
from fedvlm.data.twins import PROFESSIONS, Twin, twins
from fedvlm.data.variants import DEFAULT_TONE, load_tones, thinned
from fedvlm.trust.association import bias_distance
from fedvlm.trust.attribute_probe import attribute_probe
from fedvlm.trust.context import Context, first_among
from fedvlm.trust.estimate import UnresolvedError
from fedvlm.trust.own_groups import group_gaps
from fedvlm.trust.ranking import skew_excess
from fedvlm.trust.readings import Reading, reading_of, reading_of_gap

Measure = Callable[[], Reading]
_SKEW_AT = 10
_PLEASANT = (
    "grinning face",
    "beaming face with smiling eyes",
    "smiling face",
    "smiling face with hearts",
    "smiling face with halo",
    "partying face",
    "red heart",
    "sparkles",
)
_UNPLEASANT = (
    "angry face",
    "enraged face",
    "crying face",
    "fearful face",
    "frowning face",
    "nauseated face",
    "broken heart",
    "skull",
)


class Tones:
    """The tone sets under one model: embedded once, read several times."""

    def __init__(self, context: Context, tones: ImageTextData, rows: NDArray[np.int64]) -> None:
        self.context = context
        self.rows = rows
        self.tone = np.array([tones.more["tone"][row] for row in rows])
        self.concepts = tones.concepts[rows]
        captions = sorted({tones.captions[row] for row in rows})
        self.images = context.subject.images(tones, rows)
        self.texts = context.subject.texts(captions)
        right = context.right(rows, captions, tones)
        self.first = first_among(self.images, self.texts, right)
        self.own = (self.images * self.texts[right]).sum(axis=1)

    def of(self, tone: str) -> tuple[NDArray[np.float64], NDArray[np.int64]]:
        """Return the first-place chances of a tone's images, and their concepts."""
        chosen = self.tone == tone
        return self.first[chosen], self.concepts[chosen]

    def gap(self, first: str, second: str) -> Reading:
        """Read the signed gap of two tones."""
        rng = self.context.rng("tones", first, second)
        return reading_of_gap(self.of(first), self.of(second), rng)

    def association(self) -> Reading:
        """Read whether light tones lie nearer to pleasant captions than dark ones."""
        light, dark = self.tone == "light", self.tone == "dark"
        texts = self.context.subject.texts
        found = bias_distance(
            self.images[light],
            self.images[dark],
            texts(_PLEASANT),
            texts(_UNPLEASANT),
            self.context.rng("association"),
            (self.concepts[light], self.concepts[dark]),
        )
        return Reading(found)

    def skew(self) -> Reading:
        """Read how far searches for a concept in no tone are skewed by tone."""
        chosen = self.tone != DEFAULT_TONE
        scores = self.texts @ self.images[chosen].T
        rng = self.context.rng("tone skew")
        return Reading(skew_excess(scores, self.tone[chosen], rng, k=_SKEW_AT))

    def probe(self) -> Reading:
        """Read how well a linear probe tells the five tones apart, over chance."""
        chosen = self.tone != DEFAULT_TONE
        rng = self.context.rng("probe")
        return Reading(
            attribute_probe(self.images[chosen], self.tone[chosen], self.concepts[chosen], rng)
        )


@lru_cache(maxsize=1)
def _tones(designers: int) -> tuple[ImageTextData, NDArray[np.int64]]:
    tones = load_tones()
    return tones, thinned(tones, designers)


def load_tone_rows(context: Context) -> tuple[ImageTextData, NDArray[np.int64]]:
    """Load the tone sets that an audit looks at, the same for every model."""
    tones, rows = _tones(context.sizes.designers)
    if context.sizes.half:
        rows = rows[tones.concepts[rows] % 2 == 1]
    return tones, rows


def tone_columns(context: Context) -> dict[str, tuple[str, Measure]]:
    """Return what is measured on tones: name → title and measure."""
    if not context.of_emoji:

        def none() -> Reading:
            raise UnresolvedError("tones and twins belong to the embedded data; name group columns")

        return {"tone_gap": ("tone gap, default − dark", none)}
    held: dict[str, Tones] = {}

    def tones() -> Tones:
        if "tones" not in held:
            held["tones"] = Tones(context, *load_tone_rows(context))
        return held["tones"]

    return {
        "tone_gap": ("tone gap, default − dark", lambda: tones().gap(DEFAULT_TONE, "dark")),
        "tone_gap_light": ("tone gap, light − dark", lambda: tones().gap("light", "dark")),
        "tone_skew": (f"tone MaxSkew@{_SKEW_AT} − chance", lambda: tones().skew()),
        "tone_probe": ("tone probe − chance", lambda: tones().probe()),
        "association": ("association, light − dark (d)", lambda: tones().association()),
    }


class Twins:
    """Images of man/woman twins and their captions, under one model."""

    def __init__(self, context: Context) -> None:
        self.context = context
        data = context.data
        self.twins: tuple[Twin, ...] = twins(data.captions)
        own = {t.woman: t.man for t in self.twins} | {t.man: t.woman for t in self.twins}
        self.rows = np.array(
            [row for row, caption in enumerate(data.captions) if caption in own], dtype=np.int64
        )
        if not len(self.rows):
            raise UnresolvedError("no two captions differ in man and woman alone")
        captions = [data.captions[row] for row in self.rows]
        self.woman = np.array([caption in {t.woman for t in self.twins} for caption in captions])
        names = sorted(own)
        place = {name: number for number, name in enumerate(names)}
        self.images = context.subject.images(data, self.rows)
        texts = context.subject.texts(names)
        right = texts[[place[caption] for caption in captions]]
        wrong = texts[[place[own[caption]] for caption in captions]]
        # A tie is a swap: the model doesn't tell which.
        self.swapped = ~((self.images * right).sum(axis=1) > (self.images * wrong).sum(axis=1))
        self.pair = np.array(
            [
                next(n for n, t in enumerate(self.twins) if caption in (t.woman, t.man))
                for caption in captions
            ]
        )

    def swaps(self) -> Reading:
        """Read how often the twin's caption beats the right one."""
        return reading_of(self.swapped.astype(np.float64), self.pair)

    def swap_gap(self) -> Reading:
        """Read whether women are called men more often than men women, by twin."""
        values = self.swapped.astype(np.float64)
        return reading_of_gap(
            (values[self.woman], self.pair[self.woman]),
            (values[~self.woman], self.pair[~self.woman]),
            self.context.rng("swaps"),
        )

    def skew(self, k: int | None) -> Reading:
        """Read how far searches for a profession in neutral words are skewed by gender."""
        there = {t.neutral for t in self.twins}
        queries = [name for name in PROFESSIONS if name in there] or sorted(
            name for name in there if name is not None
        )
        if len(queries) < 2:
            raise UnresolvedError("no twin has a caption that names neither")
        scores = self.context.subject.texts(queries) @ self.images.T
        rng = self.context.rng("twin skew", str(k))
        return Reading(skew_excess(scores, self.woman, rng, k=k))


def twin_columns(context: Context) -> dict[str, tuple[str, Measure]]:
    """Return what is measured on twin captions: name → title and measure."""
    held: dict[str, Twins] = {}

    def pairs() -> Twins:
        if "twins" not in held:
            held["twins"] = Twins(context)
        return held["twins"]

    return {
        "twin_swaps": ("man/woman caption swaps", lambda: pairs().swaps()),
        "twin_gap": ("swaps, women − men", lambda: pairs().swap_gap()),
        "twin_skew": (f"gender MaxSkew@{_SKEW_AT} − chance", lambda: pairs().skew(_SKEW_AT)),
        "twin_ndkl": ("gender NDKL − chance", lambda: pairs().skew(None)),
    }


def group_columns(
    context: Context, values: Callable[[], NDArray[np.float64]], names: tuple[str, ...] | None
) -> dict[str, tuple[str, Measure]]:
    """Return the gap of each own group to the largest one: name → title and measure.

    Args:
        context: Its test part is what groups are compared on.
        values: First-place chances of the test's images, under the model as it is.
        names: Columns of the table that hold groups; None takes every column of 2 to 12 values.
    """
    data, test = context.data, context.splits.test
    return group_gaps(
        *(data, test, names),
        values=values,
        labels=[data.captions[row] for row in test],
        clusters=data.concepts[test],
        rng=context.rng,
    )
