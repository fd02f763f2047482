"""Make a folder of 600 small images in two classes, as somebody's own data would be.

python -m simulations.two_classes FOLDER makes it; with --seeds N it also runs the page's federation
on N splits, and prints what came out.
"""

import csv
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import typer
from PIL import Image, ImageDraw, ImageFilter

from fedvlm.config import config_from
from fedvlm.federation import simulate
from fedvlm.reporting.seeds import described

CAPTIONS = ("a smear with round cells", "a smear with crescent cells")


def draw(kind: int, rng: np.random.Generator) -> Image.Image:
    """Return an image of 96 × 96 with a few blurred cells of a kind, 0 or 1."""
    ground = tuple(int(v) for v in rng.integers(190, 250, 3))
    image = Image.new("RGB", (96, 96), ground)
    brush = ImageDraw.Draw(image)
    for _ in range(int(rng.integers(4, 9))):
        x, y, r = rng.uniform(10, 86), rng.uniform(10, 86), rng.uniform(6, 13)
        colour = (int(rng.integers(150, 220)), *(int(v) for v in rng.integers(30, 110, 2)))
        brush.ellipse((x - r, y - r, x + r, y + r), fill=colour)
        if kind == 1:
            angle, away = rng.uniform(0, 2 * np.pi), 1.3 * r
            x, y = x + away * np.cos(angle), y + away * np.sin(angle)
            brush.ellipse((x - r, y - r, x + r, y + r), fill=ground)
    noise = rng.normal(0, 30, (96, 96, 3))
    blurred = np.asarray(image.filter(ImageFilter.GaussianBlur(1.0)), dtype=np.float64)
    return Image.fromarray(np.clip(blurred + noise, 0, 255).astype(np.uint8))


def make(folder: Path, count: int = 600, seed: int = 0) -> None:
    """Write images and `captions.csv`.

    Args:
        folder: Made if it isn't there.
        count: Images, half of each class.
        seed: Decides every image.
    """
    folder.mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(seed)
    with (folder / "captions.csv").open("w", newline="", encoding="utf-8") as file:
        table = csv.writer(file)
        table.writerow(["image", "caption"])
        for number in range(count):
            name = f"{number:04d}.png"
            draw(number % 2, rng).save(folder / name)
            table.writerow([name, CAPTIONS[number % 2]])


def federation(folder: Path) -> dict[str, Any]:
    """Return the settings of five parties that sum prototypes of these images in one round."""
    return {
        "data": str(folder),
        "clients": 5,
        "partition": "iid",
        "adapter": "prototypes",
        "head_captions": "\n".join(CAPTIONS),
        "rounds": 1,
    }


def table(folder: Path, seeds: int) -> str:
    """Return as Markdown how many test images come out right, with 95 % intervals over splits."""
    private = {
        "protect": "secagg",
        "dp": "example",
        "noise": "shared",
        "delta": 1e-4,
        "min_clients": 5,
        "simulated_noise": True,
    }
    kinds = {"no DP": {}} | {f"ε = {e}": private | {"epsilon": float(e)} for e in (8, 3, 1)}
    found: dict[str, list[float]] = {"before the round": []}
    for seed in range(seeds):
        for name, settings in kinds.items():
            config = config_from(federation(folder) | settings | {"seed": seed})
            rounds = simulate(config).rounds
            found.setdefault(name, []).append(100 * rounds[-1]["test_one_of_100"])
            if not settings:
                found["before the round"].append(100 * rounds[0]["test_one_of_100"])
    lines = ["| | right, % |", "|---|---|"]
    lines += [f"| {name} | {described(values)} |" for name, values in found.items()]
    return "\n".join(lines) + "\n"


def main(
    folder: Annotated[Path, typer.Argument(help="folder to make")],
    seeds: Annotated[int, typer.Option(help="splits to measure on, 0 for none")] = 0,
) -> None:
    """Make the folder, and measure on it where asked to."""
    make(folder)
    if seeds:
        print(table(folder, seeds))


if __name__ == "__main__":
    typer.run(main)
