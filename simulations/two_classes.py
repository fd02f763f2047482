"""Make a folder of 600 small images in two classes, as somebody's own data would be.

python -m simulations.two_classes FOLDER
"""

import csv
from pathlib import Path
from typing import Annotated

import numpy as np
import typer
from PIL import Image, ImageDraw, ImageFilter

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


def main(folder: Annotated[Path, typer.Argument(help="folder to make")]) -> None:
    """Make the folder."""
    make(folder)


if __name__ == "__main__":
    typer.run(main)
