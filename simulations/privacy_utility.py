"""What a given ε costs in retrieval, by adapter and by who noises, beside the public-only control.

    python -m simulations.privacy_utility --out runs/privacy-utility

Each cell leaves one JSON file, and what is there is not run again: the table can be made piecewise,
and stopped at any time. Noise is simulated: an experiment, of which nothing is released. Table and
figure are made from the files, or from the `--reference` that the repository keeps of them.
"""

import hashlib
import json
from pathlib import Path
from typing import Annotated, Any

import typer

from fedvlm.files import write_text
from simulations._heads_cells import Cell, cells, evaluate
from simulations._privacy_figure import PARTS, Scores, draw, table

REFERENCE = Path(__file__).parent / "reference" / "privacy-utility.json"
SLOW = ("lora",)  # minutes a cell, where others take seconds


def path_of(out: Path, cell: Cell, seed: int) -> Path:
    """Return where a cell is kept."""
    name = hashlib.sha256(repr(cell).encode()).hexdigest()[:12]
    return out / f"cell-{name}-{seed}.json"


def load_scores(out: Path) -> Scores:
    """Return percent by cell and part, one number a seed, of every cell in a folder."""
    held = [json.loads(path.read_text(encoding="utf-8")) for path in out.glob("cell-*.json")]
    return gathered(held)


def gathered(held: list[dict[str, Any]]) -> Scores:
    """Return percent by cell and part, of entries with `name`, `seed` and `scores`."""
    found: Scores = {}
    for entry in sorted(held, key=lambda one: one["seed"]):
        parts = found.setdefault(entry["name"], {part: [] for part in PARTS})
        for part in PARTS:
            if part in entry["scores"]:
                parts[part].append(entry["scores"][part])
    return found


def main(
    out: Annotated[Path, typer.Option(help="folder of the cells, the table and the figure")],
    seeds: Annotated[int, typer.Option(help="seeds 0 … n − 1", min=1)] = 5,
    only: Annotated[str, typer.Option(help="cells whose name holds this; empty for all")] = "",
    slow: Annotated[bool, typer.Option(help="run LoRA's federations too, minutes each")] = True,
    reference: Annotated[
        bool, typer.Option(help="run nothing: draw what the repository keeps")
    ] = False,
) -> None:
    """Run what is missing, and write table and figure."""
    out.mkdir(parents=True, exist_ok=True)
    if reference:
        found = gathered(json.loads(REFERENCE.read_text(encoding="utf-8"))["cells"])
    else:
        _run(out, seeds, only, slow)
        found = load_scores(out)
    print(table(found, cells()))
    write_text(out / "privacy-utility.md", table(found, cells()) + "\n")
    draw(found, out)


def _run(out: Path, seeds: int, only: str, slow: bool) -> None:
    world = None
    for cell in cells():
        for seed in range(seeds):
            path = path_of(out, cell, seed)
            if only not in cell.name or path.exists() or (cell.head in SLOW and not slow):
                continue
            if world is None:
                from simulations._heads_world import load_world

                world = load_world()
            scores = evaluate(world, cell, seed)
            held = {"name": cell.name, "seed": seed, "std": cell.std, "scores": scores}
            write_text(path, json.dumps(held, indent=2) + "\n")
            typer.echo(f"seed {seed}, {cell.name}: {scores['test']:.1f}", err=True)


if __name__ == "__main__":
    typer.run(main)
