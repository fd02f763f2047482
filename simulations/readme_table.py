"""The README's tables, from what the repository keeps: `python -m simulations.readme_table`.

What protections buy and cost is that of `fedvlm compare` where the repository keeps one
(`simulations/reference/compare-quick.json`), and else the demo's over three seeds; the peers' are
those of `python -m simulations.benchmarks NAME --json simulations/reference/NAME.json`.
"""

import json
import re
from importlib.metadata import version
from pathlib import Path
from typing import Annotated

import typer

from fedvlm.compare.show import lines_of, text_of
from fedvlm.files import write_text
from fedvlm.reporting.comparison import Cell, Column, Comparison

ROOT = Path(__file__).parent.parent
COMPARISON = ROOT / "simulations" / "reference" / "compare-quick.json"
DEMO = ROOT / "docs" / "figures" / "demo-seeds.md"
BLOCK = re.compile(r"(<!-- table: begin -->\n).*?(<!-- table: end -->)", re.DOTALL)
# The part of the columns that a README has room for.
_COLUMNS = ("accuracy", "gain_kept", "auc_V1", "auc_V4", "epsilon", "upload_bytes")
_LATER = "not measured yet"
_REST = "Other columns, rows that can't be and why: [what each protection buys](docs/compare.md)."
PEERS = re.compile(r"(<!-- peers: begin -->\n).*?(<!-- peers: end -->)", re.DOTALL)
# What is said of each peer: benchmark, its metrics, words, the peer and what of it.
_BESIDE = (
    ("aggregation", ("client_mask_seconds",), "masking 10⁶ parameters, seconds", "flwr", "SecAgg+"),
    ("aggregation", ("attacks_refused",), "attacks refused", "flwr", "SecAgg+"),
    (
        "smpc",
        # Its seconds over loopback were 5.7 times ours on one day and 29 on another: no figure.
        ("rounds", "online_bytes_per_party"),
        "one ViT-B/32 block between two parties: rounds, bytes",
        "crypten",
        "",
    ),
    (
        "he",
        ("linear_512_512_seconds",),
        "encrypted 512 → 512, the same parameters, seconds",
        "tenseal",
        "",
    ),
    (
        "he",
        ("gallery_10k_seconds",),
        "encrypted search of 10,000 items, seconds",
        "tenseal",
        "",
    ),
    (
        "privacy",
        ("dpsgd_step_seconds", "dpsgd_step_peak_bytes"),
        "DP-SGD step: seconds, peak bytes",
        "opacus",
        "the best mode for each",
    ),
    ("leakage", ("shadow_training_cpu_seconds",), "64 shadow adapters, CPU seconds", "", ""),
)
_NAMED = {"flwr": "Flower", "crypten": "CrypTen", "tenseal": "TenSEAL", "opacus": "Opacus"}
_DEMO_ROWS = ("zero-shot", "local only, mean of clients", "**federated**", "central")


def of_comparison(found: Comparison) -> str:
    """Return a comparison's rows, in the README's columns."""
    columns = [column for key in _COLUMNS for column in found.columns if column.key == key]
    several = len({row.adapter for row in found.rows}) > 1
    lines = [
        f"| protection | {' | '.join(column.title for column in columns)} |",
        "|---|" + "--:|" * len(columns),
    ]
    for row in found.rows:
        first = row.cells.get(_COLUMNS[0])
        if first is None or first.failed:
            continue  # what can't be or isn't there yet has its reason on the page
        name = f"{row.name}, {row.adapter}" if several else row.name
        cells = [_short(row.cells.get(column.key), column) for column in columns]
        lines.append(f"| {name} | {' | '.join(cells)} |")
    told = "; ".join(line.rstrip(".") for line in lines_of(found))
    return "\n".join([*lines, "", f"`{found.command}`: {told}. {_REST}"]) + "\n"


def _short(cell: Cell | None, column: Column) -> str:
    """Return a cell's text; a dash where the grid hasn't come to it yet."""
    return "–" if cell is not None and cell.failed.startswith(_LATER) else text_of(cell, column)


def of_demo(table: str) -> str:
    """Return some rows of the demo's table over seeds: names and means."""
    rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in table.splitlines()]
    held = {row[0]: row[-1] for row in rows}
    lines = ["| image → caption, one of 100, % | mean ± 95 % over three seeds |", "|---|--:|"]
    lines += [f"| {name} | {held[name]} |" for name in _DEMO_ROWS]
    return "\n".join([*lines, "", "(`python -m simulations.demo_seeds` printed it.)"]) + "\n"


def block() -> str:
    """Return what stands in the README between the two marks."""
    if COMPARISON.exists():
        return of_comparison(Comparison.load(COMPARISON))
    return of_demo(DEMO.read_text(encoding="utf-8"))


def peers() -> str:
    """Return the table of peers, from the kept benchmarks."""
    lines = ["| | peer | ratio |", "|---|---|--:|"]
    for name, metrics, words, package, mode in _BESIDE:
        path = ROOT / "simulations" / "reference" / f"{name}.json"
        rows = json.loads(path.read_text(encoding="utf-8"))["rows"]
        found = [next(row for row in rows if row["metric"] == metric) for metric in metrics]
        ratios = ", ".join(f"{row['ratio']:.3g}" for row in found)
        peer = f"{_NAMED[package]} {version(package)}" if package else "one by one"
        lines.append(f"| {words} | {', '.join(filter(None, (peer, mode)))} | {ratios} |")
    return "\n".join(lines) + "\n"


def main(
    path: Annotated[Path, typer.Argument(help="the README")] = ROOT / "README.md",
) -> None:
    """Put the tables in."""
    text = path.read_text(encoding="utf-8")
    text = BLOCK.sub(lambda match: match[1] + block() + match[2], text)
    write_text(path, PEERS.sub(lambda match: match[1] + peers() + match[2], text))


if __name__ == "__main__":
    typer.run(main)
