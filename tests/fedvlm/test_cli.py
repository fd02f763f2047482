"""The command line as a user meets it: exit codes, one-line errors, nothing half-written."""

import json
import os
import subprocess
import sys
import time

import pytest

COMMAND = [sys.executable, "-m", "fedvlm.cli"]


def _run(*arguments, **kwargs):
    kwargs["env"] = os.environ | {"HF_HUB_OFFLINE": "1"}  # don't wait for a hub out of reach
    return subprocess.run(
        [*COMMAND, *map(str, arguments)], capture_output=True, text=True, timeout=120, **kwargs
    )


def test_help_answers_at_once():
    _run("--help")
    start = time.perf_counter()
    done = _run("--help")
    assert time.perf_counter() - start < 2.5  # about 0.4 s on an idle core
    assert done.returncode == 0
    assert "simulate" in done.stdout


def test_u11_the_version():
    import fedvlm

    shown = _run("--version")
    assert (shown.returncode, shown.stdout.strip()) == (0, fedvlm.__version__)


def test_importing_the_library_imports_nothing_heavy():
    code = (
        "import sys, fedvlm, fedvlm.cli; print([m for m in ('torch', 'flwr') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.stdout.strip() == "[]"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["simulate", "--set", "lerning_rate=1"], "did you mean 'learning_rate'"),
        (["simulate", "--set", "rounds=-1"], "rounds must be at least 1; got -1"),
        (["simulate", "--set", "rounds"], "--set takes key=value"),
        (["simulate", "missing.toml"], "can't read missing.toml"),
        (["simulate", "--resume"], "--resume needs --out"),
        (["report", "nowhere"], "no result at nowhere"),
        (["simulate", "--set", "data=nowhere"], "no captions.csv"),
        (["simulate", "--set", "clients=5000"], "5000 clients need at least 10000"),
        (["simulate", "--set", "model=nowhere"], "can't load"),
    ],
)
def test_wrong_use_is_one_line_and_exit_code_2(arguments, message, tmp_path):
    done = _run(*arguments, cwd=tmp_path)
    assert done.returncode == 2, done.stderr
    errors = [line for line in done.stderr.splitlines() if line.startswith("error:")]
    assert len(errors) == 1
    assert message in errors[0]
    assert "Traceback" not in done.stderr
    assert list(tmp_path.iterdir()) == []


def test_a_run_from_start_to_report(small_run, tmp_path):
    out = tmp_path / "run"
    pairs = [f"{key}={value}" for key, value in small_run.items()]
    options = [part for pair in pairs for part in ("--set", pair)]
    done = _run("simulate", *options, "--out", out, "--seed", 3)
    assert done.returncode == 0, done.stderr
    assert "federated" in done.stdout
    assert "round   3/3" in done.stderr
    assert "; about 0 s left" in done.stderr.partition("round   3/3")[2]
    lines = (out / "progress.jsonl").read_text().splitlines()
    assert [json.loads(line)["event"] for line in (lines[0], lines[-1])] == ["start", "done"]
    result = json.loads((out / "result.json").read_text())
    assert result["seed"] == 3
    assert sorted(p.name for p in (out / "figures").iterdir()) == [
        "bytes.png", "domains.png", "rounds.png",
    ]  # fmt: skip
    report = _run("report", out)
    assert report.returncode == 0, report.stderr
    page = (out / "report.html").read_text()
    assert "by round</strong>" in page
    assert "http" not in page.replace("http-equiv", "")

    # U2: the folder knows its own settings; what is said again must be the same. A finished run
    # is left as it is, with what an audit has written there.
    audited = json.dumps(result | {"leakage": [{"attack": "of an audit"}]}, indent=2)
    (out / "result.json").write_text(audited)
    again = _run("simulate", "--out", out, "--resume", "--json")
    assert again.returncode == 0, again.stderr
    assert "nothing was left to do: all 3 rounds are done; --set rounds=4 adds one" in again.stderr
    assert json.loads(again.stdout) == json.loads(audited)
    assert (out / "result.json").read_text() == audited
    other = _run("simulate", "--out", out, "--resume", "--set", "rank=3", "--set", "rounds=4")
    assert other.returncode == 2
    assert "rank was 2, is 3" in other.stderr
    more = _run("simulate", "--out", out, "--resume", "--set", "rounds=4", "--json")
    assert more.returncode == 0, more.stderr
    assert json.loads(more.stdout)["rounds"][:4] == result["rounds"]
    assert "round   4/4" in more.stderr
    assert "nothing was left" not in more.stderr
    told = [json.loads(line) for line in (out / "progress.jsonl").read_text().splitlines()]
    rounds = [event["entry"]["round"] for event in told if event["event"] == "round"]
    assert rounds == [0, 1, 2, 3, 4]  # each once, over three starts

    kept = (out / "result.json").read_text()
    silent = _run("simulate", *options, "--out", out)
    assert silent.returncode == 2
    assert "--resume goes on with it, --overwrite replaces it" in silent.stderr
    assert (out / "result.json").read_text() == kept
    options[options.index("rounds=3")] = "rounds=1"
    (out / "audit.json").write_text("{}")
    replaced = _run("simulate", *options, "--out", out, "--overwrite", "--watch")
    assert replaced.returncode == 0, replaced.stderr
    assert "live at http://127.0.0.1:" in replaced.stderr
    assert not (out / "audit.json").exists()  # of the run that was replaced
    assert not (out / "report.html").exists()
    assert len(json.loads((out / "result.json").read_text())["rounds"]) == 2


