"""Run a benchmark, print its table, and write it as JSON."""

import importlib
import json
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Annotated

import typer

from simulations.benchmarks import _harness

NAMES = (
    "aggregation",
    "smpc",
    "he",
    "leakage",
    "privacy",
    "federation",
    "models",
    "trust",
)


def _available() -> list[str]:
    here = Path(__file__).parent
    return [name for name in NAMES if (here / f"{name}.py").exists()]


def _apart(name: str) -> list[_harness.Row]:
    """Run one benchmark in a process of its own: what another left in memory slows it down."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "rows.json"
        command = [sys.executable, "-m", "simulations.benchmarks", name, "--json", str(path)]
        done = subprocess.run(command, check=False)  # noqa: S603  our own interpreter and module
        if done.returncode:
            raise typer.Exit(done.returncode)
        return [_harness.Row(**row) for row in json.loads(path.read_text())["rows"]]


def main(
    name: Annotated[str, typer.Argument(help=f"one of: {', '.join(_available())}; or all")],
    json_file: Annotated[
        Path | None, typer.Option("--json", help="write machine and rows to this file")
    ] = None,
) -> None:
    """Run this library and its peer side by side, and print both."""
    if name not in (*_available(), "all"):
        typer.echo(f"no benchmark {name!r}; choose from {', '.join(_available())}, all", err=True)
        raise typer.Exit(2)
    if name == "all":
        rows = [row for each in _available() for row in _apart(each)]
    else:
        module = importlib.import_module(f"simulations.benchmarks.{name}")
        rows = module.run(lambda text: print(text, file=sys.stderr, flush=True))
        _harness.show(name, rows)
    if json_file is not None:
        _harness.write_json(json_file, rows)


if __name__ == "__main__":
    typer.run(main)
