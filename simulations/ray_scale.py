"""Flower's own simulation as it grows: `python -m simulations.ray_scale [--json FILE]`.

`flwr run .` on Ray with 10, 100 and 1,000 SuperNodes, up to 50 of them asked in a round. Minutes
long and gigabytes large: run by hand, with what it found kept in `simulations/reference`.
"""

import json
import sys
from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer

from simulations.benchmarks._federation_runs import on_flower
from simulations.benchmarks._harness import machine
from simulations.benchmarks.federation import SIZES, grown


def main(
    json_file: Annotated[Path | None, typer.Option("--json", help="write what was found")] = None,
    sizes: Annotated[str, typer.Option(help="numbers of SuperNodes")] = ",".join(map(str, SIZES)),
) -> None:
    """Run each size once and print start, round and memory."""
    found = {}
    for size in map(int, sizes.split(",")):
        told = on_flower(grown(size), size)
        found[str(size)] = asdict(told)
        print(
            f"{size} SuperNodes: start {told.startup_s:.0f} s, round {told.round_s:.1f} s, "
            f"{told.peak_bytes / 1e9:.2f} GB in all processes",
            file=sys.stderr,
            flush=True,
        )
        if json_file is not None:
            text = json.dumps({"machine": machine(), "supernodes": found}, indent=1)
            json_file.parent.mkdir(parents=True, exist_ok=True)
            json_file.write_text(text + "\n")


if __name__ == "__main__":
    typer.run(main)
