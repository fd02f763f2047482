"""How the cost of private inference grows with tokens, width and depth: a table and a plot.

    python -m simulations.smpc_growth [--out docs/figures]

Everything is counted by running the protocol's own code on shapes: `plan.cost` to the byte.
"""

import argparse
import sys
from dataclasses import dataclass
from pathlib import Path

from secure.smpc import Query, compile
from simulations.benchmarks._smpc_block import make

QUERY = Query("embedding")
#: Tokens, width, heads, depth: one varies at a time around a block of 50 × 384.
SWEEPS = {
    "tokens": [(n, 384, 6, 1) for n in (10, 25, 50, 100, 197)],
    "width": [(50, 64 * h, h, 1) for h in (3, 6, 9, 12)],
    "depth": [(50, 384, 6, n) for n in (1, 2, 4)],
}


@dataclass(frozen=True)
class Point:
    """The cost of one size.

    Attributes:
        tokens: Tokens.
        width: Features; the MLP has four times as many.
        depth: Blocks.
        rounds: Rounds.
        online_bytes: Of the party that sends more.
        dealer_bytes: Dealt beforehand.
    """

    tokens: int
    width: int
    depth: int
    rounds: int
    online_bytes: int
    dealer_bytes: int


def measure(tokens: int, width: int, heads: int, depth: int) -> Point:
    """Count one size."""
    model, batch = make(tokens, width, heads, 4 * width, depth)
    plan = compile(model, batch)
    cost = plan.cost(query=QUERY)
    return Point(
        tokens,
        width,
        depth,
        cost.rounds,
        max(cost.client_bytes, cost.server_bytes),
        cost.dealer_bytes,
    )


def table(points: dict[str, list[Point]]) -> str:
    """Return the points as a Markdown table."""
    lines = [
        "| tokens | width | depth | rounds | online MB a party | dealt MB |",
        "|---|---|---|---|---|---|",
    ]
    seen = set()
    for point in (each for sweep in points.values() for each in sweep):
        if (key := (point.tokens, point.width, point.depth)) not in seen:
            seen.add(key)
            lines.append(
                f"| {point.tokens} | {point.width} | {point.depth} | {point.rounds} "
                f"| {point.online_bytes / 1e6:.2f} | {point.dealer_bytes / 1e6:.1f} |"
            )
    return "\n".join(lines) + "\n"


def plot(points: dict[str, list[Point]], path: Path) -> None:
    """Draw online bytes, dealt bytes and rounds against each axis."""
    import matplotlib as mpl

    mpl.use("Agg")
    from matplotlib import pyplot as plt

    figure, axes = plt.subplots(1, 3, figsize=(11, 3.4), sharey=True)
    for axis, (name, sweep) in zip(axes, points.items(), strict=True):
        x = [getattr(point, name) for point in sweep]
        axis.plot(x, [p.online_bytes / 1e6 for p in sweep], "o-", label="online MB a party")
        axis.plot(x, [p.dealer_bytes / 1e6 for p in sweep], "s--", label="dealt MB")
        axis.plot(x, [p.rounds for p in sweep], "^:", label="rounds")
        axis.set(xlabel=name, xscale="log", yscale="log", xticks=x, xticklabels=x)
        axis.minorticks_off()
        axis.grid(visible=True, alpha=0.3)
    axes[0].legend(fontsize=8)
    figure.tight_layout()
    figure.savefig(path, dpi=120)


def main() -> int:
    """Run the command line."""
    parser = argparse.ArgumentParser(description="Cost against tokens, width and depth.")
    parser.add_argument("--out", type=Path, default=Path("docs/figures"))
    options = parser.parse_args()
    points = {}
    for name, sizes in SWEEPS.items():
        points[name] = []
        for size in sizes:
            points[name].append(measure(*size))
            print(points[name][-1], file=sys.stderr, flush=True)
    options.out.mkdir(parents=True, exist_ok=True)
    (options.out / "smpc-growth.md").write_text(table(points))
    plot(points, options.out / "smpc-growth.png")
    print(table(points))
    return 0


if __name__ == "__main__":
    sys.exit(main())
