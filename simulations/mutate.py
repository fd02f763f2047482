"""Put deliberate faults into a copy of the tree, one at a time, and see which tests notice.

`python -m simulations.mutate [--out FILE] [--package fedvlm/privacy] [--most 20] [--afresh]`
goes on where it was: what was found for an unchanged edit, file and tests stands in the table.
The tests that noticed are run on the tree as it is, too: one that fails there noticed nothing.
Each run is a fork of a process that has imported torch and the like: it needs a POSIX system.
"""

import argparse
import contextlib
import hashlib
import importlib
import json
import os
import resource
import shutil
import signal
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import NoReturn

import pytest

from tests.mutation.edits import EDITS, Edit

ROOT = Path(__file__).parents[1]
TABLE = ROOT / "simulations" / "reference" / "mutation.json"
_COPIED = ("fedvlm", "secure", "simulations", "tests", "docs", "pyproject.toml", "README.md")
_OURS = ("fedvlm", "secure", "simulations", "tests")
_HEAVY = ("torch.func", "transformers", "peft", "flwr.serverapp", "scipy.stats", "dp_accounting")
_MOST_CPU_S = 600


@dataclass(frozen=True)
class Finding:
    """What came of one fault.

    Attributes:
        outcome: "caught", "survived", "hung" (no end in ten minutes of work: noticed, too), or
            "void" where the test that failed fails on the tree as it is.
        noticed_by: The first test that failed; empty where none did.
        seconds: How long the tests ran.
        key: A digest of the edit, its file and its tests, as they were.
    """

    outcome: str
    noticed_by: str
    seconds: float
    key: str


def apply(edit: Edit, root: Path) -> None:
    """Put one fault into a tree.

    Raises:
        LookupError: The text that it replaces doesn't stand in its file exactly once.
    """
    path = root / edit.file
    text = path.read_text(encoding="utf-8")
    if text.count(edit.old) != 1:
        raise LookupError(
            f"{edit.file}: {edit.old!r} stands {text.count(edit.old)} times, and should once; "
            "bring tests/mutation up to date"
        )
    path.write_text(text.replace(edit.old, edit.new), encoding="utf-8")


def _copy(target: Path) -> None:
    for name in _COPIED:
        source = ROOT / name
        if source.is_dir():
            ignored = shutil.ignore_patterns("__pycache__", "_build")
            shutil.copytree(source, target / name, ignore=ignored)
        elif source.exists():
            shutil.copy(source, target / name)


def _warm() -> None:
    """Import what is not ours and slow to import, once for all faults."""
    for name in _HEAVY:
        with contextlib.suppress(ImportError):
            importlib.import_module(name)


def _run_in(root: Path, arguments: Sequence[str], log: Path) -> NoReturn:
    """Be a process of its own from here on: run pytest in a tree, with nothing of ours loaded."""
    code = 70
    try:
        os.setsid()
        with log.open("wb") as file:
            os.dup2(file.fileno(), 1)
            os.dup2(file.fileno(), 2)
        # Seconds of work, not of waiting: on a busy machine a fault would else seem to hang.
        resource.setrlimit(resource.RLIMIT_CPU, (_MOST_CPU_S, _MOST_CPU_S + 60))
        os.chdir(root)
        os.environ |= {"PYTHONPATH": str(root), "PYTHONDONTWRITEBYTECODE": "1"}
        sys.dont_write_bytecode = True
        for name in list(sys.modules):
            if name.split(".")[0] in _OURS:
                del sys.modules[name]
        sys.path[:] = [str(root), *(p for p in sys.path if Path(p).resolve() != ROOT)]
        code = int(pytest.main(list(arguments)))
    finally:
        os._exit(code)


def _failed(root: Path, tests: Sequence[str], *options: str) -> list[str]:
    """Run fast tests in a tree; returns the ids of those that failed.

    Raises:
        RuntimeError: pytest neither passed nor failed: a fault that can't be imported, say.
        TimeoutError: No end within the seconds of work.
    """
    log = root / ".log"
    sys.stdout.flush()
    process = os.fork()
    if not process:
        _run_in(root, ["-q", "-m", "not slow", "--timeout", "3000", *options, *tests], log)
    code = os.waitstatus_to_exitcode(os.waitpid(process, 0)[1])
    with contextlib.suppress(ProcessLookupError):  # what it had started, if it was cut off
        os.killpg(process, signal.SIGKILL)
    if code == -signal.SIGXCPU:
        raise TimeoutError(f"no end within {_MOST_CPU_S} s of work")
    if code not in (0, 1):
        text = log.read_text(encoding="utf-8", errors="replace")
        raise RuntimeError(f"pytest ended with {code}:\n{text[-2000:]}")
    if code == 0:
        return []
    kept = root / ".pytest_cache" / "v" / "cache" / "lastfailed"
    return sorted(json.loads(kept.read_text(encoding="utf-8")))


