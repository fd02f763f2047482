"""Three sites with images of their own, and what a test of a federation between them needs."""

import csv
from pathlib import Path

import numpy as np

from fedvlm.config import to_run_config
from fedvlm.data import load_emoji
from fedvlm.federation.client_app import app
from fedvlm.federation.grid import InProcessGrid
from fedvlm.federation.run import run_federation
from fedvlm.federation.task import load_own_task

PAIRS = 150


def write_sites(folders: list[Path], pairs: int = PAIRS) -> None:
    """Write each folder images and captions of one designer's own, private concepts only."""
    data = load_emoji()
    rng = np.random.default_rng(5)
    names = [n for n in range(len(data.domain_names)) if data.domain_names[n] != data.ood_domain]
    concepts = rng.permutation(np.unique(data.concepts[~data.public]))[:pairs]
    for number, folder in enumerate(folders):
        domain = names[number % len(names)]
        mine = (data.domains == domain) & ~data.public & np.isin(data.concepts, concepts)
        (folder / "images").mkdir(parents=True, exist_ok=True)
        rows = []
        for row in np.flatnonzero(mine):
            name = f"{row}.png"
            (folder / "images" / name).write_bytes(data.encoded[row])
            rows.append([name, data.captions[row]])
        with (folder / "captions.csv").open("w", newline="") as file:
            csv.writer(file).writerows([["image", "caption"], *rows])


def simulated(config, nodes: list[Path], out: Path):
    """Run the same federation in this process over the same nodes' files."""
    grid = InProcessGrid(app, len(nodes), to_run_config(config), 1)
    for path, context in zip(nodes, grid.contexts.values(), strict=True):
        context.node_config = {"node": str(path)}
    result = run_federation(grid, config, out=out)
    return result, grid


def held_out(config, data: Path, vector: np.ndarray | None) -> float:
    """Return one-of-100 on what a node holds out, with an adapter or without."""
    task = load_own_task(config, data, "embedded")
    task.view.write(task.initial if vector is None else vector)
    return task.evaluator(task.model.vlm)["test_one_of_100"]
