"""Secure aggregation as it grows: `python -m simulations.aggregation_growth [--out DIR]`.

Measures whole sessions for cohorts of 10 to 1000 clients and 10^4 to 10^6 parameters, a tenth of
the clients dropping out, in CPU seconds; writes a table (Markdown text), the numbers (JSON) and a
plot (SVG).
"""

import json
import sys
from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer

from simulations._page_figure import panels, save
from simulations.benchmarks._aggregation_growth import LENGTHS, Growth, sweep
from simulations.benchmarks._harness import machine

NAME = "aggregation-growth"


def table(cells: list[Growth]) -> str:
    """Return the cells as a Markdown table."""
    lines = [
        "| clients | dropouts | parameters | neighbours | lane | one client, s | server, s "
        "| whole session, s | peak, MiB |",
        "|--:|--:|--:|--:|--:|--:|--:|--:|--:|",
    ]
    lines += [
        f"| {cell.clients} | {cell.dropouts} | {cell.length:,} | {cell.neighbours} | {cell.lane} "
        f"| {cell.client_s:.3f} | {cell.server_s:.2f} | {cell.session_s:.1f} "
        f"| {cell.peak_mib:.0f} |"
        for cell in cells
    ]
    return "\n".join(lines) + "\n"


def draw(cells: list[Growth], path: Path) -> None:
    """Draw client and server seconds over the cohort, one line a length."""
    figure, axes = panels(2)
    # Okabe and Ito's colours, told apart by the colour-blind, and by the marker without colour.
    styles = zip(("#0072B2", "#D55E00", "#009E73"), ("o", "s", "^"), LENGTHS, strict=True)
    for colour, marker, length in styles:
        mine = [cell for cell in cells if cell.length == length]
        cohorts = [cell.clients for cell in mine]
        label = f"{length:,} parameters"
        for axis, field in zip(axes, ("client_s", "server_s"), strict=True):
            seconds = [getattr(cell, field) for cell in mine]
            axis.loglog(cohorts, seconds, color=colour, marker=marker, label=label)
    for axis, title in zip(axes, ("one client, all trips", "server, all trips"), strict=True):
        axis.set_title(title)
        axis.set_xlabel("clients")
        axis.set_ylabel("CPU seconds")
        axis.grid(visible=True, which="major", alpha=0.3)
    axes[0].legend(frameon=False)
    save(figure, path)


def main(
    out: Annotated[Path, typer.Option(help="folder for table, numbers and plot")] = Path("runs"),
    largest: Annotated[int, typer.Option(help="largest cohort to measure")] = 1000,
) -> None:
    """Measure, and write what was measured after every cell."""
    out.mkdir(parents=True, exist_ok=True)
    cells: list[Growth] = []
    for cell in sweep(lambda text: print(text, file=sys.stderr, flush=True), largest):
        cells.append(cell)
        told = {"machine": machine(), "cells": [asdict(each) for each in cells]}
        (out / f"{NAME}.json").write_text(json.dumps(told, indent=1) + "\n")
        (out / f"{NAME}.txt").write_text(table(cells))
    draw(cells, out / f"{NAME}.svg")
    print(table(cells))


if __name__ == "__main__":
    typer.run(main)
