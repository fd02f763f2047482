"""`kill -9` in every phase of a round, at random moments: the same adapter, ε never lower."""

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from fedvlm.federation.result import Result

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]

ROOT = Path(__file__).parents[3]


def killed(folder: Path, settings: dict, kills: int, seed: int = 0) -> dict:
    for name in ("whole", "cut"):
        (folder / name).mkdir(parents=True)
    (folder / "settings.json").write_text(json.dumps(settings))
    done = subprocess.run(
        [
            *(sys.executable, "-m", "tests.fedvlm.federation.killing"),
            *(str(folder / "settings.json"), str(folder), str(seed), str(kills)),
        ],
        cwd=ROOT,
        env=os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=800,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    told = json.loads(done.stdout.splitlines()[-1])
    assert len(told["kills"]) == kills
    assert {code for _, _, code in told["kills"]} == {-9}
    return told


def vectors(folder: Path) -> tuple[np.ndarray, np.ndarray]:
    return tuple(
        np.load(folder / name / "run" / "checkpoint.npz", allow_pickle=False)["vector"]
        for name in ("whole", "cut")
    )  # pyright: ignore


def same_history(folder: Path) -> None:
    whole, cut = (Result.load(folder / name / "run") for name in ("whole", "cut"))
    assert [entry["round"] for entry in cut.rounds] == [entry["round"] for entry in whole.rounds]
    for key in ("summary", "adapter", "data", "config"):
        assert getattr(cut, key) == getattr(whole, key)


def never_less(counts: list[dict[str, list]]) -> None:
    """Check that no node's answers and no node's ε go down from one moment to the next."""
    before: dict[str, list] = {}
    for spent in counts:
        for node, (answers, epsilon) in before.items():
            assert spent[node][0] >= answers
            assert spent[node][1] >= epsilon
        before = spent


def test_killed_20_times_under_example_level_dp(small_run, tmp_path):
    """The experiment's noise follows from the seed, so that the adapter can be compared."""
    settings = small_run | {
        **{"dp": "example", "epsilon": 8.0, "delta": 1e-3, "simulated_noise": True},
        **{"rounds": 12, "server_optimizer": "fedadam", "server_learning_rate": 0.01},
    }
    told = killed(tmp_path, settings, 20)
    assert told["code"] == 0, told["log"]
    assert {phase for phase, _, _ in told["kills"]} == set(told["phases"])
    whole, cut = vectors(tmp_path)
    assert np.abs(whole - cut).max() <= 1e-6
    same_history(tmp_path)
    never_less([*told["spent"], told["end"]])
    for node, (answers, epsilon) in told["whole"].items():
        assert told["end"][node][0] >= answers
        assert told["end"][node][1] >= epsilon - 1e-9


def test_killed_under_real_noise_each_answer_is_paid_for(small_run, tmp_path):
    """A round that is run again is another release: it is paid again, and never beyond ε."""
    settings = small_run | {"dp": "example", "epsilon": 8.0, "delta": 1e-3, "rounds": 6}
    told = killed(tmp_path, settings, 8)
    assert told["code"] in (0, 3), told["log"]
    never_less([*told["spent"], told["end"]])
    assert all(epsilon <= 8.0 for _, epsilon in told["end"].values())
    # What the server states covers what each node has counted on its own disk: it pays for a round
    # before it asks, and the nodes before they answer.
    with np.load(tmp_path / "cut" / "run" / "checkpoint.npz", allow_pickle=False) as kept:
        stated = [entry["epsilon"] for entry in json.loads(str(kept["text"]))["rounds"][1:]]
    assert stated == sorted(stated)
    assert max(epsilon for _, epsilon in told["end"].values()) <= stated[-1] + 1e-9 <= 8.0 + 1e-9


def test_killed_in_every_phase_under_secure_aggregation_with_personal_parts(small_run, tmp_path):
    settings = small_run | {"protect": "secagg-active", "share": "A", "rounds": 8}
    told = killed(tmp_path, settings, 20)
    assert told["code"] == 0, told["log"]
    assert {phase for phase, _, _ in told["kills"]} == set(told["phases"])
    assert any("mask" in phase for phase in told["phases"])
    whole, cut = vectors(tmp_path)
    # Sums are rounded at random, in either run, and training goes on from what was rounded.
    assert np.linalg.norm(whole - cut) < 1e-2 * np.linalg.norm(whole)
    parts = [
        sorted((tmp_path / name / "run" / "nodes").glob("*/personal/*.json"))
        for name in ("whole", "cut")
    ]
    assert len(parts[0]) == len(parts[1]) == 3
    for one, other in zip(*parts, strict=True):
        rounds = [
            [each["round"] for each in json.loads(p.read_text())["parts"]] for p in (one, other)
        ]
        assert rounds[0] == rounds[1] == [7, 8]


def test_killed_under_client_level_dp_the_server_pays_before_it_tells(small_run, tmp_path):
    settings = small_run | {
        **{"dp": "client", "epsilon": 8.0, "delta": 1e-3, "simulated_noise": True},
        **{"rounds": 8, "clients": 4, "fraction": 0.5},
    }
    told = killed(tmp_path, settings, 10)
    assert told["code"] == 0, told["log"]
    whole, cut = vectors(tmp_path)
    assert np.abs(whole - cut).max() <= 1e-6
    results = [Result.load(tmp_path / name / "run") for name in ("whole", "cut")]
    spent = [[e.get("epsilon") for e in result.rounds[1:]] for result in results]
    assert all(b >= a - 1e-9 for a, b in zip(*spent, strict=True))
    assert all(b >= a for a, b in zip(spent[1], spent[1][1:], strict=False))
