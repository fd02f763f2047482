"""Vantages × protections: claim, leak and utility beside each other, one JSON file a cell.

    python -m simulations.attack_grid --out runs/attack_grid

Resumable: a cell whose file exists is read, not run. Every cell is the same federation, with
every second pair held out by a fair coin, and overfits enough to leak without protection.
"""

import json
import re
import sys
from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any

import typer
from matplotlib.axes import Axes
from rich.console import Console
from rich.table import Table

from fedvlm.config import Config, config_from
from fedvlm.errors import ConfigError, ProtocolError
from fedvlm.federation import Result, simulate
from fedvlm.files import write_text
from fedvlm.leakage.audit_run import RunAudit, audit_run
from fedvlm.leakage.vantage import Vantage
from simulations._page_figure import panels, save

REFERENCE = Path(__file__).parent / "reference" / "attack-grid.json"
_SEEN = ("server", "sum", "client", "weights", "API")

BASE = config_from(
    {
        "clients": 5,
        "rank": 8,
        "rounds": 3,
        "local_epochs": 5,
        "membership": "half",
        "references": False,
        "transcript": True,
    }
)
_DP = {"epsilon": 8.0, "delta": 1e-5}
# Five clients hide nobody: with a clip norm of 1 the noise wipes the model out, with a small one it
# leaves it where it was. Most of the clients that are summed are canaries then.
_CLIENT = {**_DP, "clip_norm": 0.02, "canaries": 64}
PROTECTIONS: dict[str, dict[str, Any]] = {
    "plain": {},
    "secagg": {"protect": "secagg"},
    "client-level DP": {"dp": "client", **_CLIENT},
    "example-level DP": {"dp": "example", **_DP, "learning_rate": 2e-3, "canaries": 200},
    "secagg + distributed DP": {"protect": "secagg", "dp": "distributed", **_CLIENT},
}
"""What each protection changes in the base configuration."""
_HEADER = (
    "protection",
    "vantage",
    "best attack",
    "AUC",
    "TPR at FPR 1 %",
    "ε claimed",
    "ε ≥ by attacks",
    "ε ≥ by canaries",
    "one of 100",
)
_COLOURS = ("#000000", "#0072B2", "#D55E00", "#009E73", "#CC79A7")


def _cell(result: Result, audit: RunAudit) -> dict[str, Any]:
    return {
        "config": result.config,
        "summary": result.summary,
        "privacy": result.privacy,
        "protection": result.protection,
        "audit": audit.to_dict(),
    }


def run_cell(name: str, out: Path, base: Config, per_client: int) -> dict[str, Any]:
    """Run or read one protection's federation and its audit from every vantage.

    Raises:
        ConfigError: The protection isn't there in this installation, or refuses the settings.
    """
    slug = name.replace(" + ", "-").replace(" ", "-")
    path = out / f"{slug}.json"
    if path.exists():
        return json.loads(path.read_text(encoding="utf-8"))
    config = config_from(PROTECTIONS[name], base)
    folder = out / slug
    result = simulate(config, out=folder, resume=(folder / "checkpoint.npz").exists())
    audit = audit_run(folder, per_client=per_client)
    replace(result, leakage=audit.rows()).save(folder)
    cell = _cell(result, audit)
    write_text(path, json.dumps(cell, indent=2) + "\n")
    return cell


def _planted(cell: dict[str, Any], vantage: str) -> str:
    """Return the bound that canaries give at a vantage, in the unit that they are."""
    rows = (cell["audit"].get("canaries") or {"rows": []})["rows"]
    row = next((row for row in rows if row["vantage"] == vantage), None)
    if row is None:
        return "–"
    if row["epsilon_lower"] is None:
        return f"no bound: {row['no_bound']}"
    bound = f"{row['epsilon_lower']:.2f} per {row['unit']}"
    return bound if row["claimed"] else f"{bound}, not claimed here"


def _row(name: str, vantage: str, cell: dict[str, Any]) -> list[str]:
    rows = [row for row in cell["audit"]["rows"] if row["vantage"] == vantage]
    utility = f"{cell['summary']['zero_shot']:.3f} → {cell['summary']['federated']:.3f}"
    claim = cell["audit"]["claim"]
    claimed = "–" if claim is None else f"{claim['epsilon']:.2f} per {claim['unit']}"
    if not rows:  # the server sees sums only: to it, V1 is V2
        return [name, vantage, "single updates not seen", "–", "–", claimed, "–", "–", utility]
    best = rows[0]
    rate = next(one for one in best["tpr_at_fpr"] if one["fpr"] == 0.01)
    tpr = f"{rate['tpr']:.3f} [{rate['low']:.3f}, {rate['high']:.3f}]"
    lower = max((row["epsilon_lower"] or 0.0) for row in rows)
    return [
        name,
        vantage,
        best["attack"],
        f"{best['auc']:.3f} [{best['auc_low']:.3f}, {best['auc_high']:.3f}]",
        tpr if rate["resolved"] else f"{tpr} unresolved",
        claimed,
        f"{lower:.2f} per sample",
        _planted(cell, vantage),
        utility,
    ]