def try_one(edit: Edit, likely: str = "") -> Finding:
    """Put one fault into a copy of the tree of its own, and run its tests.

    Args:
        edit: The fault.
        likely: The test that noticed it last time; it is run first.
    """
    began = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="mutate-") as folder:
        root = Path(folder)
        _copy(root)
        apply(edit, root)
        known = likely and (root / likely.split("::")[0]).is_file()
        failed: list[str] = []
        try:
            if known:
                try:
                    failed = _failed(root, [likely], "-x")
                except RuntimeError:  # a test of that name is gone
                    failed = []
            failed = failed or _failed(root, edit.tests, "-x")
            outcome = "caught" if failed else "survived"
        except TimeoutError:
            outcome = "hung"
    seconds = round(time.monotonic() - began, 1)
    return Finding(outcome, failed[0] if failed else "", seconds, key(edit))


def control(found: dict[str, Finding]) -> dict[str, Finding]:
    """Return the findings, "void" where the test that noticed fails on the tree as it is."""
    noticing = sorted({finding.noticed_by for finding in found.values()} - {""})
    if not noticing:
        return found
    with tempfile.TemporaryDirectory(prefix="mutate-") as folder:
        _copy(Path(folder))
        broken = set(_failed(Path(folder), noticing))
    return {
        name: replace(finding, outcome="void") if finding.noticed_by in broken else finding
        for name, finding in found.items()
    }


def key(edit: Edit) -> str:
    """Return what a finding depends on: the edit, its file and its tests."""
    digest = hashlib.sha256(repr((edit.file, edit.old, edit.new, edit.tests)).encode())
    for name in (edit.file, *(test.split("::")[0] for test in edit.tests)):
        digest.update((ROOT / name).read_bytes())
    return digest.hexdigest()[:16]


def explained(edits: Sequence[Edit], found: dict[str, str]) -> list[str]:
    """Return a line for each survivor: why it survives, or that nobody has said so."""
    return [
        f"{edit.name}: {edit.survives or 'not explained'}"
        for edit in edits
        if found.get(edit.name) == "survived"
    ]


def by_package(edits: Sequence[Edit], found: dict[str, str]) -> list[str]:
    """Return a line of a table for each package: faults, tried, caught, survived."""
    lines = []
    for package in dict.fromkeys(edit.package for edit in edits):
        faults = [edit.name for edit in edits if edit.package == package]
        outcomes = [found[name] for name in faults if name in found]
        caught = sum(outcome in ("caught", "hung") for outcome in outcomes)
        survived = outcomes.count("survived")
        lines.append(f"| `{package}` | {len(faults)} | {len(outcomes)} | {caught} | {survived} |")
    return lines


def read(path: Path) -> dict[str, Finding]:
    """Return what a table says, by the name of the fault."""
    if not path.exists():
        return {}
    fields = ("outcome", "noticed_by", "seconds", "key")
    return {
        row["name"]: Finding(*(row[field] for field in fields))
        for row in json.loads(path.read_text(encoding="utf-8"))["faults"]
    }


def write(path: Path, found: dict[str, Finding]) -> None:
    """Write the table: a row a fault, in the order of `EDITS`."""
    rows = [
        {
            "name": edit.name,
            "file": edit.file,
            "old": edit.old,
            "new": edit.new,
            **asdict(found[edit.name]),
            "survives": edit.survives,
        }
        for edit in EDITS
        if edit.name in found
    ]
    path.parent.mkdir(parents=True, exist_ok=True)
    text = json.dumps({"faults": rows}, indent=1, ensure_ascii=False)
    path.write_text(text + "\n", encoding="utf-8")


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the faults that are asked for; returns 1 where one survived unexplained or is void."""
    parser = argparse.ArgumentParser(prog="simulations.mutate", description=__doc__)
    parser.add_argument("--out", type=Path, default=TABLE)
    parser.add_argument("--package", help="only the faults of one package")
    parser.add_argument("--most", type=int, default=len(EDITS), help="most faults to try now")
    parser.add_argument("--afresh", action="store_true", help="try again what is known, too")
    asked = parser.parse_args(arguments)
    _warm()
    kept = read(asked.out)
    edits = [edit for edit in EDITS if asked.package in (None, edit.package)]
    tried: dict[str, Finding] = {}
    known = 0
    for edit in edits:
        last = kept.get(edit.name)
        sound = last is not None and last.outcome != "void"
        if sound and last.key == key(edit) and not asked.afresh:
            known += 1
            continue
        if len(tried) >= asked.most:
            continue
        tried[edit.name] = try_one(edit, last.noticed_by if last else "")
        write(asked.out, kept | tried)
        sys.stdout.write(f"{tried[edit.name].outcome:9} {edit.name}\n")
        sys.stdout.flush()
    kept |= control(tried)
    write(asked.out, kept)
    found = {edit.name: kept[edit.name].outcome for edit in edits if edit.name in kept}
    lines = explained(edits, found)
    void = [name for name, outcome in found.items() if outcome == "void"]
    caught = sum(outcome in ("caught", "hung") for outcome in found.values())
    left = len(edits) - len(tried) - known
    sys.stdout.write(f"{caught} of {len(found)} caught, {left} not tried\n")
    sys.stdout.write("".join(f"{line}\n" for line in by_package(edits, found)))
    sys.stdout.write("".join(f"survivor: {line}\n" for line in lines))
    sys.stdout.write("".join(f"void: {name}: its test fails without the fault\n" for name in void))
    return 1 if void or any(line.endswith("not explained") for line in lines) else 0


if __name__ == "__main__":
    raise SystemExit(main())
