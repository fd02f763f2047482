"""What every benchmark shares: a row with its peer, the machine, timing, table and JSON."""

import json
import os
import platform
import statistics
import sys
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path

from rich.console import Console
from rich.table import Table


@dataclass(frozen=True)
class Row:
    """One metric of this library beside the peer's, both measured in this run.

    Attributes:
        metric: Name, with its unit where it has one (`client_mask_seconds`).
        value: This library's figure.
        unit: `s`, `B`, `bits`, `1` for a plain number.
        peer: What was measured beside it, or None where there is no peer.
        peer_value: The peer's figure in the same run, or None.
        ratio: Over 1 means that this library is better; None without a peer.
        note: How it was measured, where the name doesn't say it.
    """

    metric: str
    value: float
    unit: str
    peer: str | None = None
    peer_value: float | None = None
    ratio: float | None = None
    note: str = ""


def lower_is_better(
    metric: str, value: float, unit: str, peer: str, peer_value: float, note: str = ""
) -> Row:
    """Build a row for a cost (seconds, bytes, error): ratio = peer / ours."""
    return Row(metric, value, unit, peer, peer_value, peer_value / value if value else None, note)


def higher_is_better(
    metric: str, value: float, unit: str, peer: str, peer_value: float, note: str = ""
) -> Row:
    """Build a row for a merit (power, refusals): ratio = ours / peer's."""
    return Row(
        metric, value, unit, peer, peer_value, value / peer_value if peer_value else None, note
    )


def median_seconds(work: Callable[[], object], repeats: int = 5, warmup: int = 1) -> float:
    """Return the median wall time of `work` in seconds over `repeats` calls."""
    for _ in range(warmup):
        work()
    times = []
    for _ in range(repeats):
        start = time.perf_counter()
        work()
        times.append(time.perf_counter() - start)
    return statistics.median(times)


def machine() -> dict:
    """Describe the machine without naming it."""
    return {
        "processor": platform.machine(),
        "cores": os.cpu_count(),
        "python": platform.python_version(),
        "system": platform.system(),
    }


def _ratio(value: float) -> str:
    return f"{value:.2f}" if value < 1e6 else f"{value:.2g}"


def show(name: str, rows: list[Row]) -> None:
    """Print the rows as a table."""
    table = Table(title=f"{name}: this library beside its peer (ratio over 1 is better)")
    for column in ("metric", "value", "unit", "peer", "peer value", "ratio", "note"):
        table.add_column(column, overflow="fold", no_wrap=column == "metric")
    for row in rows:
        table.add_row(
            row.metric,
            f"{row.value:.4g}",
            row.unit,
            row.peer or "–",
            "–" if row.peer_value is None else f"{row.peer_value:.4g}",
            "–" if row.ratio is None else _ratio(row.ratio),
            row.note,
        )
    width = None if sys.stdout.isatty() else 160
    Console(width=width).print(table)


def write_json(path: Path, rows: list[Row]) -> None:
    """Write the rows and the machine to `path`, whole or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    text = json.dumps({"machine": machine(), "rows": [asdict(row) for row in rows]}, indent=2)
    partial = path.with_suffix(path.suffix + ".partial")
    partial.write_text(text + "\n")
    partial.replace(path)
