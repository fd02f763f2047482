"""The demo over several seeds: `python -m simulations.demo_seeds [--seeds N] [--out DIR]`.

Runs the demo's configuration once a seed (a seed that was run already is read from its folder),
prints mean and 95 % interval over the seeds, and writes both table and figure for the docs.
"""

from pathlib import Path
from typing import Annotated

import typer

from fedvlm.config import load_config
from fedvlm.files import write_text
from fedvlm.reporting import plot_rounds
from fedvlm.reporting.seeds import markdown as table
from simulations._page_figure import panels, save
from simulations._seeds import run_seeds

CONFIG = Path(__file__).parent / "configs" / "demo.toml"


def main(
    seeds: Annotated[int, typer.Option(help="number of seeds, at least 2")] = 3,
    runs: Annotated[Path, typer.Option(help="folder of the runs")] = Path("runs"),
    out: Annotated[Path, typer.Option(help="folder for table and figure")] = Path("docs/figures"),
) -> None:
    """Run the demo over several seeds and summarise."""
    results = run_seeds("demo", load_config(CONFIG), seeds, runs)
    text = table(results, "one of 100")
    print(text)
    write_text(out / "demo-seeds.md", text)
    figure, (ax,) = panels(1, height=4.4)
    plot_rounds(results[0], ax)
    save(figure, out / "demo-rounds.svg")


if __name__ == "__main__":
    typer.run(main)
