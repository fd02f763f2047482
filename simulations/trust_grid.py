"""Protections and mitigations × pillars: one JSON file a cell, a table, and a figure a pillar.

    python -m simulations.trust_grid --out runs/trust-grid

Resumable: a cell whose file exists is read, not run, and a federation that was interrupted goes
on from its checkpoint. `--only` runs some cells; the table is made of those that are there.
"""

import json
import sys
import time
from pathlib import Path
from typing import Annotated, Any

import typer

from fedvlm.federation import simulate
from fedvlm.files import write_text
from fedvlm.trust.audit import audit_models, contexts_of, read_all
from fedvlm.trust.context import DEFAULT_SIZES, Sizes
from simulations._trust_backdoor import ATTACKS, run_attack
from simulations._trust_repairs import POSTHOC, TRAINED, repaired_client
from simulations._trust_rows import PROTECTIONS, configuration
from simulations._trust_table import save_figures, write_tables

HALF = Sizes(half=True)
_MITIGATED = ("plain", "example-8")


def cells() -> dict[str, tuple[str, ...]]:
    """Return every cell's parts by name, in the order in which they are run."""
    found: dict[str, tuple[str, ...]] = {row: ("protection", row) for row in PROTECTIONS}
    found |= {f"attack-{name}": ("attack", name) for name in ATTACKS}
    for row in _MITIGATED:
        found |= {f"{row}+{name}": ("posthoc", row, name) for name in POSTHOC}
        found |= {f"{row}+{name}": ("trained", row, name) for name in TRAINED}
    return found


def _federate(row: str, seed: int, folder: Path, repair: str | None = None) -> None:
    if (folder / "result.json").exists():
        return
    config = configuration(row, seed)
    resume = (folder / "checkpoint.npz").exists()
    if repair is None:
        simulate(config, out=folder, resume=resume)
    else:
        simulate(config, out=folder, resume=resume, client=repaired_client(config, repair))


class Zero:
    """Readings of the untouched model, made once a seed and sizes."""

    def __init__(self) -> None:
        self._held: dict[tuple[int, bool], Any] = {}

    def __call__(self, context: Any, seed: int) -> Any:
        """Return them, reading them off a context the first time."""
        key = (seed, context.sizes.half)
        if key not in self._held:
            self._held[key] = read_all(context)
        return self._held[key]


def run_cell(name: str, seed: int, out: Path, zero: Zero) -> dict[str, Any]:
    """Run or read one cell."""
    path = out / "cells" / f"{name}-{seed}.json"
    if path.exists():
        return json.loads(path.read_text(encoding="utf-8"))
    start = time.perf_counter()
    kind, row, *rest = cells()[name]
    found: dict[str, Any] = {"cell": name, "kind": kind, "seed": seed}
    if kind == "attack":
        found |= run_attack(row, seed, out / "runs" / f"{name}-{seed}")
    else:
        trained = rest[0] if kind == "trained" else None
        folder = out / "runs" / (f"{name}-{seed}" if trained else f"{row}-{seed}")
        _federate(row, seed, folder, trained)
        before, after, identity = contexts_of(folder, HALF if kind == "posthoc" else DEFAULT_SIZES)
        told = POSTHOC[rest[0]](after) if kind == "posthoc" else {}
        audit = audit_models(before, after, known=zero(before, seed))
        found |= audit.to_dict() | {"identity": {**identity, **told}}
        if kind == "posthoc":
            # Beside the same model without the repair, on the same half of the concepts.
            _, plain, _ = contexts_of(folder, HALF)
            rest_of = audit_models(before, plain, known=zero(before, seed))
            found["unrepaired"] = rest_of.to_dict()["columns"]
    found["seconds"] = round(time.perf_counter() - start, 1)
    write_text(path, json.dumps(found, indent=1) + "\n")
    return found


def main(
    out: Annotated[Path, typer.Option(help="folder of cells, runs, table and figures")],
    seeds: Annotated[int, typer.Option(help="seeds 0 … n − 1", min=1)] = 3,
    only: Annotated[list[str] | None, typer.Option(help="cells to run; repeat it")] = None,
    draw: Annotated[bool, typer.Option(help="draw only, from the cells that are there")] = False,
) -> None:
    """Run what is missing of the grid, and write its tables and figures."""
    known = cells()
    unknown = sorted(set(only or ()) - set(known))
    if unknown:
        typer.echo(f"error: no cell {unknown[0]!r}; known: {', '.join(known)}", err=True)
        raise typer.Exit(2)
    wanted = [name for name in known if not only or name in only]
    zero = Zero()
    total, done = seeds * len(wanted), 0
    for seed in range(seeds):
        for name in wanted:
            done += 1
            if draw:
                continue
            found = run_cell(name, seed, out, zero)
            print(f"{done}/{total} {name}, seed {seed}: {found['seconds']} s", file=sys.stderr)
    there = [
        json.loads(path.read_text(encoding="utf-8"))
        for path in sorted((out / "cells").glob("*.json"))
    ]
    text = write_tables(there, list(known), out)
    print(text)
    save_figures(there, list(known), out)


if __name__ == "__main__":
    typer.run(main)
