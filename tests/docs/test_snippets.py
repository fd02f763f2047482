"""Every snippet of every page runs, in an empty folder, block after block.

Python runs with the fast tests unless the page calls it slow; commands run with the slow ones, and
are looked up by the fast ones (`test_commands.py`). Blocks of one page share names and a folder.
"""

import os
import socket
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.docs.givens import give, programs
from tests.docs.pages import PAGES, PYTHON, ROOT, SHELL, Block, blocks

FAST = {page: [b for b in blocks(page) if b.language == PYTHON and b.runs] for page in PAGES}
FAST = {page: each for page, each in FAST.items() if any("slow" not in b.notes for b in each)}
SLOW = {
    page: [b for b in blocks(page) if b.language in (PYTHON, SHELL) and b.runs] for page in PAGES
}
SLOW = {
    page: each
    for page, each in SLOW.items()
    if any(b.language == SHELL or "slow" in b.notes for b in each)
}


def name(page: Path) -> str:
    return page.relative_to(ROOT).as_posix()


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty folder to be in, with the programs of this environment."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PATH", programs() + os.pathsep + os.environ["PATH"])
    paths = (str(ROOT), os.environ.get("PYTHONPATH", ""))
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(path for path in paths if path))
    monkeypatch.setenv("MPLBACKEND", "agg")
    return tmp_path


def python(block: Block, names: dict) -> None:
    # As many empty lines in front as make an error's line that of the page.
    exec(compile("\n" * block.line + block.text, block.where, "exec"), names)


def shell(block: Block, started: list[subprocess.Popen]) -> None:
    if "terminals" not in block.notes:
        done = subprocess.run(
            ["bash", "-euo", "pipefail", "-c", block.text],
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
        )
        assert done.returncode == 0, f"{block.where}\n{done.stdout[-2000:]}\n{done.stderr[-2000:]}"
        return
    ports = [int(port) for port in block.notes["terminals"].split()]
    for words, port in zip(block.commands, ports, strict=True):
        log = Path(f"terminal-{port}.log").open("w")  # noqa: SIM115
        started.append(subprocess.Popen(words, stdout=log, stderr=log))
        wait_for(port, started[-1], block)


def wait_for(port: int, process: subprocess.Popen, block: Block, seconds: float = 300) -> None:
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        assert process.poll() is None, f"{block.where}: {Path(f'terminal-{port}.log').read_text()}"
        with socket.socket() as one:
            one.settimeout(1)
            if one.connect_ex(("127.0.0.1", port)) == 0:
                return
        time.sleep(0.2)
    raise AssertionError(f"{block.where}: nothing listens on {port}")


@pytest.fixture
def started() -> Iterator[list[subprocess.Popen]]:
    """Processes that run until the page ends."""
    processes: list[subprocess.Popen] = []
    yield processes
    for process in reversed(processes):
        process.terminate()
    for process in processes:
        process.wait(30)


def run(chosen: list[Block], folder: Path, started: list[subprocess.Popen]) -> None:
    names: dict = {"__name__": "page"}
    for block in chosen:
        give(block.notes.get("given", "").split(), folder)
        if block.language == PYTHON:
            python(block, names)
        else:
            shell(block, started)


@pytest.mark.parametrize("page", FAST, ids=name)
def test_the_pages_python_runs(page, folder, started):
    run([block for block in FAST[page] if "slow" not in block.notes], folder, started)


@pytest.mark.slow
@pytest.mark.timeout(1800)
@pytest.mark.parametrize("page", SLOW, ids=name)
def test_the_whole_page_runs(page, folder, started):
    run(SLOW[page], folder, started)
