"""The same federation started as a user starts it: in one process, and on Flower's own simulation.

Each start is processes of its own, measured from outside: when they began, what the app's own
`progress.jsonl` says, and the memory of all of them together.
"""

import itertools
import json
import os
import signal
import socket
import statistics
import subprocess
import sys
import tempfile
import threading
import time
import uuid
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[2]
BIN = Path(sys.executable).parent
_MARK = "FEDVLM_MEASURED"
_SAMPLE_S = 0.25
_WAIT_S = 1800.0


@dataclass(frozen=True)
class Measured:
    """What a run took.

    Attributes:
        startup_s: From the command to the first message to train.
        round_s: Median over the rounds after the first.
        peak_bytes: Most memory of all processes together; a page that several share counts once.
        upload_bytes: Bytes that a client sent in a round.
        download_bytes: Bytes that it received.
        parameters: Parameters of the adapter.
        rounds: Rounds that it took.
    """

    startup_s: float
    round_s: float
    peak_bytes: int
    upload_bytes: int
    download_bytes: int
    parameters: int
    rounds: int


class Memory:
    """Samples the memory of all processes that carry a mark in their environment."""

    def __init__(self, mark: str) -> None:
        self._mark = f"{_MARK}={mark}".encode()
        self._known: dict[str, bool] = {}
        self._end = threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)
        self.peak = 0

    def __enter__(self) -> "Memory":
        self._thread.start()
        return self

    def __exit__(self, *error: object) -> None:
        self._end.set()
        self._thread.join()

    def _watch(self) -> None:
        while not self._end.wait(_SAMPLE_S):
            self.peak = max(self.peak, sum(self._bytes(each) for each in self.ids()))

    def ids(self) -> list[str]:
        """Return the marked processes that run now, as their folders' names in /proc."""
        there = [each for each in os.listdir("/proc") if each.isdigit()]
        for gone in self._known.keys() - set(there):
            del self._known[gone]
        for each in there:
            # A child carries its parent's environment until it has its own program: look again.
            if not self._known.get(each):
                self._known[each] = self._mark in _read(f"/proc/{each}/environ")
        return [each for each in there if self._known[each]]

    @staticmethod
    def _bytes(number: str) -> int:
        for line in _read(f"/proc/{number}/smaps_rollup").splitlines():
            if line.startswith(b"Pss:"):
                return 1024 * int(line.split()[1])
        return 0


def _read(path: str) -> bytes:
    try:
        return Path(path).read_bytes()
    except OSError:
        return b""


@contextmanager
def marked() -> Iterator[tuple[dict[str, str], Memory]]:
    """Yield an environment for processes to be measured, and their memory; none is left behind."""
    mark = uuid.uuid4().hex
    quiet = {
        "FLWR_TELEMETRY_ENABLED": "0",
        "FLWR_DISABLE_UPDATE_CHECK": "1",
        "FLWR_DISABLE_RUNTIME_DEPENDENCY_INSTALLATION": "1",
        "OMP_NUM_THREADS": "1",
        "PYTHONPATH": str(ROOT),
        "PATH": f"{BIN}{os.pathsep}{os.environ.get('PATH', '')}",
    }
    memory = Memory(mark)
    try:
        yield os.environ | quiet | {_MARK: mark}, memory
    finally:
        for number in memory.ids():
            with _ignored():
                os.kill(int(number), signal.SIGKILL)


@contextmanager
def _ignored() -> Iterator[None]:
    try:
        yield
    except (OSError, ProcessLookupError):
        return


