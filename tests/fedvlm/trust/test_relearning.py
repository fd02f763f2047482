"""Relearning: what is scored is not tuned on, and fewer than twenty concepts are no number."""

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from fedvlm.config import config_from
from fedvlm.errors import ConfigError
from fedvlm.federation.task import load_task
from fedvlm.training.local import train_adapter
from fedvlm.training.settings import LocalSettings
from fedvlm.trust.membership import margins
from fedvlm.trust.relearning import (
    RETAIN,
    TRAINED,
    UNSEEN,
    contrast,
    estimate,
    first_places,
    parts_of,
    relearned,
)

SETTINGS = LocalSettings(batch_size=8, learning_rate=8e-3)


@pytest.fixture(scope="module")
def world(shapes_folder):
    """The shapes with a small adapter: twelve concepts to forget, six to keep."""
    task = load_task(
        config_from({"data": str(shapes_folder), "clients": 2, "partition": "iid", "rank": 4})
    )
    rows = np.sort(task.splits.images)
    listed = task.pairs.concepts[rows] < 12
    first = np.unique(task.pairs.concepts[rows], return_index=True)[1]
    trained = np.intersect1d(rows[first], rows[listed])
    unseen = np.setdiff1d(rows[listed], trained)
    parts = parts_of(task.pairs, trained, unseen, rows[~listed], np.random.default_rng(0))
    return task, parts


def _curve(task, parts, state, epochs):
    view, vlm = task.view, task.model.vlm
    rng_of = lambda: np.random.default_rng(5)  # noqa: E731
    return relearned(vlm, view, task.pairs, state, parts, SETTINGS, rng_of, epochs)


def test_no_epochs_give_the_score_of_the_adapter_that_was_given(world):
    """One that never saw the pairs, and one that was trained on them and then given back."""
    task, parts = world
    vlm, view, rng = task.model.vlm, task.view, np.random.default_rng(1)
    train_adapter(vlm, view, task.pairs, parts.scored[TRAINED], SETTINGS, rng)
    knowing = view.read()
    places = {"knowing": first_places(vlm, task.pairs, parts.scored, parts.gallery)}
    task.reset()
    places["fresh"] = first_places(vlm, task.pairs, parts.scored, parts.gallery)
    assert places["knowing"][TRAINED] != places["fresh"][TRAINED]
    for name, state in (("knowing", knowing), ("fresh", task.initial)):
        assert _curve(task, parts, state, (0,))[0] == places[name]
    assert np.array_equal(view.read(), task.initial)  # what the view held is put back


def test_epochs_are_those_of_local_training_on_the_tuning_part_alone(world):
    task, parts = world
    found = _curve(task, parts, task.initial, (0, 2))
    task.reset()
    rng = np.random.default_rng(5)
    train_adapter(task.model.vlm, task.view, task.pairs, parts.tuning, SETTINGS, rng)  # 2 epochs
    direct = first_places(task.model.vlm, task.pairs, parts.scored, parts.gallery)
    task.reset()
    assert found[2] == direct != found[0]
    means = {n: np.mean([*found[n][UNSEEN].values()]) for n in found}
    assert means[2] > means[0]  # other drawings of the same things are found more often


def test_a_part_that_is_tuned_on_is_refused(world):
    task, parts = world
    row = parts.tuning[:1]
    for name in parts.scored:
        mixed = {**parts.scored, name: np.concatenate([parts.scored[name], row])}
        changed = SimpleNamespace(tuning=parts.tuning, scored=mixed, gallery=parts.gallery)
        with pytest.raises(ConfigError, match=f"'{name}' are tuned on"):
            _curve(task, changed, task.initial, (0,))


@pytest.mark.parametrize("seed", range(20))
def test_half_of_each_concepts_unseen_pairs_is_tuned_on_and_the_rest_is_scored(seed):
    rng = np.random.default_rng(seed)
    concepts = rng.integers(0, 9, 120)
    captions = 100 + concepts
    rows = rng.permutation(120)
    trained, unseen, retain = rows[:20], rows[20:90], rows[90:]
    pairs: Any = SimpleNamespace(concepts=concepts, caption_of=captions)
    parts = parts_of(pairs, trained, unseen, retain, rng)
    tuned, left = set(parts.tuning), set(parts.scored[UNSEEN])
    assert tuned | left == set(unseen)
    assert not tuned & left
    assert set(parts.scored[TRAINED]) == set(trained)
    assert set(parts.scored[RETAIN]) == set(retain)
    for concept in np.unique(concepts[unseen]):
        many = (concepts[unseen] == concept).sum()
        assert (concepts[parts.tuning] == concept).sum() == (many + 1) // 2
    assert set(parts.gallery) == set(captions[rows])


def _made(concepts, value, draws=3):
    """Curves whose levels rise by a tenth an epoch."""
    return [
        {n: {"x": {c: value + n / 10 + 0.01 * (c % 5) for c in range(concepts)}} for n in (0, 1, 2)}
        for _ in range(draws)
    ]


def test_a_difference_is_paired_by_concept_and_draw():
    rng = np.random.default_rng(0)
    found = contrast(_made(30, 0.4), _made(30, 0.1), "x", [1, 2], rng)
    assert (found.value, found.low, found.high) == pytest.approx((0.3, 0.3, 0.3))
    assert found.clusters == 30
    assert estimate(_made(30, 0.4), "x", 2, rng).value == pytest.approx(0.62)


@pytest.mark.parametrize("concepts", [7, 19])
def test_fewer_than_twenty_concepts_are_never_a_number(concepts):
    """Three draws of seven concepts are 21 rows, and no more concepts."""
    rng = np.random.default_rng(0)
    one = estimate(_made(concepts, 0.4), "x", 1, rng)
    other = contrast(_made(concepts, 0.4), _made(concepts, 0.1), "x", [1], rng)
    for found in (one, other):
        assert "unresolved" in str(found)
        assert found.to_dict()["value"] is None
        assert not {"low", "high"} & found.to_dict().keys()
    assert estimate(_made(20, 0.4), "x", 1, rng).to_dict()["value"] is not None


def test_a_margin_is_the_log_odds_of_the_own_caption_over_public_ones():
    images, own = np.eye(3)[:2], np.eye(3)[:2]
    public = np.array([[0.0, 0.0, 1.0], [0.6, 0.8, 0.0]])
    found = margins(images, own, public, 2.0)
    expected = [2 - np.log(1 + np.exp(1.2)), 2 - np.log(1 + np.exp(1.6))]
    assert found == pytest.approx(expected)
