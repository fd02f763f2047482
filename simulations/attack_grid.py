"""Vantages × protections: claim, leak and utility beside each other, one JSON file a cell.

    python -m simulations.attack_grid --out runs/attack_grid

Resumable: a cell whose file exists is read, not run. Every cell is the same federation, with
every second pair held out by a fair coin, and overfits enough to leak without protection.
"""

import json
import sys
from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.table import Table

from fedvlm.config import SimulationConfig, config_from
from fedvlm.errors import ConfigError, ProtocolError
from fedvlm.federation import Result, simulate
from fedvlm.files import write_text
from fedvlm.leakage.audit_run import RunAudit, audit_run
from fedvlm.leakage.vantage import Vantage

BASE = SimulationConfig(
    clients=5,
    rank=8,
    rounds=3,
    local_epochs=5,
    membership="half",
    references=False,
    transcript=True,
)
_DP = {"epsilon": 8.0, "delta": 1e-5, "clip_norm": 1.0}
PROTECTIONS: dict[str, dict[str, Any]] = {
    "plain": {},
    "secagg": {"protect": "secagg"},
    "client-level DP": {"dp": "client", **_DP},
    "example-level DP": {"dp": "example", **_DP},
    "secagg + distributed DP": {"protect": "secagg", "dp": "distributed", **_DP},
}
"""What each column changes in the base configuration."""


def _cell(result: Result, audit: RunAudit) -> dict[str, Any]:
    return {
        "config": result.config,
        "summary": result.summary,
        "privacy": result.privacy,
        "protection": result.protection,
        "audit": audit.to_dict(),
    }


def run_cell(name: str, out: Path, base: SimulationConfig, per_client: int) -> dict[str, Any]:
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


def _row(name: str, vantage: str, cell: dict[str, Any]) -> list[str]:
    rows = [row for row in cell["audit"]["rows"] if row["vantage"] == vantage]
    utility = f"{cell['summary']['zero_shot']:.3f} → {cell['summary']['federated']:.3f}"
    claim = cell["audit"]["claim"]
    claimed = "–" if claim is None else f"{claim['epsilon']:.2f} per {claim['unit']}"
    if not rows:
        return [name, vantage, "not seen", "–", "–", claimed, "–", utility]
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
        utility,
    ]


def show(cells: dict[str, dict[str, Any]]) -> None:
    """Print the grid; every figure of a vantage holds at 95 % over all its attacks."""
    table = Table(title="best attack by protection and vantage, 95 %")
    for column in (
        "protection",
        "vantage",
        "attack",
        "AUC",
        "TPR@1%",
        "ε claimed",
        "ε audited ≥",
        "one of 100",
    ):
        table.add_column(column, overflow="fold")
    for name, cell in cells.items():
        for vantage in Vantage:
            table.add_row(*_row(name, str(vantage), cell))
    Console(width=None if sys.stdout.isatty() else 170).print(table)


def main(
    out: Annotated[Path, typer.Option(help="folder for cells and runs")] = Path("runs/attack_grid"),
    per_client: Annotated[int, typer.Option(help="candidates a client", min=4)] = 200,
    only: Annotated[list[str] | None, typer.Option(help="protections to run")] = None,
    seed: Annotated[int, typer.Option(help="the experiment's seed", min=0)] = 0,
) -> None:
    """Run the grid of vantages and protections, and print it."""
    names = only or list(PROTECTIONS)
    unknown = sorted(set(names) - set(PROTECTIONS))
    if unknown:
        typer.echo(f"no protection {unknown[0]!r}; known: {', '.join(PROTECTIONS)}", err=True)
        raise typer.Exit(2)
    cells, refused = {}, {}
    for name in names:
        try:
            cells[name] = run_cell(name, out, replace(BASE, seed=seed), per_client)
        except (ConfigError, ProtocolError) as error:
            refused[name] = str(error)  # a cell that can't be is named below, the others go on
    show(cells)
    for name, reason in refused.items():
        typer.echo(f"{name}: {reason}", err=True)
    if refused:
        raise typer.Exit(2)


if __name__ == "__main__":
    app = typer.Typer(pretty_exceptions_enable=False, add_completion=False)
    app.command()(main)
    app()
