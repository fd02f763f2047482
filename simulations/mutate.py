"""Put deliberate faults into a copy of the tree, one at a time, and see which tests notice.

`python -m simulations.mutate --out runs/mutation.json [--package fedvlm/privacy] [--most 20]`
goes on where it was: what was found for an unchanged edit, file and tests stands in the file.
"""

import argparse
import hashlib
import json
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

from tests.mutation.edits import EDITS, Edit

ROOT = Path(__file__).parents[1]
_COPIED = ("fedvlm", "secure", "simulations", "tests", "docs", "pyproject.toml", "README.md")
_TIMEOUT_S = 600


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


def outcome(edit: Edit) -> str:
    """Return "caught", "survived" or "hung" for one fault, in a copy of the tree of its own."""
    with tempfile.TemporaryDirectory(prefix="mutate-") as folder:
        root = Path(folder)
        _copy(root)
        apply(edit, root)
        command = [sys.executable, "-m", "pytest", "-x", "-q", "-p", "no:cacheprovider"]
        command += ["-m", "not slow", *edit.tests]
        environment = os.environ | {"PYTHONPATH": folder, "PYTHONDONTWRITEBYTECODE": "1"}
        try:
            done = subprocess.run(  # noqa: S603  our own interpreter and test files
                command,
                cwd=root,
                env=environment,
                timeout=_TIMEOUT_S,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
                check=False,
            )
        except subprocess.TimeoutExpired:
            return "hung"
    if done.returncode not in (0, 1):
        raise RuntimeError(f"pytest ended with {done.returncode} for {edit.name}")
    return "survived" if done.returncode == 0 else "caught"


def _key(edit: Edit) -> str:
    """Return what a finding depends on: the edit, its file and its tests."""
    digest = hashlib.sha256(repr(edit).encode())
    for name in (edit.file, *edit.tests):
        digest.update((ROOT / name).read_bytes())
    return digest.hexdigest()[:16]


def explained(edits: Sequence[Edit], found: dict[str, str]) -> list[str]:
    """Return a line for each survivor: why it survives, or that nobody has said so."""
    return [
        f"{edit.name}: {edit.survives or 'not explained'}"
        for edit in edits
        if found.get(edit.name) == "survived"
    ]


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the faults that are asked for; returns 1 where one survived unexplained."""
    parser = argparse.ArgumentParser(prog="simulations.mutate", description=__doc__)
    parser.add_argument("--out", type=Path, default=Path("runs/mutation.json"))
    parser.add_argument("--package", help="only the faults of one package")
    parser.add_argument("--most", type=int, default=len(EDITS), help="most faults to try now")
    asked = parser.parse_args(arguments)
    kept = json.loads(asked.out.read_text()) if asked.out.exists() else {}
    edits = [edit for edit in EDITS if asked.package in (None, edit.package)]
    found: dict[str, str] = {}
    tried = 0
    for edit in edits:
        key = _key(edit)
        if key not in kept:
            if tried >= asked.most:
                continue
            tried += 1
            kept[key] = outcome(edit)
            asked.out.parent.mkdir(parents=True, exist_ok=True)
            asked.out.write_text(json.dumps(kept, indent=1))
        found[edit.name] = kept[key]
        sys.stdout.write(f"{kept[key]:9} {edit.name}\n")
        sys.stdout.flush()
    lines = explained(edits, found)
    caught = sum(result != "survived" for result in found.values())
    sys.stdout.write(f"{caught} of {len(found)} caught, {len(edits) - len(found)} not tried\n")
    sys.stdout.write("".join(f"survivor: {line}\n" for line in lines))
    return 1 if any(line.endswith("not explained") for line in lines) else 0


if __name__ == "__main__":
    raise SystemExit(main())