def test_a_run_that_saves_nothing_says_so(small_run):
    options = [p for k, v in small_run.items() for p in ("--set", f"{k}={v}")]
    done = _run("simulate", *options, "--set", "rounds=1")
    assert done.returncode == 0, done.stderr
    assert "nothing of this run is saved; --out DIR keeps" in done.stderr


def test_no_round_that_succeeded_is_exit_code_3(small_run, tmp_path):
    options = [p for k, v in small_run.items() for p in ("--set", f"{k}={v}")]
    options += ["--set", "rounds=1", "--set", "protect=secagg", "--set", "update_bound=1e-6"]
    done = _run("simulate", *options, "--out", tmp_path / "run")
    assert done.returncode == 3, done.stderr
    assert "error: none of 1 rounds succeeded" in done.stderr
    assert not (tmp_path / "run" / "adapter").exists()


def test_an_unwritable_folder(small_run, tmp_path):
    blocker = tmp_path / "file"
    blocker.write_text("")
    options = [p for k, v in small_run.items() for p in ("--set", f"{k}={v}")]
    done = _run("simulate", *options, "--out", blocker / "run")
    assert done.returncode == 2
    assert "can't write" in done.stderr


def test_doctor_names_each_part():
    done = _run("doctor", "--json")
    assert done.returncode == 0
    parts = {check["part"]: check["present"] for check in json.loads(done.stdout)}
    assert parts["torch"]
    assert parts["homomorphic encryption (TenSEAL)"]


def test_data_info_names_licences():
    done = _run("data", "info")
    assert done.returncode == 0
    for needed in ("Apache-2.0", "CC-BY-SA-4.0", "MIT", "Google Inc", "Unicode"):
        assert needed in done.stdout


def test_a_protocol_that_refuses_is_exit_code_3(monkeypatch, capsys):
    import fedvlm.cli as cli
    from secure.errors import IntegrityError, ParameterError

    for error, code in ((IntegrityError("not signed"), 3), (ParameterError("too few"), 2)):

        def fail(error=error, **_):
            raise error

        monkeypatch.setattr(cli, "app", fail)
        with pytest.raises(SystemExit) as stop:
            cli.main()
        assert stop.value.code == code
        assert capsys.readouterr().err.strip() == f"error: {error}"


def test_a_budget_is_planned():
    done = _run("privacy", "plan", "--steps", 20, "--delta", 1e-2, "--epsilon", 3, "--json")
    assert done.returncode == 0
    assert json.loads(done.stdout)["noise_multiplier"] == pytest.approx(3.69, abs=0.02)


@pytest.mark.parametrize("command", ["audit", "privacy", "infer"])
def test_every_command_has_help(command):
    assert _run(command, "--help").returncode == 0
