"""Trackers: the real TensorBoard and MLflow where they are installed, the protocol in any case."""

import logging
import math
import subprocess
import sys
import types

import pytest

from fedvlm.errors import ConfigError
from fedvlm.tracking import numbers_of, open_tracker, tracked

ENTRY = {
    **{"round": 2, "test_one_of_100": 0.25, "clients": 3, "trips": [{"trip": "mask"}]},
    **{"abandoned": None, "train_loss": math.nan, "bad": True},
}


def test_what_is_tracked_is_what_is_a_number():
    assert numbers_of(ENTRY) == {"test_one_of_100": 0.25, "clients": 3.0}


def test_nothing_is_imported_that_was_not_asked_for():
    code = (
        "import sys, fedvlm.tracking, fedvlm.cli\n"
        "with fedvlm.tracking.tracked([], {}) as take: take({'round': 1})\n"
        "print([m for m in ('tensorboard', 'mlflow', 'wandb', 'torch') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert done.stdout.strip() == "[]", done.stdout + done.stderr


def test_an_unknown_tracker_and_one_that_is_not_installed(monkeypatch):
    with pytest.raises(ConfigError, match="takes tensorboard, mlflow, wandb"):
        open_tracker("tensorbord:x", {})
    monkeypatch.setitem(sys.modules, "wandb", None)
    with pytest.raises(ConfigError, match="pip install wandb"):
        open_tracker("wandb", {})


@pytest.mark.slow
def test_tensorboard_has_the_rounds(tmp_path):
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    with tracked([f"tensorboard:{tmp_path}"], {"rounds": 3}) as take:
        for number in range(3):
            take(ENTRY | {"round": number, "test_one_of_100": number / 4})
    board = EventAccumulator(str(tmp_path)).Reload()
    assert [(e.step, e.value) for e in board.Scalars("test_one_of_100")] == [
        (0, 0.0),
        (1, 0.25),
        (2, 0.5),
    ]
    assert "trips" not in board.Tags()["scalars"]


@pytest.mark.slow
def test_mlflow_has_the_rounds(tmp_path, monkeypatch):
    mlflow = pytest.importorskip("mlflow")
    monkeypatch.setenv("MLFLOW_ALLOW_FILE_STORE", "true")
    place = (tmp_path / "runs").as_uri()
    with tracked([f"mlflow:{place}"], {"rounds": 3}) as take:
        take(ENTRY)
    client = mlflow.MlflowClient(place)
    (experiment,) = client.search_experiments(filter_string="name = 'fedvlm'")
    (run,) = client.search_runs([experiment.experiment_id])
    assert run.data.metrics == {"test_one_of_100": 0.25, "clients": 3.0}
    assert run.data.params == {"rounds": "3"}
    assert run.info.status == "FINISHED"


@pytest.fixture
def fake_wandb(monkeypatch):
    """A FAKE of wandb, which needs an account: it only writes down how it is called."""
    calls = []
    run = types.SimpleNamespace(
        log=lambda metrics, step: calls.append(("log", metrics, step)),
        finish=lambda: calls.append(("finish",)),
    )

    def init(project, config):
        calls.append(("init", project, config))
        return run

    monkeypatch.setitem(sys.modules, "wandb", types.SimpleNamespace(init=init))
    return calls


def test_wandb_by_its_protocol(fake_wandb):
    with tracked(["wandb:hospital"], {"rounds": 3}) as take:
        take(ENTRY)
    assert fake_wandb == [
        ("init", "hospital", {"rounds": 3}),
        ("log", {"test_one_of_100": 0.25, "clients": 3.0}, 2),
        ("finish",),
    ]


def test_a_tracker_that_fails_ends_no_run(fake_wandb, monkeypatch, caplog):
    def fails(metrics, step):
        raise RuntimeError("the network is gone")

    with (
        caplog.at_level(logging.WARNING, logger="fedvlm"),
        tracked(["wandb:x"], {}) as take,
    ):
        sys.modules["wandb"].init("x", {}).log = fails
        take(ENTRY)
        take(ENTRY)
    assert caplog.text.count("goes on without it") == 1
