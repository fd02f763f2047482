"""What one protected sum is worth: heads on frozen features under DP, beside their control.

    python -m simulations.head_utility --out runs/head-utility

Each cell leaves one JSON file, and what is there is not run again. Noise is simulated: an
experiment, of which nothing is released. Table and figure are made from the files alone.
"""

import hashlib
import json
from pathlib import Path
from typing import Annotated

import typer
from matplotlib.axes import Axes

from fedvlm.files import write_text
from simulations._heads_cells import Cell, cells, evaluate
from simulations._student import interval

PARTS = ("test", "ood", "withheld")
Scores = dict[str, dict[str, list[float]]]


def _path(out: Path, cell: Cell, seed: int) -> Path:
    name = hashlib.sha256(repr(cell).encode()).hexdigest()[:12]
    return out / f"cell-{name}-{seed}.json"


def load_scores(out: Path) -> Scores:
    """Return percent by cell and part, one number a seed, of every cell in a folder."""
    found: Scores = {}
    for path in sorted(out.glob("cell-*.json"), key=lambda p: int(p.stem.rsplit("-", 1)[1])):
        held = json.loads(path.read_text(encoding="utf-8"))
        parts = found.setdefault(held["name"], {part: [] for part in PARTS})
        for part in PARTS:
            parts[part].append(held["scores"][part])
    return found


def table(scores: Scores) -> str:
    """Return a Markdown table, in percent, ± half of a 95 % interval over seeds."""
    lines = ["| | test | unseen designer | concepts nobody holds |", "|---|---|---|---|"]
    for cell in cells():
        if cell.name not in scores:
            continue
        texts = []
        for part in PARTS:
            mean, _, high = interval(scores[cell.name][part])
            texts.append(f"{mean:.1f} ± {high - mean:.1f}")
        lines.append(f"| {cell.name} | {' | '.join(texts)} |")
    return "\n".join(lines)


def plot(scores: Scores, ax: Axes) -> Axes:
    """Draw one of 100 over ε at δ = 10⁻³: who noises decides."""
    places = {"8": 0, "3": 1, "1": 2}
    looks = {
        "prototypes, one noise": ("#0072b2", "o", "prototypes, one noise"),
        "prototypes, planned for 6 of 10": ("#56b4e9", "s", "… planned for 6 of 10"),
        "prototypes, each alone": ("#999999", "v", "… each client alone"),
        "head, one noise": ("#009e73", "D", "linear head, one noise"),
    }
    for name, style in (("zero-shot", ":"), ("public-only control", "--")):
        if name in scores:
            mean, low, high = interval(scores[name]["test"])
            ax.axhline(mean, color="#d55e00", linestyle=style, label=f"{name}, {mean:.1f}")
            ax.axhspan(low, high, color="#d55e00", alpha=0.12, linewidth=0)
    for shift, (prefix, (colour, marker, label)) in enumerate(looks.items()):
        at, means, ends = [], [], []
        for epsilon, place in places.items():
            name = f"{prefix}, ε = {epsilon}" + (", δ = 0.001" if "one noise" in prefix else "")
            if name not in scores:
                continue
            mean, low, high = interval(scores[name]["test"])
            at.append(place + 0.06 * (shift - 1.5))
            means.append(mean)
            ends.append((mean - low, high - mean))
        if at:
            error = [list(side) for side in zip(*ends, strict=True)]
            ax.errorbar(at, means, error, color=colour, marker=marker, capsize=3, label=label)
    ax.set_xticks(range(3), [f"ε = {epsilon}" for epsilon in places])
    ax.set_ylabel("caption is first among 100, %")
    ax.set_ylim(0, None)
    ax.legend(fontsize="small", loc="upper right")
    return ax


def main(
    out: Annotated[Path, typer.Option(help="folder of the cells, the table and the figure")],
    seeds: Annotated[int, typer.Option(help="seeds 0 … n − 1", min=1)] = 5,
    only: Annotated[str, typer.Option(help="cells whose name holds this; empty for all")] = "",
) -> None:
    """Run what is missing, and write table and figure."""
    import matplotlib.pyplot as plt

    out.mkdir(parents=True, exist_ok=True)
    world = None
    for cell in cells():
        for seed in range(seeds):
            path = _path(out, cell, seed)
            if only not in cell.name or path.exists():
                continue
            if world is None:
                from simulations._heads_world import load_world

                world = load_world()
            scores = evaluate(world, cell, seed)
            held = {"name": cell.name, "seed": seed, "std": cell.std, "scores": scores}
            write_text(path, json.dumps(held, indent=2) + "\n")
            typer.echo(f"seed {seed}, {cell.name}: {scores['test']:.1f}", err=True)
    found = load_scores(out)
    print(table(found))
    write_text(out / "head-utility.md", table(found) + "\n")
    figure, ax = plt.subplots(figsize=(6.5, 3.8), layout="constrained")
    plot(found, ax)
    figure.savefig(out / "head-utility.svg")
    figure.savefig(out / "head-utility.png", dpi=110)
    plt.close(figure)


if __name__ == "__main__":
    typer.run(main)
