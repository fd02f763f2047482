"""A demo over several seeds: its runs."""

import sys
from pathlib import Path

from fedvlm.config import Config
from fedvlm.federation import Result
from fedvlm.federation.seed_runs import run_seeds as run_all


def run_seeds(name: str, config: Config, seeds: int, runs: Path) -> list[Result]:
    """Run a configuration once a seed; a seed that was run already is read from its folder.

    Args:
        name: First part of the folders' names.
        config: What to run; its seed is not looked at.
        seeds: How many, at least 2.
        runs: Folder of the runs.
    """

    def told(seed: int, kept: bool) -> None:
        print(f"seed {seed}" + (": finished before" if kept else ""), file=sys.stderr, flush=True)

    def named(out: Path, seed: int) -> Path:
        return out / f"{name}-seed-{seed}"

    return run_all(config, range(seeds), runs, named=named, before=told)
