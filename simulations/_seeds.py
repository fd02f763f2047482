"""A demo over several seeds: its runs, and the table of its summary."""

import math
import sys
from pathlib import Path

import typer

from fedvlm.config import Config, config_from
from fedvlm.federation import Result, simulate
from fedvlm.reporting.student import interval

ROWS = (
    ("zero-shot", "zero_shot"),
    ("local only, mean of clients", "local_only"),
    ("local only, best client", "local_only_best"),
    ("**federated**", "federated"),
    ("central", "central"),
    ("unseen designer: zero-shot", "ood_zero_shot"),
    ("unseen designer: federated", "ood_federated"),
    ("unseen designer: central", "ood_central"),
    ("concepts nobody holds: zero-shot", "withheld_zero_shot"),
    ("concepts nobody holds: federated", "withheld_federated"),
    ("public concepts: zero-shot", "retention_zero_shot"),
    ("public concepts: federated (forgetting)", "retention_federated"),
)


def run_seeds(name: str, config: Config, seeds: int, runs: Path) -> list[Result]:
    """Run a configuration once a seed; a seed that was run already is read from its folder.

    Args:
        name: First part of the folders' names.
        config: What to run; its seed is not looked at.
        seeds: How many, at least 2.
        runs: Folder of the runs.
    """
    if seeds < 2:
        raise typer.BadParameter("an interval needs at least 2 seeds")
    results = []
    for seed in range(seeds):
        folder = runs / f"{name}-seed-{seed}"
        wanted = config_from({"seed": seed}, config)
        if (folder / "result.json").exists():
            held = config_from(Result.load(folder).config)
            if config_from({"workers": wanted.server.workers}, held) == wanted:
                results.append(Result.load(folder))
                continue
        print(f"seed {seed}", file=sys.stderr, flush=True)
        results.append(simulate(wanted, out=folder))
    return results


def percent(results: list[Result], key: str) -> list[float]:
    """Return a summary's value by seed, in percent; NaN where a run has none."""
    return [math.nan if (v := one.summary.get(key)) is None else 100 * v for one in results]


def described(values: list[float]) -> str:
    """Return mean and half the width of a 95 % interval, in percent."""
    mean, _, high = interval(values)
    return f"{mean:.1f} ± {high - mean:.1f}"


def table(results: list[Result], metric: str) -> str:
    """Return the summary over seeds as Markdown, in percent."""
    lines = [f"| {metric}, % | {' | '.join(f'seed {r.seed}' for r in results)} | mean ± 95 % |"]
    lines.append("|---|" + "--:|" * (len(results) + 1))
    for name, key in ROWS:
        values = percent(results, key)
        cells = " | ".join(f"{value:.1f}" for value in values)
        lines.append(f"| {name} | {cells} | {described(values)} |")
    return "\n".join(lines) + "\n"
