"""A federation between owners on loopback: TLS, node authentication, data of each node's own."""

import json
import re
import shutil
from contextlib import ExitStack

import numpy as np
import pytest

from fedvlm.config import config_from, load_config
from fedvlm.deploy.certificates import new_node_key, openssh_private
from fedvlm.federation.checkpoint import Checkpoint
from fedvlm.federation.node import read_node
from fedvlm.federation.result import Result
from fedvlm.federation.terms import secure_policy
from tests.deploy.processes import Parties, fedvlm, free_port, listening, wait_for
from tests.deploy.sites import held_out, simulated, write_sites
from tests.fedvlm.conftest import save_tiny_model

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1500), pytest.mark.xdist_group("superlink")]

ROUNDS = 2


@pytest.fixture
def federation(tmp_path):
    """Folders of a rehearsal with data at three sites, the server and its nodes running."""
    with ExitStack() as stack:
        root, port, logs = tmp_path / "fed", free_port(), tmp_path / "logs"
        logs.mkdir()
        made = fedvlm("deploy", "init", str(root), "--clients", "3", "--port", str(port))
        assert made.returncode == 0, made.stderr
        nodes = [root / f"node-{k}" for k in (1, 2, 3)]
        write_sites([node / "data" for node in nodes])
        parties = Parties(stack, logs)
        # No party's processes can read another one's folder: where the test may, the kernel sees
        # to it. The server's can read none of the sites'.
        parties.start(root / "server", "start-server.sh", "server", hidden=nodes)
        wait_for(lambda: listening(port), 120, f"the SuperLink's start\n{parties.logs()}")
        told = fedvlm("deploy", "register", str(root / "server"))
        assert told.returncode == 0, told.stderr
        assert told.stdout.count("registered") == 3
        for node in nodes:
            others = [each for each in (*nodes, root / "server", root / "ca") if each != node]
            port = str(free_port())
            parties.start(node, "start-node.sh", node.name, hidden=others, NODE_PORT=port)
        yield root, nodes, parties


def run(root, out, *more, within=900):
    return fedvlm(
        *("deploy", "run", str(root / "server"), "--out", str(out), "--within", str(within)),
        *more,
        within=within + 60,
    )


def scored(node):
    return json.loads((node / "state" / "scores.json").read_text())[-1]


def events(out):
    return [json.loads(line) for line in (out / "progress.jsonl").read_text().splitlines()]


def test_who_does_not_belong_is_refused_by_name(federation, tmp_path):
    root, nodes, parties = federation

    # Two that must never get in: one that trusts another CA, and one whose key nobody registered.
    other = tmp_path / "other"
    assert fedvlm("deploy", "init", str(other), "--clients", "3").returncode == 0
    strange = {"certificate": tmp_path / "certificate", "key": tmp_path / "key"}
    for folder in strange.values():
        shutil.copytree(nodes[0], folder)
    shutil.copy(other / "node-1" / "tls" / "ca.crt", strange["certificate"] / "tls" / "ca.crt")
    (strange["key"] / "keys" / "supernode.key").write_bytes(openssh_private(new_node_key()))
    ends = {
        name: parties.start(folder, "start-node.sh", name, NODE_PORT=str(free_port()), MAX_WAIT="5")
        for name, folder in strange.items()
    }
    line = fedvlm("deploy", "check", str(strange["certificate"])).stdout
    assert "isn't this federation's" in line
    checked = fedvlm("deploy", "check", str(nodes[0]))
    assert checked.returncode == 0, checked.stdout
    assert "answers over TLS" in checked.stdout
    assert "held out for this site's own evaluation" in checked.stdout
    for name, process in ends.items():
        assert process.wait(timeout=120) != 0, parties.log(name)
    assert "CERTIFICATE_VERIFY_FAILED" in parties.log("certificate")
    assert "activate" in parties.log("key").lower() or "305" in parties.log("key")

    # A node whose floor asks for noise, and one with another base model, which its floor doesn't
    # name: each by its own reason, before a round is spent.
    plain = [(node / "node.toml").read_text() for node in nodes]
    (nodes[0] / "node.toml").write_text(plain[0] + "epsilon = 1.0\ndelta = 1e-5\n")
    save_tiny_model("clip", nodes[1] / "clip")
    other = plain[1].replace('model = "embedded"', 'model = "clip"')
    (nodes[1] / "node.toml").write_text(re.sub('(?m)^model = "[0-9a-f]{64}"', 'model = ""', other))
    refused = run(root, tmp_path / "refused", "--set", "rounds=1", within=400)
    assert refused.returncode == 3, refused.stdout + refused.stderr + parties.logs()
    assert "node-1 (noise)" in refused.stderr
    assert "node-2 (model)" in refused.stderr
    assert "query.agree    asked 3, answered 1; node-1 refused: noise" in refused.stdout
    assert not any(event.get("trip") == "train" for event in events(tmp_path / "refused"))
    assert not any((node / "state" / "told.json").exists() for node in nodes)


