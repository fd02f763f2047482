"""The federation as it grows, drawn from what was measured.

    python -m simulations.benchmarks federation --json simulations/reference/federation.json
    python -m simulations.ray_scale --json simulations/reference/federation-ray.json
    python -m simulations.federation_growth --out docs/figures

Writes a table (Markdown) and a plot (SVG) of start, round and memory by the number of clients, in
one process and, where it was measured, on Ray.
"""

import json
from pathlib import Path
from typing import Annotated, Any

import typer

from simulations._page_figure import panels, save

NAME = "federation-growth"
REFERENCE = Path(__file__).parent / "reference"
PANELS = (
    ("startup_s", "startup_seconds", "start, s", 1.0),
    ("round_s", "round_seconds", "a round, s", 1.0),
    ("peak_bytes", "peak_bytes", "memory, GB", 1e9),
)
"""Field of a run on Ray, metric of the benchmark, title, unit."""


def here(rows: list[dict[str, Any]]) -> dict[int, dict[str, float]]:
    """Return what was measured in one process, by clients and then by Ray's field."""
    found: dict[int, dict[str, float]] = {}
    for field, metric, _, _ in PANELS:
        for row in rows:
            name = row["metric"]
            if name.startswith(f"{metric}_") and name.endswith("_clients"):
                clients = int(name.removeprefix(f"{metric}_").removesuffix("_clients"))
                found.setdefault(clients, {})[field] = row["value"]
    return dict(sorted(found.items()))


def table(ours: dict[int, dict[str, float]], ray: dict[int, dict[str, float]]) -> str:
    """Return both as a Markdown table."""
    lines = [
        "| clients | start, s | round, s | memory, GB | Ray: start, s | round, s | memory, GB |",
        "|--:|--:|--:|--:|--:|--:|--:|",
    ]
    for clients in sorted(ours.keys() | ray.keys()):
        cells = [f"{clients:,}"]
        for found in (ours, ray):
            for field, _, _, unit in PANELS:
                value = found.get(clients, {}).get(field)
                cells.append("–" if value is None else f"{value / unit:.3g}")
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def draw(ours: dict[int, dict[str, float]], ray: dict[int, dict[str, float]], path: Path) -> None:
    """Draw three panels, one line an engine."""
    figure, axes = panels(3, height=2.9)
    # Okabe and Ito's colours, told apart by the colour-blind, and by the marker without colour.
    lines = (("one process", ours, "#0072B2", "o"), ("Flower on Ray", ray, "#D55E00", "s"))
    for axis, (field, _, title, unit) in zip(axes, PANELS, strict=True):
        for label, found, colour, marker in lines:
            if found:
                values = [each[field] / unit for each in found.values()]
                axis.loglog(list(found), values, color=colour, marker=marker, label=label)
        axis.set_title(title)
        axis.set_xlabel("clients")
        axis.grid(alpha=0.3)
        axis.set_ylim(bottom=0.5 * min(axis.get_ylim()[0], axis.dataLim.y0))
    axes[0].legend(frameon=False, fontsize="small")
    save(figure, path)


def main(
    out: Annotated[Path, typer.Option(help="folder for the table and the plot")] = Path("."),
) -> None:
    """Draw what `simulations/reference` holds."""
    ours = here(json.loads((REFERENCE / "federation.json").read_text())["rows"])
    path = REFERENCE / "federation-ray.json"
    told = json.loads(path.read_text())["supernodes"] if path.exists() else {}
    ray = {int(clients): found for clients, found in told.items()}
    out.mkdir(parents=True, exist_ok=True)
    (out / f"{NAME}.md").write_text(table(ours, ray))
    draw(ours, ray, out / f"{NAME}.svg")


if __name__ == "__main__":
    typer.run(main)
