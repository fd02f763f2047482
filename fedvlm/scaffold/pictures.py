"""The pictures that a new project starts with, drawn by its own `prepare_data.py`.

That file is this one's text: what is run here is what a project gets.
"""

import json
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw

SHAPES = ("circle", "square", "triangle", "cross")
COLOURS = {
    "red": (200, 40, 40),
    "green": (40, 150, 60),
    "blue": (50, 80, 200),
    "yellow": (230, 190, 40),
    "purple": (130, 60, 160),
    "grey": (110, 110, 110),
}
SIZE, EACH = 96, 5


def draw(shape: str, colour: tuple[int, int, int], rng: np.random.Generator) -> Image.Image:
    """Return a picture of a shape somewhere on a light ground."""
    picture = Image.new("RGB", (SIZE, SIZE), tuple(rng.integers(225, 256, 3).tolist()))
    brush, r = ImageDraw.Draw(picture), float(rng.uniform(14, 28))
    x, y = (float(rng.uniform(r + 4, SIZE - r - 4)) for _ in range(2))
    box = (x - r, y - r, x + r, y + r)
    if shape == "circle":
        brush.ellipse(box, fill=colour)
    elif shape == "square":
        brush.rectangle(box, fill=colour)
    elif shape == "triangle":
        brush.polygon([(x, y - r), (x - r, y + r), (x + r, y + r)], fill=colour)
    else:
        brush.rectangle((x - r, y - r / 3, x + r, y + r / 3), fill=colour)
        brush.rectangle((x - r / 3, y - r, x + r / 3, y + r), fill=colour)
    return picture


def pairs() -> Iterator[tuple[Image.Image, str, str, str]]:
    """Yield picture, caption, domain and topic. Put your own data here.

    `domain` says who took the picture (a hospital, a device): `partition = "designer-topic"` deals
    out by it. `topic` says what it is about.
    """
    rng = np.random.default_rng(0)
    for shape in SHAPES:
        for name, colour in COLOURS.items():
            for number in range(EACH):
                yield draw(shape, colour, rng), f"a {name} {shape}", f"site-{number % 3}", shape


def write(folder: Path) -> int:
    """Write `captions.jsonl` and `images/` into a folder; returns the number of pairs."""
    (folder / "images").mkdir(parents=True, exist_ok=True)
    lines = []
    for number, (picture, caption, domain, topic) in enumerate(pairs()):
        name = f"{number:05d}.png"
        picture.save(folder / "images" / name)
        row = {"image": name, "caption": caption, "domain": domain, "topic": topic}
        lines.append(json.dumps(row))
    (folder / "captions.jsonl").write_text("\n".join(lines) + "\n", encoding="utf-8")
    return len(lines)


if __name__ == "__main__":
    sys.stdout.write(f"{write(Path(__file__).parent / 'data')} pairs\n")
