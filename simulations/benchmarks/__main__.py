"""Run a benchmark, print its table, and write it as JSON."""

import importlib
import sys
from pathlib import Path
from typing import Annotated

import typer

from simulations.benchmarks import _harness

NAMES = ("aggregation", "smpc", "he", "leakage", "privacy", "federation", "models")


def _available() -> list[str]:
    here = Path(__file__).parent
    return [name for name in NAMES if (here / f"{name}.py").exists()]


def main(
    name: Annotated[str, typer.Argument(help=f"one of: {', '.join(_available())}; or all")],
    json_file: Annotated[
        Path | None, typer.Option("--json", help="write machine and rows to this file")
    ] = None,
) -> None:
    """Run this library and its peer side by side, and print both."""
    names = _available() if name == "all" else [name]
    if not set(names) <= set(_available()):
        typer.echo(f"no benchmark {name!r}; choose from {', '.join(_available())}, all", err=True)
        raise typer.Exit(2)
    rows = []
    for each in names:
        module = importlib.import_module(f"simulations.benchmarks.{each}")
        found = module.run(lambda text: print(text, file=sys.stderr, flush=True))
        _harness.show(each, found)
        rows += found
    if json_file is not None:
        _harness.write_json(json_file, rows)


if __name__ == "__main__":
    typer.run(main)
