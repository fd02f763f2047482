"""Several seeds' results as one table: mean, and Student's 95 % interval over the seeds."""

import math
from collections.abc import Sequence
from typing import Any

from rich.table import Table

from fedvlm.federation.result import Result
from fedvlm.reporting.student import interval

ROWS = (
    ("zero-shot", "zero_shot"),
    ("local only, mean of clients", "local_only"),
    ("local only, best client", "local_only_best"),
    ("**federated**", "federated"),
    ("central", "central"),
    ("unseen domain: zero-shot", "ood_zero_shot"),
    ("unseen domain: federated", "ood_federated"),
    ("unseen domain: central", "ood_central"),
    ("concepts nobody holds: zero-shot", "withheld_zero_shot"),
    ("concepts nobody holds: federated", "withheld_federated"),
    ("public concepts: zero-shot", "retention_zero_shot"),
    ("public concepts: federated (forgetting)", "retention_federated"),
)


def percent(results: Sequence[Result], key: str) -> list[float]:
    """Return a summary's value by seed, in percent; NaN where a run has none."""
    return [math.nan if (v := one.summary.get(key)) is None else 100 * v for one in results]


def described(values: list[float]) -> str:
    """Return mean and half the width of a 95 % interval, in percent."""
    mean, _, high = interval(values)
    return f"{mean:.1f} ± {high - mean:.1f}"


def markdown(results: Sequence[Result], metric: str) -> str:
    """Return the summary over seeds as Markdown, in percent."""
    lines = [f"| {metric}, % | {' | '.join(f'seed {r.seed}' for r in results)} | mean ± 95 % |"]
    lines.append("|---|" + "--:|" * (len(results) + 1))
    for name, key in ROWS:
        values = percent(results, key)
        cells = " | ".join(f"{value:.1f}" for value in values)
        lines.append(f"| {name} | {cells} | {described(values)} |")
    return "\n".join(lines) + "\n"


def seeds_table(results: Sequence[Result], metric: str) -> Table:
    """Return the summary over seeds for a terminal; what no run has is left out."""
    table = Table(title=f"{len(results)} seeds, {metric}, %")
    table.add_column("")
    for one in results:
        table.add_column(f"seed {one.seed}", justify="right")
    table.add_column("mean ± 95 %", justify="right")
    for name, key in ROWS:
        values = percent(results, key)
        if not all(map(math.isnan, values)):
            cells = ["–" if math.isnan(value) else f"{value:.1f}" for value in values]
            table.add_row(name.strip("*"), *cells, described(values))
    return table


def seeds_summary(results: Sequence[Result]) -> dict[str, Any]:
    """Return each summary's value by seed with mean and 95 % interval, as fractions."""
    found: dict[str, Any] = {}
    for key in results[0].summary:
        values = [one.summary.get(key) for one in results]
        numbers = [float(v) for v in values if v is not None]
        if len(numbers) == len(values):
            mean, low, high = interval(numbers)
            found[key] = {"by_seed": numbers, "mean": mean, "low": low, "high": high}
    return {"seeds": [one.seed for one in results], "summary": found}
