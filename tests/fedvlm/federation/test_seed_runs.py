"""Several seeds: a run each, what is finished is read, and the table over them."""

import json

import pytest
from typer.testing import CliRunner

from fedvlm.cli import app
from fedvlm.config import config_from
from fedvlm.errors import ConfigError
from fedvlm.federation.result import Result
from fedvlm.federation.seed_runs import run_seeds
from fedvlm.reporting.seeds import markdown, seeds_summary, seeds_table


def stub(config, out=None, resume=False, **how):
    """A run whose score is its seed."""
    score = (config.training.seed + 1) / 10
    summary = {"zero_shot": 0.05, "federated": score, "central": None}
    made = Result(summary, [{"round": 0}], None, {}, [], config.to_dict(), {}, config.training.seed)
    if out is not None:
        made.save(out)
    return made


def test_a_seed_that_is_finished_is_read_and_another_configuration_is_refused(tmp_path):
    told = []
    config = config_from({"rounds": 2})
    run_seeds(config, (0, 2), tmp_path, run=stub)
    again = run_seeds(
        config, (0, 1, 2), tmp_path, run=stub, before=lambda s, kept: told.append((s, kept))
    )
    assert told == [(0, True), (1, False), (2, True)]
    assert [one.seed for one in again] == [0, 1, 2]
    run_seeds(config_from({"rounds": 2, "workers": 1}), (0, 1), tmp_path, run=stub)
    with pytest.raises(ConfigError, match="training.rounds was 2, is 3"):
        run_seeds(config_from({"rounds": 3}), (0, 1), tmp_path, run=stub)
    for wrong in ((0,), (1, 1), ()):
        with pytest.raises(ConfigError, match="at least 2 different seeds"):
            run_seeds(config, wrong, run=stub)


def test_the_interval_over_seeds_is_students():
    results = run_seeds(config_from({}), (0, 1, 2), run=stub)
    found = seeds_summary(results)["summary"]
    assert found["federated"]["mean"] == pytest.approx(0.2)
    half = 4.302652729911275 * 0.1 / 3**0.5  # t of 2 degrees of freedom at 97.5 %
    assert found["federated"]["high"] - 0.2 == pytest.approx(half)
    assert "central" not in found
    assert "| **federated** | 10.0 | 20.0 | 30.0 | 20.0 ± 24.8 |" in markdown(results, "one of 100")
    assert seeds_table(results, "one of 100").row_count == 2  # what no run has is left out


def test_simulate_sweeps_seeds_into_a_folder_each(small_run, tmp_path):
    out = tmp_path / "runs"
    given = [f"--set={k}={json.dumps(v) if not isinstance(v, str) else v}"
             for k, v in (small_run | {"rounds": 1}).items()]  # fmt: skip
    command = ["simulate", *given, "--seeds", "0,1", "--out", str(out)]
    told = CliRunner().invoke(app, command)
    assert told.exit_code == 0, told.output + str(told.exception)
    assert (out / "seed-0" / "result.json").exists()
    assert (out / "seed-1" / "adapter").is_dir()
    assert json.loads((out / "seeds.json").read_text())["seeds"] == [0, 1]
    assert "mean ± 95 %" in told.output
    refused = CliRunner().invoke(app, command)
    assert "--resume reads it" in str(refused.exception)
    again = CliRunner().invoke(app, [*command, "--resume", "--json"])
    assert again.exit_code == 0, again.output
    assert "finished before" in again.output
    wrong = CliRunner().invoke(app, [*command, "--seed", "3"])
    assert isinstance(wrong.exception, ConfigError)


def test_u10_json_lines_are_events_as_they_come_and_the_result_in_the_end(small_run):
    given = [f"--set={k}={json.dumps(v) if not isinstance(v, str) else v}"
             for k, v in (small_run | {"rounds": 2}).items()]  # fmt: skip
    told = CliRunner().invoke(app, ["simulate", *given, "--json-lines"])
    assert told.exit_code == 0, told.output
    lines = [json.loads(line) for line in told.stdout.splitlines()]
    kinds = [line["event"] for line in lines]
    assert kinds[0] == "start"
    assert kinds[-2:] == ["done", "result"]
    rounds = [line["entry"]["round"] for line in lines if line["event"] == "round"]
    assert rounds == [0, 1, 2]
    assert lines[-1]["result"]["seed"] == 0
