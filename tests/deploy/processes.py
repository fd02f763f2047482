"""Processes of a federation on this machine: each in a group of its own, ended by its id."""

import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Sequence
from contextlib import ExitStack
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


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


def environment(**more: str) -> dict[str, str]:
    """Return what a party's processes see: this checkout, and nothing of Flower's from outside."""
    kept = {k: v for k, v in os.environ.items() if not k.startswith(("FLWR_", "FEDVLM_"))}
    own = {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "FEDVLM_PYTHON": sys.executable}
    return kept | own | more


class Parties:
    """Starts the parties' own scripts."""

    def __init__(self, stack: ExitStack, logs: Path) -> None:
        self._stack = stack
        self._logs = logs

    def start(
        self, folder: Path, script: str, name: str, hidden: Sequence[Path] = (), **more: str
    ) -> subprocess.Popen:
        """Start a party's script; folders of others don't exist for it, where that can be had."""
        log = self._stack.enter_context((self._logs / f"{name}.log").open("w"))
        process = subprocess.Popen(
            [*_without(hidden), "sh", str(folder / script)],
            cwd="/",
            env=environment(**more),
            stdout=log,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
        self._stack.callback(end_group, process)
        return process

    def log(self, name: str) -> str:
        return (self._logs / f"{name}.log").read_text()

    def logs(self) -> str:
        parts = sorted(self._logs.glob("*.log"))
        return "\n".join(f"== {path.stem}\n{path.read_text()[-2500:]}" for path in parts)


@cache
def can_hide() -> bool:
    """Tell whether this machine lets us give a process a view of the disk of its own."""
    if os.name == "nt" or os.geteuid() or shutil.which("unshare") is None:
        return False
    probe = ["unshare", "-m", "sh", "-c", "mount -t tmpfs none /mnt"]
    return subprocess.run(probe, capture_output=True, check=False).returncode == 0


def _without(hidden: Sequence[Path]) -> list[str]:
    """Return what starts a program in a mount namespace where some folders are empty."""
    if not hidden or not can_hide():
        return []
    mounts = "; ".join(f'mount -t tmpfs -o ro none "{folder}"' for folder in hidden)
    return ["unshare", "-m", "sh", "-c", f'set -e; {mounts}; exec "$@"', "sh"]


def end_group(process: subprocess.Popen) -> None:
    try:
        os.killpg(process.pid, signal.SIGKILL)
    except ProcessLookupError:
        return
    process.wait(timeout=10)


def fedvlm(*arguments: str, within: float = 120, **more: str) -> subprocess.CompletedProcess:
    """Call the command line as a person does."""
    return subprocess.run(
        [sys.executable, "-m", "fedvlm.cli", *arguments],
        env=environment(**more),
        capture_output=True,
        text=True,
        timeout=within,
        check=False,
    )
