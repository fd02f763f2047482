"""The same app on Flower's own engines: SuperLink with SuperNodes, and the Ray simulation."""

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from contextlib import ExitStack
from pathlib import Path

import numpy as np
import pytest

from secure.aggregation import provision

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600), pytest.mark.xdist_group("superlink")]

HERE = Path(__file__).parent
ROOT = HERE.parents[2]
BIN = Path(sys.executable).parent


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def wait_for(condition, seconds: float, what: str) -> None:
    end = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > end:
            pytest.fail(f"{what} did not happen within {seconds} s")
        time.sleep(0.2)


def listening(port: int) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0


class Federation:
    """Processes of one test, each in a group of its own, all of them ended with it."""

    def __init__(self, folder: Path, stack: ExitStack):
        self.folder = folder
        self.stack = stack
        self.port = free_port()
        self.app = folder / "app"
        shutil.copytree(HERE / "flower_app", self.app)
        home = folder / "home"
        home.mkdir()
        (home / "config.toml").write_text(
            f'[superlink]\ndefault = "own"\n\n[superlink.own]\n'
            f'address = "127.0.0.1:{self.port}"\ninsecure = true\n'
        )
        self.env = os.environ | {
            "FLWR_HOME": str(home),
            "FLWR_TELEMETRY_ENABLED": "0",
            "FLWR_DISABLE_UPDATE_CHECK": "1",
            "FLWR_DISABLE_RUNTIME_DEPENDENCY_INSTALLATION": "1",
            "OMP_NUM_THREADS": "1",
            "PATH": f"{BIN}{os.pathsep}{os.environ['PATH']}",
            "PYTHONPATH": str(ROOT),
        }

    def start(self, name: str, *arguments: str) -> subprocess.Popen:
        log = self.stack.enter_context((self.folder / f"{name}.log").open("w"))
        process = subprocess.Popen(
            [str(BIN / arguments[0]), *arguments[1:]],
            cwd=self.folder,
            env=self.env,
            stdout=log,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
        self.stack.callback(kill_group, process)
        return process

    def superlink(self, *extra: str) -> None:
        self.start("superlink", "flower-superlink", "--insecure", "--port", str(self.port), *extra)
        wait_for(lambda: listening(self.port), 60, "the SuperLink's start")

    def supernode(self, number: int, config: str) -> subprocess.Popen:
        return self.start(
            f"node{number}",
            *("flower-supernode", "--insecure", "--superlink", f"127.0.0.1:{self.port}"),
            *("--port", str(free_port()), "--node-config", config),
        )

    def run(self, config: str, *extra: str) -> Path:
        out = self.folder / "result.json"
        subprocess.run(
            [
                *(str(BIN / "flwr"), "run", str(self.app), "own"),
                *("--run-config", f'out="{out}" {config}', *extra),
            ],
            env=self.env,
            cwd=self.folder,
            check=True,
            timeout=120,
            capture_output=True,
        )
        return out

    def logs(self) -> str:
        return "\n".join(path.read_text()[-3000:] for path in sorted(self.folder.glob("*.log")))


def kill_group(process: subprocess.Popen) -> None:
    try:
        os.killpg(process.pid, signal.SIGKILL)
    except ProcessLookupError:
        return
    process.wait(timeout=10)


@pytest.fixture
def federation(tmp_path):
    with ExitStack() as stack:
        yield Federation(tmp_path, stack)


def result_of(federation: Federation, out: Path, seconds: float) -> dict:
    end = time.monotonic() + seconds
    while not out.exists():
        if time.monotonic() > end:
            pytest.fail(f"no result within {seconds} s\n{federation.logs()}")
        time.sleep(0.5)
    time.sleep(0.5)
    return json.loads(out.read_text())


def expected_mean(server_round: int, partitions: tuple[int, ...]) -> np.ndarray:
    draws = [
        0.01 * np.random.default_rng([each, server_round]).uniform(-1, 1, 1000)
        for each in partitions
    ]
    return np.mean(draws, axis=0)


def test_a_supernode_that_dies_in_mid_round_leaves_the_sum_of_the_others(federation):
    keys = federation.folder / "keys"
    provision(keys, 3)
    federation.superlink()
    marker = federation.folder / "reached"
    nodes = []
    for number in range(3):
        config = (
            f'partition-id={number} num-partitions=3 secagg-identity="{keys}/{number}.key" '
            f'secagg-roster="{keys}/roster.json"'
        )
        if number == 2:
            config += f' dies-at="mask" marker="{marker}"'
        nodes.append(federation.supernode(number, config))
    out = federation.run("num-server-rounds=1 trip-timeout=45.0")
    wait_for(marker.exists, 180, "the mask trip")
    kill_group(nodes[2])
    told = result_of(federation, out, 240)
    record = told["history"][0]
    assert record["summed"] == 2, federation.logs()
    assert [trip["answered"] for trip in record["trips"]] == [3, 3, 2, 2, 2]
    # Half a step of the plan's error per coordinate would be luck; a whole step is the bound.
    assert np.abs(np.array(told["w"]) - expected_mean(1, (0, 1))).max() < 1e-4
    assert told["metrics"]["1"]["loss"] == pytest.approx((10 * 1.0 + 11 * 2.0) / 21, abs=1e-3)


def test_on_ray(federation):
    pytest.importorskip("ray")
    keys = federation.folder / "keys"
    provision(keys, 4)
    federation.env["SECAGG_IDENTITIES"] = str(keys)
    federation.superlink("--simulation")
    out = federation.run(
        "num-server-rounds=2 clients=4",
        "--federation-config",
        "num-supernodes=4 client-resources-num-cpus=1",
    )
    told = result_of(federation, out, 300)
    assert [record["summed"] for record in told["history"]] == [4, 4], federation.logs()
    expected = expected_mean(1, (0, 1, 2, 3)) + expected_mean(2, (0, 1, 2, 3))
    assert np.abs(np.array(told["w"]) - expected).max() < 1e-4
