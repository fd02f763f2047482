"""How the cost of private inference grows with tokens, width and depth: a table and a plot.

    python -m simulations.smpc_growth [--out docs/figures]

Rounds and bytes are those of `plan.cost`, which counts them by running the protocol's own code on
shapes. Seconds are measured: both parties in this process, no network, the best of three runs,
beside what `plan.cost` predicts for the arithmetic.
"""

import argparse
import json
import sys
from dataclasses import asdict, dataclass
from pathlib import Path

import torch

from secure.smpc import Query, compile, infer
from simulations._page_figure import panels, save
from simulations.benchmarks._smpc_block import make

QUERY = Query("embedding")
RUNS = 3
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
        seconds: Measured online seconds, without a network.
        predicted_seconds: The same, as `plan.cost` predicted them.
    """

    tokens: int
    width: int
    depth: int
    rounds: int
    online_bytes: int
    dealer_bytes: int
    seconds: float
    predicted_seconds: float


def measure(tokens: int, width: int, heads: int, depth: int) -> Point:
    """Count and time one size."""
    model, batch = make(tokens, width, heads, 4 * width, depth)
    plan = compile(model, batch)
    cost = plan.cost(query=QUERY)
    runs = [infer(plan, {"features": batch[:1]}, QUERY).seconds for _ in range(RUNS)]
    return Point(
        tokens,
        width,
        depth,
        cost.rounds,
        max(cost.client_bytes, cost.server_bytes),
        cost.dealer_bytes,
        min(runs),
        cost.compute_s,
    )


def table(points: dict[str, list[Point]]) -> str:
    """Return the points as a Markdown table."""
    lines = [
        "| tokens | width | depth | rounds | online MB a party | dealt MB | seconds | predicted |",
        "|--:|--:|--:|--:|--:|--:|--:|--:|",
    ]
    seen = set()
    for point in (each for sweep in points.values() for each in sweep):
        if (key := (point.tokens, point.width, point.depth)) not in seen:
            seen.add(key)
            lines.append(
                f"| {point.tokens} | {point.width} | {point.depth} | {point.rounds} "
                f"| {point.online_bytes / 1e6:.2f} | {point.dealer_bytes / 1e6:.1f} "
                f"| {point.seconds:.3f} | {point.predicted_seconds:.3f} |"
            )
    return "\n".join(lines) + "\n"


def plot(points: dict[str, list[Point]]):
    """Draw bytes and seconds against each axis; return matplotlib's figure."""
    figure, axes = panels(2 * len(points), height=2.5)
    for place, (name, sweep) in enumerate(points.items()):
        x = [getattr(point, name) for point in sweep]
        above, below = axes[2 * place], axes[2 * place + 1]
        above.plot(x, [p.dealer_bytes / 1e6 for p in sweep], "s-", color="#D55E00", label="dealt")
        above.plot(
            x, [p.online_bytes / 1e6 for p in sweep], "o-", color="#0072B2", label="online, a party"
        )
        below.plot(x, [p.seconds for p in sweep], "o-", color="#009E73", label="measured")
        below.plot(
            x, [p.predicted_seconds for p in sweep], "x--", color="#CC79A7", label="plan.cost"
        )
        below.set(xlabel=name)
        for axis in (above, below):
            axis.set(xscale="log", yscale="log")
            axis.set_xticks(x, [str(each) for each in x])
            axis.minorticks_off()
            axis.grid(visible=True, alpha=0.3)
            axis.legend(frameon=False)
        above.set(xlabel=name, ylabel="MB")
        below.set_ylabel("seconds")
    return figure


def main() -> None:
    """Measure, or read what was measured, and write table and plot."""
    parser = argparse.ArgumentParser(description="Cost against tokens, width and depth.")
    parser.add_argument("--out", type=Path, default=Path("docs/figures"))
    parser.add_argument("--plot-only", action="store_true", help="draw from the stored figures")
    options = parser.parse_args()
    options.out.mkdir(parents=True, exist_ok=True)
    store = options.out / "smpc-growth.json"
    if not options.plot_only:
        torch.set_num_threads(1)
        found: dict[str, list[dict]] = {}
        for name, sizes in SWEEPS.items():
            found[name] = []
            for size in sizes:
                found[name].append(asdict(measure(*size)))
                print(found[name][-1], file=sys.stderr, flush=True)
        store.write_text(json.dumps(found, indent=1) + "\n")
    stored = json.loads(store.read_text())
    points = {name: [Point(**each) for each in sweep] for name, sweep in stored.items()}
    (options.out / "smpc-growth.md").write_text(table(points))
    save(plot(points), options.out / "smpc-growth.svg")
    print(table(points))


if __name__ == "__main__":
    main()