def test_three_sites_train_an_adapter_on_images_that_never_leave_them(federation, tmp_path):
    root, nodes, parties = federation

    # The in-process federation of the same three folders, with copies of their counts.
    config = config_from({"rounds": ROUNDS}, load_config(root / "server" / "run.toml"))
    # A copy's count of rounds serves one run of the grid, whose number is always the same.
    files, fresh = (
        [shutil.copytree(node, tmp_path / name / node.name) / "node.toml" for node in nodes]
        for name in ("copies", "fresh")
    )

    out = tmp_path / "run"
    done = run(root, out, "--set", f"rounds={ROUNDS}")
    assert done.returncode == 0, done.stdout + done.stderr + parties.logs()
    assert f"round {ROUNDS}/{ROUNDS}: 3 nodes summed" in done.stdout
    result = Result.load(out)
    assert result.summary["federated"] is None  # the server has nothing to score it on
    assert result.data["pairs"] == 0
    assert (out / "report.html").exists()
    assert (out / "adapter").is_dir()
    assert [event["event"] for event in events(out)][-1] == "done"

    # The server saw no data; each node computed on its own images alone, in its own folder.
    assert not list((root / "server").rglob("features"))
    for node in nodes:
        assert len(list((node / "cache" / "features").glob("*.npy"))) == 1

    # One accuracy of what the three hold out, and of each only what stands on its own disk.
    last, own = result.rounds[-1], [scored(node) for node in nodes]
    pairs = np.array([each["pairs"] for each in own])
    expected = pairs @ [each["one-of-100"] for each in own] / pairs.sum()
    assert last["nodes_pairs"] == pytest.approx(pairs.sum(), abs=1e-2)
    assert last["nodes_one_of_100"] == pytest.approx(expected, abs=1e-3)
    assert last["nodes_one_of_100_low"] < expected < last["nodes_one_of_100_high"]
    assert f"{100 * last['nodes_one_of_100']:.1f} % [" in done.stdout

    vector = np.load(out / "checkpoint.npz", allow_pickle=False)["vector"]
    for node in nodes:
        before = held_out(config, node / "data", None)
        after = held_out(config, node / "data", vector)
        assert after > before + 0.05, (node.name, before, after)

    same, grid = simulated(config, files, tmp_path / "simulated")
    assert not grid.errors
    assert same.adapter == result.adapter
    loaded = Checkpoint.load(tmp_path / "simulated", config, same.adapter["schema"])
    apart = np.abs(loaded.vector - vector)
    # As seen over two rounds; training goes on from a mean that was rounded at random.
    assert np.median(apart) < 2e-5
    assert np.quantile(apart, 0.99) < 2e-4
    assert np.linalg.norm(apart) < 5e-3 * np.linalg.norm(vector)

    # Over one round, where nothing has trained on a rounded mean yet, rounding bounds it.
    once = config_from({"rounds": 1}, config)
    done = run(root, tmp_path / "once", "--set", "rounds=1")
    assert done.returncode == 0, done.stdout + done.stderr + parties.logs()
    vector = np.load(tmp_path / "once" / "checkpoint.npz", allow_pickle=False)["vector"]
    simulated(once, fresh, tmp_path / "simulated-once")
    loaded = Checkpoint.load(tmp_path / "simulated-once", once, same.adapter["schema"])
    policy = secure_policy(once)
    weight = sum(len(read_node(file).task(once).own) for file in files) / policy.max_weight
    # Each of three clients rounds by less than a step, in either run; the mean is one in float32.
    bound = 2 * 3 * policy.plan.step / weight + 4 * np.finfo(np.float32).eps
    assert np.abs(loaded.vector - vector).max() <= bound
