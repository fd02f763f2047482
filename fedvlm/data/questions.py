"""Questions about the embedded set, whose answers its labels hold: name, topic, colour, count.

One triple (image, prompt, answer) is one example. All triples of an image stay together in every
split, since splits are made of what images show.
"""

import re
from collections.abc import Iterator
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from fedvlm.data.dataset import ImageTextData
from fedvlm.seeds import ExperimentSeed

PROMPT, KIND = "prompt", "kind"
"""Columns of a triple beside its answer, which stands where a pair has its caption."""

KINDS = ("name", "choice", "topic", "colour", "count")
NAME_QUESTION = "what is this?"
TOPIC_QUESTION = "which topic?"
COLOUR_QUESTION = "what colour is it?"
COUNT_QUESTION = "how many people?"
_COLOURS = frozenset(
    ("red", "orange", "yellow", "green", "blue", "purple", "brown", "black", "white", "pink")
)
_NOT_OF_THE_WHOLE = frozenset(("hair", "cane", "flag", "dragon"))
_PEOPLE = frozenset(("man", "woman", "boy", "girl", "adult", "child"))
_NUMBERS = ("zero", "one", "two", "three", "four", "five", "six")


def colour_of(label: str) -> str | None:
    """Return the one colour that a label gives its thing, or None.

    Example:
        >>> colour_of("red apple"), colour_of("man: red hair"), colour_of("dog")
        ('red', None, None)
    """
    words = re.findall("[a-z]+", label)
    named = [word for word in words if word in _COLOURS]
    return named[0] if len(named) == 1 and not _NOT_OF_THE_WHOLE & set(words) else None


def count_of(label: str) -> str | None:
    """Return how many people a family's label counts, as a word, or None.

    Example:
        >>> count_of("family: man, woman, boy"), count_of("family")
        ('three', None)
    """
    kind, colon, rest = label.partition(":")
    members = [part for part in re.findall("[a-z]+", rest) if part in _PEOPLE]
    if kind != "family" or not colon or not 2 <= len(members) < len(_NUMBERS):
        return None
    return _NUMBERS[len(members)]


def choice_question(label: str, other: str, first: bool) -> str:
    """Return a question that names the right label and another one."""
    one, two = (label, other) if first else (other, label)
    return f"{one} or {two}?"


def _triples(label: str, topic: str, other: str, first: bool) -> Iterator[tuple[str, str, str]]:
    """Yield kind, prompt and answer of what can be asked about an image."""
    yield "name", NAME_QUESTION, label
    if other != label:
        yield "choice", choice_question(label, other, first), label
    yield "topic", TOPIC_QUESTION, topic
    colour, count = colour_of(label), count_of(label)
    if colour is not None:
        yield "colour", COLOUR_QUESTION, colour
    if count is not None:
        yield "count", COUNT_QUESTION, count


def _others(data: ImageTextData, seed: ExperimentSeed) -> list[str]:
    """Return for each image another label of its topic, and of its public or private half.

    From the other half, what was pretrained on would give the answer away.
    """
    others = [""] * len(data)
    for topic in range(len(data.topic_names)):
        for public in (False, True):
            rows = np.flatnonzero((data.topics == topic) & (data.public == public))
            labels = sorted({data.captions[row] for row in rows})
            for row in rows:
                own = data.captions[row]
                pool = [label for label in labels if label != own] or [own]
                others[row] = pool[seed.number("other", int(row)) % len(pool)]
    return others


def questions_about(data: ImageTextData) -> ImageTextData:
    """Make triples of labelled images; the same ones each time.

    Args:
        data: Images whose captions are labels, with topics.

    Returns:
        Triples in the order of the images: `captions` are the answers, `more["prompt"]` the
        questions and `more["kind"]` one of `KINDS`. What an image shows (`groups`), its concept,
        domain and topic are those of the image.
    """
    seed = ExperimentSeed(0)  # of the questions, not of an experiment: all runs ask the same
    others = _others(data, seed)
    rows: list[int] = []
    asked: list[tuple[str, str, str]] = []
    for row, label in enumerate(data.captions):
        first = seed.number("first", row) % 2 == 0
        topic = data.topic_names[data.topics[row]]
        for triple in _triples(label, topic, others[row], first):
            rows.append(row)
            asked.append(triple)
    taken: NDArray[np.int64] = np.array(rows, dtype=np.int64)
    kinds, prompts, answers = zip(*asked, strict=True)
    contents = data.contents
    return replace(
        data,
        name=f"{data.name}-questions",
        encoded=tuple(data.encoded[row] for row in rows),
        captions=answers,
        concepts=data.concepts[taken],
        domains=data.domains[taken],
        topics=data.topics[taken],
        public=data.public[taken],
        contents=None if contents is None else tuple(contents[row] for row in rows),
        more={PROMPT: prompts, KIND: kinds},
    )


def one_of_each_image(data: ImageTextData) -> tuple[ImageTextData, NDArray[np.int64]]:
    """Return the images of triples, each once, and the place of each triple's among them.

    Args:
        data: N triples of M images.

    Returns:
        M images without captions, so that what is kept of them (features) doesn't depend on what
        is asked; and shape (N,), int64.
    """
    first, place = np.unique(data.groups, return_index=True, return_inverse=True)[1:]
    contents = data.contents
    zero = np.zeros(len(first), dtype=np.int64)
    images = ImageTextData(
        name=f"{data.name}-images",
        encoded=tuple(data.encoded[row] for row in first),
        captions=("",) * len(first),
        concepts=zero,
        domains=zero,
        topics=zero,
        public=zero.astype(bool),
        domain_names=("all",),
        topic_names=("all",),
        contents=None if contents is None else tuple(contents[row] for row in first),
    )
    return images, place.astype(np.int64)
