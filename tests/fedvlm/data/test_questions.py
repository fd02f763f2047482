"""Questions made of labels."""

import numpy as np
import pytest

from fedvlm.data.dataset import ImageTextData
from fedvlm.data.questions import (
    KIND,
    KINDS,
    PROMPT,
    colour_of,
    count_of,
    one_of_each_image,
    questions_about,
)
from fedvlm.data.splits import make_splits
from fedvlm.seeds import ExperimentSeed

LABELS = ("red apple", "green apple", "dog", "cat", "family: man, woman, boy", "man: red hair")


def labelled(copies=12):
    """Images of six labels, each in several hands; every second concept is public."""
    count = len(LABELS) * copies
    concept = np.arange(count) % len(LABELS)
    return ImageTextData(
        name="labels",
        encoded=tuple(f"image {n}".encode() for n in range(count)),
        captions=tuple(LABELS[c] for c in concept),
        concepts=concept.astype(np.int64),
        domains=(np.arange(count) // len(LABELS) % 3).astype(np.int64),
        topics=(concept // 3).astype(np.int64),
        public=concept % 2 == 0,
        domain_names=("a", "b", "c"),
        topic_names=("food and animals", "people"),
    )


@pytest.mark.parametrize(
    ("label", "colour"),
    [
        ("red apple", "red"),
        ("black medium-small square", "black"),
        ("person with white cane", None),
        ("woman: red hair", None),
        ("red and blue flag", None),
        ("mahjong red dragon", None),
        ("leafy green", "green"),
        ("credit card", None),
    ],
)
def test_a_colour_is_asked_for_where_it_is_the_whole_thing_s(label, colour):
    assert colour_of(label) == colour


@pytest.mark.parametrize(
    ("label", "count"),
    [
        ("family: man, woman, boy", "three"),
        ("family: man, boy", "two"),
        ("family: woman, woman, girl, boy", "four"),
        ("family: adult, adult, child, child", "four"),
        ("family", None),
        ("person: red hair", None),
    ],
)
def test_people_are_counted_where_the_label_names_them(label, count):
    assert count_of(label) == count


def test_triples_are_those_of_their_images():
    data = labelled()
    triples = questions_about(data)
    first = {blob: n for n, blob in enumerate(data.encoded)}
    for row, (prompt, kind) in enumerate(
        zip(triples.more[PROMPT], triples.more[KIND], strict=True)
    ):
        own = first[triples.encoded[row]]
        label, answer = data.captions[own], triples.captions[row]
        assert kind in KINDS
        if kind == "name":
            assert answer == label
        elif kind == "choice":
            one, two = prompt.removesuffix("?").split(" or ")
            assert answer == label
            assert {one, two} > {label}
            other = ({one, two} - {label}).pop()
            known = LABELS.index(other)
            # Neither topic nor publicity gives the answer away.
            assert data.topics[known] == data.topics[own]
            assert data.public[known] == data.public[own]
        elif kind == "topic":
            assert answer == data.topic_names[data.topics[own]]
        elif kind == "colour":
            assert answer == colour_of(label)
        else:
            assert answer == count_of(label)
        assert triples.concepts[row] == data.concepts[own]
        assert triples.public[row] == data.public[own]
    assert triples.fingerprint == questions_about(data).fingerprint


def test_all_triples_of_an_image_are_in_one_part():
    triples = questions_about(labelled())
    splits = make_splits(triples, ExperimentSeed(0), clients=2, partition="iid")
    parts = [*splits.clients, splits.validation, splits.test, splits.withheld, splits.public]
    seen = [set(triples.groups[part].tolist()) for part in parts]
    for one in range(len(seen)):
        for two in range(one):
            assert not seen[one] & seen[two]


def test_each_image_once_whatever_is_asked():
    data = labelled()
    triples = questions_about(data)
    images, place = one_of_each_image(triples)
    assert len(images) == len(data)
    assert [images.encoded[p] for p in place] == list(triples.encoded)
    # Features are kept by this fingerprint: other questions about the same images share them.
    fewer = questions_about(data)
    again, _ = one_of_each_image(fewer)
    assert again.fingerprint == images.fingerprint
