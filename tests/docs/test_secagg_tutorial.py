"""Secure aggregation put into a quickstart app by the tutorial's own lines gives FedAvg's model."""

import importlib
import re
import shutil
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from flwr.app import Context, RecordDict

from fedvlm.federation.grid import InProcessGrid
from secure.aggregation.flower import SecAggStrategy
from tests.docs.pages import PYTHON, ROOT, SHELL, blocks

PAGE = ROOT / "docs" / "tutorial-secagg.md"
REFERENCE = ROOT / "docs" / "secure-aggregation.md"
APP = Path(__file__).parent / "quickstart" / "pytorchexample"
NODES = 10
ERROR = 1e-4  # what the page's plan asks for
START = SecAggStrategy.start
CONFIG = {"fraction-evaluate": 0.5, "learning-rate": 0.05, "local-epochs": 1, "batch-size": 16}


def patch(folder: Path, diff: str) -> None:
    """Change files as a diff of the page says: a run of `-` lines becomes the `+` lines below."""
    target = None
    for part in re.findall(r"^\+\+\+ b/(\S+)\n|((?:^-.*\n)+)((?:^\+.*\n)+)", diff, re.MULTILINE):
        if part[0]:
            target = folder / part[0]
            continue
        old, new = (re.sub(r"^.", "", each, flags=re.MULTILINE) for each in part[1:])
        assert target is not None
        text = target.read_text()
        assert text.count(old) == 1, f"{target.name} has no line {old!r}"
        target.write_text(text.replace(old, new))


def follow(folder: Path) -> None:
    """Do what the page says: make keys, add the file, change the two others."""
    for block in blocks(PAGE):
        if block.language == SHELL and block.runs:
            subprocess.run(["bash", "-ec", block.text], check=True, capture_output=True)
        elif block.language == PYTHON:
            (folder / "pytorchexample" / "policy.py").write_text(block.text)
        elif block.language == "diff":
            patch(folder, re.sub(r"^--- .*\n", "", block.text, flags=re.MULTILINE))


def federate(folder: Path, rounds: int, monkeypatch) -> tuple[dict[str, np.ndarray], list]:
    """Run the app of a folder in this process; its model, and what secure aggregation recorded."""
    histories = []

    def start(self, *arguments, **named):
        histories.append(self)
        return START(self, *arguments, **named)

    monkeypatch.setattr(SecAggStrategy, "start", start)
    monkeypatch.chdir(folder)
    monkeypatch.syspath_prepend(folder)
    for name in [each for each in sys.modules if each.split(".")[0] == "pytorchexample"]:
        monkeypatch.delitem(sys.modules, name)
    client = importlib.import_module("pytorchexample.client_app").app
    server = importlib.import_module("pytorchexample.server_app").app
    config = CONFIG | {"num-server-rounds": rounds}
    grid = InProcessGrid(client, NODES, config)
    torch.manual_seed(0)  # the model's first weights
    context = Context(1, 0, {}, RecordDict(), config)
    server(grid=grid, context=context)
    assert not grid.errors
    model = torch.load(folder / "final_model.pt", weights_only=True)
    for name in [each for each in sys.modules if each.split(".")[0] == "pytorchexample"]:
        monkeypatch.delitem(sys.modules, name)
    return {name: each.numpy() for name, each in model.items()}, histories


@pytest.fixture
def apps(tmp_path, monkeypatch):
    """The app as it was, and the app after the page."""
    from tests.docs.givens import programs

    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.setenv("PATH", programs(), prepend=":")
    monkeypatch.setenv("PYTHONPATH", str(ROOT), prepend=":")
    (tmp_path / "home").mkdir()
    folders = SimpleNamespace(before=tmp_path / "before", after=tmp_path / "after")
    for folder in (folders.before, folders.after):
        shutil.copytree(APP, folder / "pytorchexample")
    follow(folders.after)
    return folders


def furthest(one: dict[str, np.ndarray], other: dict[str, np.ndarray]) -> float:
    assert one.keys() == other.keys()
    return max(float(np.abs(one[name] - other[name]).max()) for name in one)


def test_one_round_is_fedavgs_within_the_error_that_was_asked_for(apps, monkeypatch):
    plain, none = federate(apps.before, 1, monkeypatch)
    secure, (strategy,) = federate(apps.after, 1, monkeypatch)
    assert not none
    assert furthest(plain, secure) <= ERROR
    record = strategy.history[0]
    assert (record.kind, record.summed, record.clipped, record.unusable) == ("train", NODES, 0, 0)
    assert record.weighting == "examples"
    # What the reference page reads off a strategy is there.
    (lines,) = [b for b in blocks(REFERENCE) if b.text.startswith("record = strategy.history")]
    exec(lines.text, {"strategy": strategy})


@pytest.mark.slow
def test_later_rounds_and_evaluation_go_on(apps, monkeypatch):
    plain, _ = federate(apps.before, 2, monkeypatch)
    secure, (strategy,) = federate(apps.after, 2, monkeypatch)
    assert [each.kind for each in strategy.history] == ["train", "evaluate"] * 2
    assert [each.summed for each in strategy.history] == [NODES, NODES // 2] * 2
    moved = max(float(np.abs(each).max()) for each in plain.values())
    # Each round trains on from a mean that is off by up to the error.
    assert furthest(plain, secure) < 0.05 * moved


@pytest.mark.slow
def test_the_nodes_weigh_by_their_examples(apps, monkeypatch):
    """What the first test compares tells weights apart: with another weighting it would fail."""
    path = apps.after / "pytorchexample" / "policy.py"
    text = path.read_text().replace("error=1e-4)", "error=1e-4, max_weight=1)")
    assert text != path.read_text()
    path.write_text(text)
    plain, _ = federate(apps.before, 1, monkeypatch)
    secure, _ = federate(apps.after, 1, monkeypatch)
    assert furthest(plain, secure) > 10 * ERROR
