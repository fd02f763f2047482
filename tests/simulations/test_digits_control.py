"""The positive control: its gradients are what they say, and clipping starves the rare class."""

import numpy as np
import pytest

from simulations.digits_control import (
    RARE,
    TRAININGS,
    _clipped_sum,
    _forward,
    control,
    digits,
    table,
)


def _layers(rng):
    return [rng.normal(0, 0.3, s) for s in ((64, 64), (64,), (64, 10), (10,))]


def _loss(x, labels, layers):
    p = _forward(x, layers)[2]
    return -np.log(p[np.arange(len(x)), labels]).sum()


def test_gradients_are_those_of_finite_differences():
    rng = np.random.default_rng(0)
    x, labels, layers = rng.normal(size=(3, 64)), np.array([1, 8, 0]), _layers(rng)
    found = _clipped_sum(x, labels, layers, None)
    for number, place in ((0, (5, 7)), (1, (3,)), (2, (9, 4)), (3, (8,))):
        sides = []
        for step in (1e-5, -1e-5):
            moved = [one.copy() for one in layers]
            moved[number][place] += step
            sides.append(_loss(x, labels, moved))
        assert found[number][place] == pytest.approx((sides[0] - sides[1]) / 2e-5, abs=1e-5)


def test_each_example_is_clipped_by_itself():
    rng = np.random.default_rng(1)
    x, labels, layers = rng.normal(size=(6, 64)), rng.integers(0, 10, 6), _layers(rng)
    whole = _clipped_sum(x, labels, layers, 0.7)
    alone = [_clipped_sum(x[n : n + 1], labels[n : n + 1], layers, 0.7) for n in range(6)]
    norms = [np.sqrt(sum((part**2).sum() for part in one)) for one in alone]
    assert max(norms) <= 0.7 * (1 + 1e-12)
    assert min(norms) == pytest.approx(0.7)  # all of these are longer unclipped
    for number, part in enumerate(whole):
        assert np.allclose(part, sum(one[number] for one in alone))


def test_one_digit_keeps_a_tenth_of_its_training_images():
    x, labels, test, test_labels = digits(3)
    counts = np.bincount(labels, minlength=10)
    others = np.delete(counts, RARE)
    assert counts[RARE] <= 0.15 * others.mean()
    assert np.bincount(test_labels)[RARE] >= 30
    assert not {row.tobytes() for row in x} & {row.tobytes() for row in test}


@pytest.mark.slow
def test_clipping_alone_starves_the_rare_digit_before_any_noise():
    """What Esipova et al. (2023) say must come out, 12 seeds: the clip does it, not the noise."""
    rows = {row["name"]: row for row in control(12)}
    assert list(rows) == [training.name for training in TRAININGS]
    plain, clipped = rows["no DP"], rows["clip alone"]
    assert plain["gap"][2] < 0.7
    assert clipped["gap"][1] > plain["gap"][2]
    assert clipped["gap"][0] > plain["gap"][0] + 0.3
    for name in ("ε = 8", "ε = 3"):
        assert rows[name]["gap"][0] == pytest.approx(clipped["gap"][0], abs=0.1)
    assert clipped["found"] == 12
    larger = rows["clip alone, four times the rate"]
    assert larger["gap"][2] < clipped["gap"][1]  # what the clip starves larger steps feed
    assert table([*rows.values()]).count("of 12") == len(TRAININGS)
