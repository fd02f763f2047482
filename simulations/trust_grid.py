"""Protections and mitigations × pillars: one JSON file a cell, a table, and a figure a pillar.

    python -m simulations.trust_grid --out runs/trust-grid

Resumable: a cell whose file exists is read, not run, and a federation that was interrupted goes
on from its checkpoint. A seed is run whole before the next. `--only` runs some cells; the tables
are made of those that are there, or of the `--reference` that the repository keeps.
"""

import json
import sys
from pathlib import Path
from typing import Annotated, Any

import typer

from fedvlm.files import write_text
from simulations._kept import rounded
from simulations._trust_findings import findings
from simulations._trust_run import Held, cells, run_cell
from simulations._trust_table import MITIGATED, PRIMARY, SHOWN, write_tables

REFERENCE = Path(__file__).parent / "reference" / "trust-grid.json"


def _kept(columns: list[dict[str, Any]]) -> list[dict[str, Any]]:
    shown = {name for pairs in (*SHOWN.values(), MITIGATED) for name, _ in pairs}
    out = []
    for one in columns:
        if one["name"] in shown or one["pillar"] == "privacy":
            kept = one["name"] in PRIMARY
            out.append({key: v for key, v in one.items() if kept or key != "by_concept"})
    return out


def compact(cell: dict[str, Any]) -> dict[str, Any]:
    """Return what a cell's tables and figures are made of: what the repository keeps.

    Of each measure that is shown its numbers stay, to four digits; values by concept of the
    primary ones alone, which are tested.
    """
    out = dict(cell)
    for name in ("columns", "unrepaired"):
        if name in out:
            out[name] = _kept(out[name])
    if out["kind"] == "attack":
        out["before"] = {k: one for k, one in out["before"].items() if k != "by_concept"}
    return rounded(out)


def load_cells(out: Path) -> list[dict[str, Any]]:
    """Return the cells that are there."""
    paths = sorted((out / "cells").glob("*.json"))
    return [json.loads(path.read_text(encoding="utf-8")) for path in paths]


def main(
    out: Annotated[Path, typer.Option(help="folder of cells, runs, table and figures")],
    seeds: Annotated[int, typer.Option(help="seeds 0 … n − 1", min=1)] = 3,
    only: Annotated[list[str] | None, typer.Option(help="cells to run; repeat it")] = None,
    draw: Annotated[bool, typer.Option(help="draw only, from the cells that are there")] = False,
    reference: Annotated[
        bool, typer.Option(help="draw only, from what the repository keeps")
    ] = False,
) -> None:
    """Run what is missing of the grid, and write its tables and figures."""
    known = cells()
    unknown = sorted(set(only or ()) - set(known))
    if unknown:
        typer.echo(f"error: no cell {unknown[0]!r}; known: {', '.join(known)}", err=True)
        raise typer.Exit(2)
    out.mkdir(parents=True, exist_ok=True)
    if not (draw or reference):
        _run([name for name in known if not only or name in only], seeds, out)
    if reference:
        there = json.loads(REFERENCE.read_text(encoding="utf-8"))["cells"]
    else:
        there = load_cells(out)
        text = json.dumps({"cells": [compact(cell) for cell in there]}, separators=(",", ":"))
        write_text(out / "trust-grid.json", text.replace('{"cell"', '\n{"cell"') + "\n")
    print(write_tables(there, list(known), out))
    write_text(out / "trust-findings.md", findings(there) + "\n")
    from simulations._trust_figures import save_figures

    save_figures(there, list(known), out)


def _run(wanted: list[str], seeds: int, out: Path) -> None:
    held, total = Held(), seeds * len(wanted)
    done = 0
    for seed in range(seeds):
        for name in wanted:
            done += 1
            found = run_cell(name, seed, out, held)
            told = f"{done}/{total} {name}, seed {seed}: {found['seconds']} s"
            print(told, file=sys.stderr, flush=True)


if __name__ == "__main__":
    typer.run(main)
