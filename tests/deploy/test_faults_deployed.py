"""What fails between owners: a node's machine, a slow one, the ServerApp, the SuperLink."""

import json
import os
import re
import shutil
import signal
from contextlib import ExitStack
from urllib.request import urlopen

import numpy as np
import pytest

from fedvlm.config import config_from
from fedvlm.federation.result import Result
from tests.deploy.processes import fedvlm, wait_for
from tests.deploy.running import Running, events, wait_event
from tests.deploy.sites import simulated
from tests.fedvlm.conftest import save_tiny_model
from tests.fedvlm.federation.failing import fill_sites

pytestmark = [pytest.mark.slow, pytest.mark.timeout(2400), pytest.mark.xdist_group("superlink")]

SETTINGS = (
    *("--set", "rank=2", "--set", "local_epochs=1", "--set", "batch_size=8"),
    *("--set", "round_timeout=300", "--set", "trip_timeout=150", "--set", "join_timeout=300"),
)


@pytest.fixture(scope="module")
def running(tmp_path_factory, shapes_folder):
    tmp = tmp_path_factory.mktemp("faults")
    save_tiny_model("clip", tmp / "clip")
    with ExitStack() as stack:
        yield Running(
            stack, tmp, lambda folders: fill_sites(folders, shapes_folder), str(tmp / "clip")
        )


QUICK = (*SETTINGS[:-1], "join_timeout=20")


def finish(process, running, out, code=0, within=1500):
    assert process.wait(timeout=within) == code, running.told(out)
    return Result.load(out) if code == 0 else None


def answers(running):
    """What each node has counted on its own disk."""
    paths = [node / "state" / "told.json" for node in running.nodes]
    return [json.loads(p.read_text())["answers"] if p.exists() else 0 for p in paths]


def vector(out):
    return np.load(out / "checkpoint.npz", allow_pickle=False)["vector"]


def test_a_supernode_killed_in_a_round_is_left_out_and_is_back_in_a_later_one(running, tmp_path):
    out = tmp_path / "run"
    process = running.begin(out, "--set", "rounds=3", *SETTINGS)
    wait_event(out, 500, lambda: running.told(out), event="asked", trip="train")
    running.kill("node-3")
    # Not before the trip is over: who is back sooner may still take the message and answer it.
    wait_event(out, 500, lambda: running.told(out), event="trip", trip="train")
    running.start_node(2)
    result = finish(process, running, out)
    summed = [entry["clients"] for entry in result.rounds[1:]]
    assert summed[0] == 3
    assert summed[-1] == 4
    log = out.with_suffix(".log").read_text()
    assert "round 1/3: 3 nodes summed" in log
    assert "missing: node-3" in log


def test_a_supernode_that_is_slow_misses_its_trip_alone(running, tmp_path):
    out = tmp_path / "run"
    process = running.begin(out, "--set", "rounds=2", *SETTINGS)
    wait_event(out, 500, lambda: running.told(out), event="trip", trip="train")
    running.hold("node-2")
    try:
        wait_event(out, 500, lambda: running.told(out), event="round")
        wait_for(
            lambda: sum(e["event"] == "round" for e in events(out)) > 1, 500, running.told(out)
        )
    finally:
        running.go_on("node-2")
    result = finish(process, running, out)
    assert result.rounds[1]["clients"] in (3, 4)
    # Whether a trip's time was over first, or the SuperLink had given the node up by then.
    trips = [e for e in events(out) if e["event"] == "trip"]
    assert any("node-2" in e["silent"] or "node-2" in e["refused"] for e in trips)
    assert "missing: node-2" in out.with_suffix(".log").read_text()
    assert result.rounds[2]["abandoned"] is None


def test_a_serverapp_that_is_killed_is_resumed_to_the_same_adapter(running, tmp_path):
    cut, copies = tmp_path / "cut", tmp_path / "copies"
    files = [
        shutil.copytree(
            *(node, copies / node.name), ignore=shutil.ignore_patterns("flwr", "cache", "state")
        )
        / "node.toml"
        for node in running.nodes
    ]
    before = answers(running)
    process = running.begin(cut, "--set", "rounds=2", "--set", "node_scores=none", *SETTINGS)
    wait_event(cut, 500, lambda: running.told(cut), event="trip", trip="share")
    number = running.server_app()
    assert number is not None
    os.kill(number, signal.SIGKILL)
    assert process.wait(timeout=600) == 3, running.told(cut)
    assert "deploy run --resume goes on with it" in cut.with_suffix(".log").read_text()
    middle = answers(running)
    result = finish(running.begin(cut, "--resume"), running, cut)
    assert [entry["round"] for entry in result.rounds] == [0, 1, 2]
    assert all(entry["clients"] == 4 for entry in result.rounds[1:])
    after = answers(running)
    assert all(b > a for a, b in zip(before, middle, strict=True))
    # The round that was lost is asked again, and counts twice.
    assert [b - a for a, b in zip(before, after, strict=True)] == [3, 3, 3, 3]
    # The same without an interruption, in this process, from copies of what the sites hold.
    config = config_from(result.config)
    simulated(config, files, tmp_path / "whole")
    one, other = vector(tmp_path / "whole"), vector(cut)
    # Sums are rounded at random in either run, and training goes on from what was rounded.
    assert np.linalg.norm(one - other) < 1e-2 * np.linalg.norm(one)


def test_a_superlink_that_is_restarted_knows_its_nodes_and_the_run_is_resumed(running, tmp_path):
    out = tmp_path / "run"
    process = running.begin(out, "--set", "rounds=2", "--set", "node_scores=none", *SETTINGS)
    wait_event(out, 500, lambda: running.told(out), event="trip", trip="share")
    running.kill("server")
    before = answers(running)
    assert process.wait(timeout=600) == 3, running.told(out)
    assert "--resume" in out.with_suffix(".log").read_text()
    running.start_server()  # nodes come back by themselves, and nobody registers them again
    result = finish(running.begin(out, "--resume"), running, out)
    assert [entry["round"] for entry in result.rounds] == [0, 1, 2]
    assert all(entry["clients"] == 4 for entry in result.rounds[1:])
    assert all(b > a for a, b in zip(before, answers(running), strict=True))


def test_a_node_that_left_gets_in_no_more(running, tmp_path):
    """Comes last: the others need a roster without it then."""
    running.kill("node-4")
    told = fedvlm("deploy", "unregister", str(running.root / "server"), "--node", "4")
    assert told.returncode == 0, told.stderr
    again = fedvlm("deploy", "register", str(running.root / "server"))
    assert "node-4" not in again.stdout
    running.start_node(3)
    assert running.processes["node-4"].wait(timeout=180) != 0
    out = tmp_path / "run"
    process = running.begin(out, "--watch", "--set", "rounds=1", *QUICK)
    wait_event(out, 500, lambda: running.told(out), event="asked", trip="train")
    (address,) = re.findall(
        r"live at (http://127\.0\.0\.1:\d+/\w+/)", out.with_suffix(".log").read_text()
    )

    def follows() -> bool:
        with urlopen(address, timeout=60) as answer:
            return "nodes are asked." in answer.read().decode()

    wait_for(follows, 300, running.told(out))
    result = finish(process, running, out)
    assert result.rounds[1]["clients"] == 3
