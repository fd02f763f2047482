"""The figure of the front page and the README: `python -m simulations.front_figure [FILE]`.

What each protection leaves of the gain, and what an attacker still gets of the same runs, drawn
from the grid that the repository keeps (`simulations.attack_grid`).
"""

import json
import re
from pathlib import Path
from typing import Annotated

import typer
from matplotlib.figure import Figure

from simulations._page_figure import GRID, panels, save
from simulations.attack_grid import REFERENCE

_BLUE, _ORANGE, _GREEN = "#2A80C8", "#E69F00", "#009E73"
_NAMES = {
    "plain": "none",
    "secagg": "secure aggregation",
    "example-level DP": "example-level DP, ε = 8",
    "client-level DP": "client-level DP, ε = 8",
    "secagg + distributed DP": "distributed DP, ε = 8",
}


def numbers(text: str) -> list[float]:
    """Return the decimal numbers of a cell."""
    return [float(each) for each in re.findall(r"\d+\.\d+", text)]


def draw(rows: list[list[str]]) -> Figure:
    """Draw both panels from the grid's rows."""
    cells = {(row[0], row[1]): row for row in rows}
    figure, (gain, leak) = panels(2, height=2.7)
    for place, name in enumerate(_NAMES):
        before, after = numbers(cells[name, "V4"][8])
        gain.plot([100 * before, 100 * after], [place, place], color=_GREEN, linewidth=3)
        gain.plot(100 * after, place, "o", color=_GREEN, markersize=8)
        for vantage, colour, marker, shift in (
            ("V1", _ORANGE, "s", -0.12),
            ("V4", _BLUE, "o", 0.12),
        ):
            if found := numbers(cells[name, vantage][3]):
                value, low, high = found
                leak.errorbar(
                    value,
                    place + shift,
                    xerr=[[value - low], [high - value]],
                    fmt=marker,
                    color=colour,
                    capsize=3,
                )
    gain.axvline(100 * before, color=GRID, linestyle=":", linewidth=1)
    gain.set(title="retrieval, one of 100, %", xlim=(23, 48))
    leak.axvline(0.5, color=GRID, linestyle=":", linewidth=1)
    leak.set(title="best membership attack, AUC", xlim=(0.45, 1.02))
    leak.text(0.78, 4.0, "■ from the server", color=_ORANGE, va="center", fontsize=10)
    leak.text(0.78, 3.5, "● from the adapter", color=_BLUE, va="center", fontsize=10)
    for ax in (gain, leak):
        ax.grid(axis="x", alpha=0.25)
        ax.set_yticks(range(len(_NAMES)), list(_NAMES.values()))
        ax.invert_yaxis()
        ax.tick_params(axis="y", length=0)
    return figure


def main(
    path: Annotated[Path, typer.Argument(help="file to write")] = Path("docs/figures/front.svg"),
) -> None:
    """Draw the figure from the kept grid."""
    save(draw(json.loads(REFERENCE.read_text(encoding="utf-8"))), path)


if __name__ == "__main__":
    typer.run(main)
