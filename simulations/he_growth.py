"""How encrypted computation grows: width, batch, gallery. Writes a table and a plot.

`python -m simulations.he_growth --out docs/figures` measures, and `--plot-only` draws again from
the stored figures.
"""

import argparse
import json
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np

from secure.he import EncryptedGallery, HEClient, HEParams
from secure.he._residues import ResidueLayer
from secure.he.plans import ResiduePlan
from simulations._page_figure import panels, save
from simulations.benchmarks import _he_peer as peer
from simulations.benchmarks._he_peer import cpu_seconds
from simulations.benchmarks.he import FAST, SAME, layer_call, unit_rows, weights

WIDTHS = (64, 128, 256, 512, 1024)
BATCHES = (1, 4, 16, 64, 256, 1024, 4096)
GALLERIES = (1000, 3000, 10_000, 30_000, 100_000)
# Okabe and Ito's colours, told apart by every eye.
_COLOURS = {"TenSEAL matmul": "#D55E00", "same parameters": "#0072B2", "fast parameters": "#009E73"}

Point = dict[str, float]


def widths(progress: Callable[[str], None]) -> list[Point]:
    """Measure one vector through a d to d layer."""
    rng, owner, points = np.random.default_rng(0), peer.context(), []
    for width in WIDTHS:
        progress(f"width {width}")
        weight, vector = weights(rng, width, width), unit_rows(rng, 1, width)[0]
        matmul = peer.matmul(owner, weight, vector)
        same, theirs = peer.alternate(layer_call(SAME, weight), matmul, 1, 5)
        points.append(
            {
                "width": width,
                "TenSEAL matmul": theirs,
                "same parameters": same,
                "fast parameters": cpu_seconds(layer_call(FAST, weight), 5),
            }
        )
    return points


def batches(progress: Callable[[str], None]) -> list[Point]:
    """Measure a batch through 512 to 512: rotations one by one, and the residue product."""
    rng = np.random.default_rng(1)
    weight = weights(rng, 512, 512)
    each = cpu_seconds(layer_call(FAST, weight), 5)
    points = []
    for batch in BATCHES:
        progress(f"batch {batch}")
        params = HEParams.select(0, 1.0, 1e-4, batch=max(batch, 256))
        plan = ResiduePlan(params, 512, 512, batch)
        layer = ResidueLayer(plan, weight, None)
        sent = HEClient(params).encrypt(unit_rows(rng, batch, 512), plan)
        whole = cpu_seconds(lambda layer=layer, sent=sent: layer.apply(sent.pieces), 3)
        points.append({"batch": batch, "rotations": each * batch, "residue product": whole})
    return points


def galleries(progress: Callable[[str], None]) -> list[Point]:
    """Measure one query of dimension 512 against ever more items."""
    rng, points = np.random.default_rng(2), []
    client = HEClient(FAST)
    for items in GALLERIES:
        progress(f"gallery {items}")
        gallery = EncryptedGallery(unit_rows(rng, items, 512), FAST)
        keys = client.evaluation_keys(gallery.plan)
        sent = client.encrypt(unit_rows(rng, 1, 512), gallery.plan)
        result = gallery.query(sent, keys)
        seconds = cpu_seconds(
            lambda gallery=gallery, sent=sent, keys=keys: gallery.query(sent, keys), 3
        )
        points.append(
            {
                "items": items,
                "seconds": seconds,
                "download_bytes": len(result.to_bytes()),
                "key_bytes": len(keys.to_bytes()),
            }
        )
    return points


def table(figures: dict[str, list[Point]]) -> str:
    """Return the figures as Markdown tables."""
    parts = []
    for name, points in figures.items():
        columns = list(points[0])
        parts += [f"**{name}**", ""]
        parts.append("| " + " | ".join(columns) + " |")
        parts.append("| " + " | ".join("---:" for _ in columns) + " |")
        parts += ["| " + " | ".join(f"{p[c]:.4g}" for c in columns) + " |" for p in points]
        parts.append("")
    return "\n".join(parts)


def plot(figures: dict[str, list[Point]]):
    """Draw the three growths below each other; return matplotlib's figure."""
    figure, axes = panels(3)
    left = figures["one vector, d to d"]
    for (name, colour), marker in zip(_COLOURS.items(), "s^o", strict=True):
        x, y = [p["width"] for p in left], [p[name] for p in left]
        axes[0].plot(x, y, color=colour, marker=marker, label=name)
    axes[0].set(xlabel="width d", title="one vector, d to d")
    middle = figures["a batch, 512 to 512"]
    for name, colour, marker in (
        ("rotations", "#009E73", "o"),
        ("residue product", "#CC79A7", "D"),
    ):
        x, y = [p["batch"] for p in middle], [p[name] for p in middle]
        axes[1].plot(x, y, color=colour, marker=marker, label=name)
    axes[1].set(xlabel="vectors", title="a batch, 512 to 512")
    right = figures["one query, dimension 512"]
    x, y = [p["items"] for p in right], [p["seconds"] for p in right]
    axes[2].plot(x, y, color="#009E73", marker="o", label="fast parameters")
    axes[2].set(xlabel="items", title="one query, dimension 512")
    for axis in axes:
        axis.set(xscale="log", yscale="log", ylabel="server, CPU seconds")
        axis.grid(alpha=0.3)
        axis.legend(frameon=False, fontsize=8)
    return figure


def main() -> None:
    """Measure, or read what was measured, and write table and plot."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, default=Path("docs/figures"))
    parser.add_argument("--plot-only", action="store_true", help="draw from the stored figures")
    options = parser.parse_args()
    options.out.mkdir(parents=True, exist_ok=True)
    store = options.out / "he-growth.json"
    if not options.plot_only:

        def progress(text: str) -> None:
            print(text, file=sys.stderr, flush=True)

        figures = {
            "one vector, d to d": widths(progress),
            "a batch, 512 to 512": batches(progress),
            "one query, dimension 512": galleries(progress),
        }
        store.write_text(json.dumps(figures, indent=1) + "\n")
    figures = json.loads(store.read_text())
    (options.out / "he-growth.md").write_text(table(figures))
    save(plot(figures), options.out / "he-growth.svg")
    print(table(figures))


if __name__ == "__main__":
    main()
