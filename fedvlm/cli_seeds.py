"""`fedvlm simulate --seeds 0,1,2`: one folder a seed, and what holds over them."""

import json
import sys
from pathlib import Path
from typing import Any

import typer

from fedvlm.config import Config
from fedvlm.errors import ConfigError
from fedvlm.files import write_text
from fedvlm.progress import progress_bars

FILE = "seeds.json"


def simulate_seeds(
    config: Config, seeds: str, out: Path | None, resume: bool, overwrite: bool, as_json: bool
) -> None:
    """Run a configuration over seeds, and print their mean with Student's 95 % interval.

    Args:
        config: What to run.
        seeds: Whole numbers by commas.
        out: Folder with a folder for each seed; None keeps nothing.
        resume: Read what is finished and go on with what was stopped.
        overwrite: Run all anew.
        as_json: Whether to print JSON.

    Raises:
        ConfigError: Fewer than 2 seeds, or a folder holds a run and nothing says what of it.
    """
    from fedvlm.compare.spec import parse_seeds
    from fedvlm.federation.lines import simulated_line
    from fedvlm.federation.seed_runs import folder_of, run_seeds
    from fedvlm.federation.simulation import simulate
    from fedvlm.reporting.seeds import seeds_summary, seeds_table
    from fedvlm.reporting.tables import METRICS

    numbers = parse_seeds(seeds)
    for seed in numbers if out is not None else ():
        folder = folder_of(Path(str(out)), seed)
        if (folder / "checkpoint.npz").exists():
            if overwrite:
                (folder / "checkpoint.npz").unlink()
                (folder / "result.json").unlink(missing_ok=True)
            elif not resume:
                raise ConfigError(
                    f"{folder} holds a run; --resume reads it, or goes on with it, and "
                    "--overwrite replaces it"
                )

    def say(text: str) -> None:
        typer.echo(text, err=True)

    with progress_bars() as progress:

        def on_round(entry: dict[str, Any]) -> None:
            say(simulated_line(entry, config))
            progress("rounds", entry["round"], config.training.rounds)

        results = run_seeds(
            config,
            numbers,
            out,
            run=simulate,
            before=lambda seed, kept: say(f"seed {seed}" + (": finished before" if kept else "")),
            progress=progress,
            on_round=on_round,
        )
    told = seeds_summary(results)
    if out is not None:
        write_text(out / FILE, json.dumps(told, indent=2) + "\n")
    if as_json:
        typer.echo(json.dumps(told, indent=2))
        return
    from rich.console import Console

    console = Console(width=None if sys.stdout.isatty() else 120)
    console.print(seeds_table(results, METRICS[results[0].metric]))
    if out is not None:
        console.print(f"saved: {out / FILE}, and a folder for each seed")
