"""The demo over several seeds: `python -m simulations.demo_seeds [--seeds N] [--out DIR]`.

Runs the demo's configuration once a seed (a seed that was run already is read from its folder),
prints mean and 95 % interval over the seeds, and writes both table and figure for the docs.
"""

import math
import sys
from pathlib import Path
from typing import Annotated

import typer

from fedvlm.config import config_from, load_config
from fedvlm.federation import Result, simulate
from fedvlm.files import whole_file, write_text
from fedvlm.reporting import plot_rounds
from simulations._student import interval

CONFIG = Path(__file__).parent / "configs" / "demo.toml"
_ROWS = (
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


def table(results: list[Result]) -> str:
    """Return the summary over seeds as Markdown, in percent."""
    seeds = [str(result.seed) for result in results]
    lines = [f"| one of 100, % | {' | '.join(f'seed {s}' for s in seeds)} | mean ± 95 % |"]
    lines.append("|---|" + "--:|" * (len(seeds) + 1))
    for name, key in _ROWS:
        values = [100 * (result.summary[key] or math.nan) for result in results]
        mean, _, high = interval(values)
        cells = " | ".join(f"{value:.1f}" for value in values)
        lines.append(f"| {name} | {cells} | {mean:.1f} ± {high - mean:.1f} |")
    return "\n".join(lines) + "\n"


def main(
    seeds: Annotated[int, typer.Option(help="number of seeds, at least 2")] = 3,
    runs: Annotated[Path, typer.Option(help="folder of the runs")] = Path("runs"),
    out: Annotated[Path, typer.Option(help="folder for table and figure")] = Path("docs/figures"),
) -> None:
    """Run the demo over several seeds and summarise."""
    if seeds < 2:
        raise typer.BadParameter("an interval needs at least 2 seeds")
    results = []
    for seed in range(seeds):
        folder = runs / f"demo-seed-{seed}"
        config = config_from({"seed": seed}, load_config(CONFIG))
        if (folder / "result.json").exists() and (
            config_from({"workers": 0}, config_from(Result.load(folder).config)) == config
        ):
            results.append(Result.load(folder))
        else:
            print(f"seed {seed}", file=sys.stderr, flush=True)
            results.append(simulate(config, out=folder))
    text = table(results)
    print(text)
    write_text(out / "demo-seeds.md", text)
    figure = plot_rounds(results[0]).figure
    with whole_file(out / "demo-rounds.png") as temporary:
        figure.savefig(temporary, format="png", dpi=120)  # pyright: ignore


if __name__ == "__main__":
    typer.run(main)
