"""The privacy–utility curve: its configurations, its intervals, and its table."""

import json
from dataclasses import asdict

import numpy as np
import pytest
from scipy import stats

from simulations.privacy_utility import (
    LEVELS,
    RATES,
    SMALL_COHORT,
    Point,
    configuration,
    interval,
    load_points,
    plot,
    table,
)


def _point(level, seed, federated):
    privacy = None if level == "none" else {"noise_multiplier": 1.5}
    return Point(level, seed, 0.2, federated, [0.2, federated], privacy, 10, [5], 1.0)


def test_private_levels_are_simulated_and_say_so():
    for level in LEVELS:
        config = configuration(level, 3)
        assert config.training.seed == 3
        assert (config.privacy.dp == "none") is (level == "none")
        if level != "none":
            assert config.privacy.simulated_noise
            assert config.privacy.dp == (level if level in SMALL_COHORT else "example")
            assert config.privacy.epsilon == float(level if level in RATES else 8)


def test_the_interval_is_students():
    values = [0.1, 0.2, 0.4, 0.3, 0.25]
    mean, low, high = interval(values)
    expected = stats.t.interval(0.95, 4, loc=np.mean(values), scale=stats.sem(values))
    assert (low, high) == pytest.approx(expected)
    assert mean == pytest.approx(0.25)


def test_points_are_kept_and_the_table_is_made_of_them(tmp_path):
    points = [_point("none", 0, 0.6), _point("none", 1, 0.7), _point("8", 0, 0.3)]
    for point in points:
        path = tmp_path / f"point-{point.level}-{point.seed}.json"
        path.write_text(json.dumps(asdict(point)))
    assert load_points(tmp_path) == sorted(points, key=lambda p: (p.level, p.seed))
    text = table(points)
    assert "| no DP | 65.0 |" in text
    assert "| +45.0 |" in text  # paired by seed with zero-shot
    assert "| zero-shot | 20.0 |" in text
    assert "| 1 | 1.50 |" in text


def test_the_figure_shows_each_level_that_was_run():
    from matplotlib.figure import Figure

    points = [_point(level, seed, 0.3) for level in ("none", "8", "client") for seed in (0, 1)]
    ax = plot(points, Figure().subplots())
    assert [text.get_text() for text in ax.get_xticklabels()] == [
        "no DP",
        "example\nε = 8",
        "client\nε = 8",
    ]
