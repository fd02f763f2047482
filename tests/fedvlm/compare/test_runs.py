"""Two runs side by side: what differs, what is paired, and what isn't claimed."""

import numpy as np
import pytest
from typer.testing import CliRunner

from fedvlm.cli import app
from fedvlm.compare.runs import compare_runs, run_tables
from fedvlm.config import config_from
from fedvlm.errors import ConfigError
from fedvlm.federation.result import Result


def result(score=0.5, seed=0, domains=None, **settings):
    config = config_from(settings | {"seed": seed}).to_dict()
    last = {
        "round": 1, "test_one_of_100": score, "test_one_of_100_low": score - 0.05,
        "test_one_of_100_high": score + 0.05, "upload_bytes_per_client": 1000,
        "server_seconds": 0.1,
    }  # fmt: skip
    last |= {f"domain_{name}": value for name, value in (domains or {}).items()}
    data = {"fingerprint": "f", "splits": "s", "metric": "one_of_100"}
    return Result({}, [{"round": 0}, last], None, {}, [], config, {"torch": "1"}, seed, data)


def _of(found):
    return {one.name: one for one in found.metrics}


def test_settings_that_differ_are_named_and_metrics_stand_side_by_side(tmp_path):
    result(0.5).save(tmp_path / "a")
    result(0.6, rounds=9, protect="secagg").save(tmp_path / "b")
    found = compare_runs(tmp_path / "a", tmp_path / "b")
    assert found.settings == {
        "training.rounds": (6, 9), "protection.protect": ("plain", "secagg"),
    }  # fmt: skip
    score = _of(found)["test_one_of_100"]
    assert score.one == pytest.approx((0.5, 0.45, 0.55))
    assert score.change[0] == pytest.approx(0.1)
    assert score.change[1:] == (None, None)  # one run each: no interval of the change
    assert not score.told_apart
    assert run_tables(found).renderables


def test_seeds_pair_two_folders_of_runs(tmp_path):
    rng = np.random.default_rng(0)
    for seed in range(4):
        luck = float(rng.uniform(0.3, 0.7))  # what a seed is worth, the same for both
        result(luck, seed).save(tmp_path / "a" / f"seed-{seed}")
        gain = 0.02 + float(rng.normal(0, 0.001))
        result(luck + gain, seed).save(tmp_path / "b" / f"seed-{seed}")
    found = compare_runs(tmp_path / "a", tmp_path / "b")
    score = _of(found)["test_one_of_100"]
    assert (score.pairs, score.paired_by) == (4, "seed")
    assert score.told_apart
    assert score.change[1] < 0.02 < score.change[2]
    assert score.one[1] < score.one[2] - 0.1  # apart, the two sides' intervals overlap by far
    assert found.settings == {}


def test_domains_pair_two_single_runs(tmp_path):
    result(domains={"x": 0.5, "y": 0.6, "z": 0.7}).save(tmp_path / "a")
    result(domains={"x": 0.6, "y": 0.71, "z": 0.79}).save(tmp_path / "b")
    mean = _of(compare_runs(tmp_path / "a", tmp_path / "b"))["mean over domains"]
    assert (mean.pairs, mean.paired_by) == (3, "domain")
    assert mean.change[1] < 0.1 < mean.change[2]


def test_what_can_not_be_compared_is_refused_or_said(tmp_path):
    result().save(tmp_path / "a")
    (tmp_path / "none").mkdir()
    with pytest.raises(ConfigError, match="no finished run"):
        compare_runs(tmp_path / "a", tmp_path / "none")
    other = result()
    other.data["metric"] = "exact_match"
    other.data["splits"] = "t"
    other.save(tmp_path / "b")
    found = compare_runs(tmp_path / "a", tmp_path / "b")
    assert not found.metrics
    assert any("metrics differ" in note for note in found.notes)
    assert any("other splits" in note for note in found.notes)


def test_the_command_tells_two_runs_from_a_grid(tmp_path):
    result(0.5).save(tmp_path / "a")
    result(0.6).save(tmp_path / "b")
    a, b = str(tmp_path / "a"), str(tmp_path / "b")
    told = CliRunner().invoke(app, ["compare", a, b])
    assert told.exit_code == 0, told.output
    assert "the settings are the same" in told.output
    assert "test_one_of_100" in told.output
    for wrong in ([a], [a, b, "--quick"], [a, b, a]):
        failed = CliRunner().invoke(app, ["compare", *wrong])
        assert isinstance(failed.exception, ConfigError), wrong