def free_port() -> int:
    """Return a port that nobody listens on."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def wait_for_port(port: int, seconds: float = 180.0) -> None:
    """Wait until somebody listens on a port.

    Raises:
        TimeoutError: Nobody does in time.
    """
    end = time.monotonic() + seconds
    while True:
        with socket.socket() as probe:
            if probe.connect_ex(("127.0.0.1", port)) == 0:
                return
        if time.monotonic() > end:
            raise TimeoutError(f"nobody listens on port {port} within {seconds:.0f} s")
        time.sleep(0.1)


def in_process(settings: dict[str, Any]) -> Measured:
    """Run `fedvlm simulate` with some settings."""
    with tempfile.TemporaryDirectory() as name, marked() as (environment, memory), memory:
        out = Path(name) / "run"
        pairs = [f"--set={key}={value}" for key, value in settings.items()]
        start = time.time()
        done = subprocess.run(  # noqa: S603  our own arguments
            [sys.executable, "-m", "fedvlm.cli", "simulate", "--out", str(out), *pairs],
            env=environment,
            capture_output=True,
            text=True,
            timeout=_WAIT_S,
            check=False,
        )
        if done.returncode:
            raise RuntimeError(f"fedvlm simulate ended with {done.returncode}: {done.stderr}")
        return _measured(out, start, memory)


def with_home(environment: dict[str, str], folder: Path, port: int) -> dict[str, str]:
    """Give Flower's commands a home in a folder, which names the SuperLink at a port."""
    home = folder / "home"
    home.mkdir()
    (home / "config.toml").write_text(
        f'[superlink]\ndefault = "own"\n\n[superlink.own]\n'
        f'address = "127.0.0.1:{port}"\ninsecure = true\n'
    )
    return environment | {"FLWR_HOME": str(home)}


def start_flower(
    command: str, words: Sequence[str], environment: dict[str, str], folder: Path, log: str
) -> None:
    """Start one of Flower's programs without TLS; `marked` ends it."""
    with (folder / log).open("w") as told:
        subprocess.Popen(  # noqa: S603  our own arguments
            [str(BIN / command), "--insecure", *words],
            cwd=folder,
            env=environment,
            stdout=told,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )


def flwr_run(
    app: Path, run_config: str, environment: dict[str, str], folder: Path, *more: str
) -> None:
    """Start a run of an app on the SuperLink of `with_home`."""
    subprocess.run(  # noqa: S603  our own arguments
        [str(BIN / "flwr"), "run", str(app), "own", "--run-config", run_config, *more],
        env=environment,
        cwd=folder,
        check=True,
        capture_output=True,
        timeout=300,
    )


def on_flower(settings: dict[str, Any], nodes: int) -> Measured:
    """Run the same app by `flwr run` on Flower's simulation engine (Ray).

    Counted from `flwr run`: the SuperLink that it talks to was there before.
    """
    with tempfile.TemporaryDirectory() as name, marked() as (environment, memory), memory:
        folder, port = Path(name), free_port()
        environment = with_home(environment, folder, port)
        words = ("--port", str(port), "--simulation")
        start_flower("flower-superlink", words, environment, folder, "superlink.log")
        wait_for_port(port)
        out = folder / "run"
        told = {key.replace("_", "-"): value for key, value in settings.items()}
        text = " ".join(f"{key}={json.dumps(value)}" for key, value in told.items())
        start = time.time()
        engine = f"num-supernodes={nodes} client-resources-num-cpus=1"
        run_config = f"out={json.dumps(str(out))} {text}"
        flwr_run(ROOT, run_config, environment, folder, "--federation-config", engine)
        end = time.monotonic() + _WAIT_S
        while not (out / "result.json").exists():
            if time.monotonic() > end or _failed(out):
                raise RuntimeError(f"flwr run: {(folder / 'superlink.log').read_text()[-3000:]}")
            time.sleep(0.25)
        return _measured(out, start, memory)


def _failed(out: Path) -> bool:
    return any(event["event"] == "failed" for event in _events(out))


def _events(out: Path) -> list[dict[str, Any]]:
    path = out / "progress.jsonl"
    text = path.read_text() if path.exists() else ""
    return [json.loads(line) for line in text[: text.rfind("\n") + 1].splitlines()]


def _measured(out: Path, start: float, memory: Memory) -> Measured:
    events = _events(out)
    first = next(e["time"] for e in events if e["event"] == "asked" and e["trip"] == "train")
    ends = [e["time"] for e in events if e["event"] == "round" and e["entry"]["round"] >= 1]
    result = json.loads((out / "result.json").read_text())
    last = result["rounds"][-1]
    return Measured(
        startup_s=first - start,
        round_s=statistics.median(b - a for a, b in itertools.pairwise(ends)),
        peak_bytes=memory.peak,
        upload_bytes=last["upload_bytes_per_client"],
        download_bytes=last["download_bytes_per_client"],
        parameters=result["adapter"]["parameters"],
        rounds=len(ends),
    )
