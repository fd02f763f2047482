"""What a page's reader has before the first line: images, a folder of data, a finished run."""

import shutil
import sys
from pathlib import Path

from tests.docs.pages import ROOT
from tests.fedvlm.conftest import COLOURS, SHAPES, STYLES, draw, save_tiny_model

SMALL = {"clients": 2, "partition": "iid", "rounds": 1, "local_epochs": 1, "references": "false"}


def my_data(folder: Path) -> None:
    """18 concepts by three designers, as a folder with images and a table."""
    (folder / "images").mkdir(parents=True)
    rows = ["image,caption,domain,topic,sex,scanner"]
    for colour in COLOURS:
        for shape in SHAPES:
            for style in STYLES:
                name = f"{colour}-{shape}-{style}.png"
                (folder / "images" / name).write_bytes(draw(colour, shape, style, size=48))
                sex = "f" if colour in COLOURS[:3] else "m"
                rows.append(f"{name},a {colour} {shape},{style},{shape},{sex},{style}")
    (folder / "captions.csv").write_text("\n".join(rows) + "\n", encoding="utf-8")


def photo(path: Path) -> None:
    path.write_bytes(draw("red", "circle", "filled", size=48))


def gallery(path: Path) -> None:
    """500 unit rows of 64 numbers."""
    import numpy as np

    rows = np.random.default_rng(0).standard_normal((500, 64))
    np.save(path, rows / np.linalg.norm(rows, axis=1, keepdims=True))


def run(folder: Path, **settings: object) -> None:
    """A run of one round on the small folder, which lies beside it."""
    import fedvlm

    data = folder.parent.parent / "my-data"
    if not data.exists():
        my_data(data)
    config = fedvlm.config_from(SMALL | {"data": str(data)} | settings)
    fedvlm.simulate(config, out=folder)


def tiny_run(folder: Path) -> None:
    """A run whose base model is a tiny CLIP in `base-model`."""
    base = folder.parent.parent / "base-model"
    save_tiny_model("clip", base)
    run(folder, model=str(base), batch_size=8)


MAKERS = {
    "my-data": my_data,
    "my-new-data": my_data,
    "photo.png": photo,
    "other.jpg": photo,
    "gallery.npy": gallery,
    "runs/mine": tiny_run,
}


def give(names: list[str], folder: Path) -> None:
    """Make what a page takes for granted; `clone` is the repository's own folders."""
    for name in names:
        if name == "clone":
            for part in ("simulations", "docs", "Makefile"):
                (folder / part).symlink_to(ROOT / part)
            continue
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        MAKERS[name](path)


def programs() -> str:
    """Return the folder of this interpreter's programs."""
    found = shutil.which("fedvlm", path=str(Path(sys.executable).parent))
    return str(Path(found or sys.executable).parent)