def grid_rows(cells: dict[str, dict[str, Any]]) -> list[list[str]]:
    """Return the grid's rows; every figure of a vantage holds at 95 % over all its attacks."""
    return [_row(name, str(vantage), cell) for name, cell in cells.items() for vantage in Vantage]


def show(cells: dict[str, dict[str, Any]]) -> None:
    """Print the grid."""
    table = Table(title="best attack by protection and vantage, 95 %")
    for column in _HEADER:
        table.add_column(column, overflow="fold")
    for row in grid_rows(cells):
        table.add_row(*row)
    Console(width=None if sys.stdout.isatty() else 190).print(table)
    for name, cell in cells.items():
        check = (cell["audit"].get("canaries") or {}).get("conformance")
        if check:
            Console().print(
                f"{name}: noise at most {check['noise_ratio']:.2f} of the stated, canaries at "
                f"least {check['clip_ratio']:.2f} clip norms long ({check['confidence']:.1%})"
            )
        checks = cell["audit"].get("checks") or {"checks": [], "not_checked": []}
        for one in checks["checks"]:
            verdict = "VIOLATED" if one["violated"] else "stands"
            Console().print(f"{name}: {one['name']} {verdict}: {one['found']}")
        for reason in checks["not_checked"]:
            Console().print(f"{name}: not checked: {reason}")


def markdown(cells: dict[str, dict[str, Any]]) -> str:
    """Return the grid as Markdown, for documents."""
    lines = [_HEADER, ["---"] * len(_HEADER), *grid_rows(cells)]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines) + "\n"


def plot(rows: list[list[str]], ax: Axes) -> Axes:
    """Draw the best attack's AUC with its interval, vantage by vantage, from the grid's rows."""
    names = list(dict.fromkeys(row[0] for row in rows))
    for place, name in enumerate(names):
        colour = _COLOURS[place % len(_COLOURS)]
        drawn = False
        for number, vantage in enumerate(Vantage):
            (auc,) = (row[3] for row in rows if row[:2] == [name, str(vantage)])
            if auc == "–":
                continue
            value, low, high = (float(each) for each in re.findall(r"\d+\.\d+", auc))
            ax.errorbar(
                number + 0.13 * (place - (len(names) - 1) / 2),
                value,
                [[value - low], [high - value]],
                fmt="o",
                markersize=5,
                capsize=3,
                color=colour,
                label=None if drawn else name,
            )
            drawn = True
    ax.axhline(0.5, color="grey", linestyle=":", linewidth=1)
    seen = zip(Vantage, _SEEN, strict=True)
    ax.set_xticks(range(len(Vantage)), [f"{vantage}\n{short}" for vantage, short in seen])
    ax.set_ylim(0.4, 1.0)
    ax.set_ylabel("AUC of the best attack, 95 %")
    ax.legend(loc="upper center", bbox_to_anchor=(0.5, 1.35), ncols=2)
    return ax


def draw(rows: list[list[str]], out: Path) -> None:
    """Write the figure as SVG."""
    figure, (ax,) = panels(1, height=4.8)
    plot(rows, ax)
    save(figure, out / "attack-grid.svg")


def main(
    out: Annotated[Path, typer.Option(help="folder for cells and runs")] = Path("runs/attack_grid"),
    per_client: Annotated[int, typer.Option(help="candidates a client", min=4)] = 500,
    only: Annotated[list[str] | None, typer.Option(help="protections to run")] = None,
    seed: Annotated[int, typer.Option(help="the experiment's seed", min=0)] = 0,
    reference: Annotated[
        bool, typer.Option("--reference", help="run nothing: draw what the repository keeps")
    ] = False,
) -> None:
    """Run the grid of vantages and protections, print it, and write grid.md and a figure."""
    if reference:
        draw(json.loads(REFERENCE.read_text(encoding="utf-8")), out)
        return
    names = only or list(PROTECTIONS)
    unknown = sorted(set(names) - set(PROTECTIONS))
    if unknown:
        typer.echo(f"no protection {unknown[0]!r}; known: {', '.join(PROTECTIONS)}", err=True)
        raise typer.Exit(2)
    cells, refused = {}, {}
    for name in names:
        try:
            cells[name] = run_cell(name, out, config_from({"seed": seed}, BASE), per_client)
        except (ConfigError, ProtocolError) as error:
            refused[name] = str(error)  # a cell that can't be is named below, the others go on
    show(cells)
    write_text(out / "grid.md", markdown(cells))
    write_text(out / "grid.json", json.dumps(grid_rows(cells), ensure_ascii=False, indent=1) + "\n")
    draw(grid_rows(cells), out)
    for name, reason in refused.items():
        typer.echo(f"{name}: {reason}", err=True)
    if refused:
        raise typer.Exit(2)


if __name__ == "__main__":
    app = typer.Typer(pretty_exceptions_enable=False, add_completion=False)
    app.command()(main)
    app()
