"""What it costs to adapt a model of a real size, beside the loop that one writes by hand."""

import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
from PIL import Image

from simulations.benchmarks._harness import Row, lower_is_better

_PLAIN = "transformers + peft, plain loop"
_MOST = 1_500_000_000


def _measure(**asked: object) -> dict[str, float]:
    """Measure in a process of its own."""
    command = [sys.executable, "-m", "simulations.benchmarks._models_worker", json.dumps(asked)]
    done = subprocess.run(command, capture_output=True, text=True)  # noqa: S603
    if done.returncode:
        raise RuntimeError(f"the measurement {asked} failed: {done.stderr[-2000:]}")
    return json.loads(done.stdout.splitlines()[-1])


@contextmanager
def _cache(folder: Path) -> Iterator[None]:
    """Keep the cache in a folder within this block."""
    before = os.environ.get("FEDVLM_CACHE")
    os.environ["FEDVLM_CACHE"] = str(folder)
    try:
        yield
    finally:
        if before is None:
            del os.environ["FEDVLM_CACHE"]
        else:
            os.environ["FEDVLM_CACHE"] = before


def step_rows(
    progress: Callable[[str], None], size: str = "B32", batch: int = 64, steps: int = 2,
    repeats: int = 3, threads: int = 2,
) -> list[Row]:  # fmt: skip
    """Time a local epoch of LoRA and its peak memory, by turns with the plain loop."""
    found: dict[str, list[dict[str, float]]] = {"ours": [], "peer": []}
    for turn in range(repeats):
        for what in ("ours", "peer"):
            progress(f"{what}: a local epoch, turn {turn + 1} of {repeats}")
            found[what].append(
                _measure(what=what, size=size, batch=batch, steps=steps, threads=threads)
            )
    seconds, peak = (
        {what: statistics.median(each[key] for each in runs) for what, runs in found.items()}
        for key in ("seconds", "peak")
    )
    note = f"CLIP {size}, random weights, LoRA r=16 on all linear layers, batch {batch}, float32"
    return [
        lower_is_better("step_seconds", seconds["ours"], "s", _PLAIN, seconds["peer"], note),
        lower_is_better(
            "peak_bytes", peak["ours"], "B", _PLAIN, peak["peer"], f"{note}; the whole process"
        ),
    ]


def large_batch_rows(
    progress: Callable[[str], None], size: str = "SMALL", batch: int = 512, micro: int = 32
) -> list[Row]:
    """Compare a contrastive step in pieces with the same step at once."""
    progress(f"a step of {batch} pairs at once, and {micro} at a time")
    whole = _measure(what="large", size=size, batch=batch, micro=0)
    pieces = _measure(what="large", size=size, batch=batch, micro=micro)
    apart = abs(pieces["loss"] - whole["loss"])
    turned = max(
        abs(pieces[key] - whole[key]) / max(abs(whole[key]), 1e-12) for key in ("norm", "along")
    )
    note = f"batch {batch}, {micro} at a time; beyond model and inputs"
    return [
        lower_is_better(
            "gradcache_peak_bytes", pieces["peak"], "B", "the plain batch", whole["peak"], note
        ),
        Row("gradcache_loss_difference", apart, "1", note="nats"),
        Row("gradcache_gradient_difference", turned, "1", note="norm and one projection, relative"),
        lower_is_better(
            "gradcache_step_seconds", pieces["seconds"], "s", "the plain batch", whole["seconds"]
        ),
    ]


def write_images(folder: Path, count: int, width: int, height: int) -> None:
    """Write JPEGs that differ, cut from one noisy picture, and their captions."""
    rng = np.random.default_rng(0)
    base = rng.integers(0, 256, (height // 8 + 2, width // 8 + 2, 3), dtype=np.uint8)
    big = Image.fromarray(base).resize((2 * width, 2 * height), Image.Resampling.BICUBIC)
    (folder / "images").mkdir(parents=True)
    lines = ["image,caption"]
    for number in range(count):
        x, y = int(rng.integers(0, width)), int(rng.integers(0, height))
        cut = big.crop((x, y, x + width, y + height))
        cut.putpixel((0, 0), (number % 256, number // 256 % 256, 0))
        cut.save(folder / "images" / f"{number}.jpg", quality=90)
        lines.append(f"{number}.jpg,a picture of thing {number % 997}")
    (folder / "captions.csv").write_text("\n".join(lines) + "\n")


def input_rows(progress: Callable[[str], None], count: int = 5000, image: int = 224) -> list[Row]:
    """Time an epoch's inputs when images are prepared already, and when each is decoded."""
    from transformers import CLIPImageProcessorPil

    from fedvlm.data import load_folder
    from fedvlm.models.pixels import PixelInputs

    square = {"height": image, "width": image}
    processor = CLIPImageProcessorPil(size={"shortest_edge": image}, crop_size=square)
    with tempfile.TemporaryDirectory() as name, _cache(Path(name) / "cache"):
        folder = Path(name) / "images"
        progress(f"writing {count} JPEGs")
        write_images(folder, count, 500, 375)
        data = load_folder(folder)
        rows = np.arange(count)
        inputs = PixelInputs(data, rows, processor, lambda *_: None)

        def epoch(make: Callable[[np.ndarray], object]) -> float:
            start = time.perf_counter()
            for first in range(0, count, 64):
                make(rows[first : first + 64])
            return time.perf_counter() - start

        progress("first epoch: prepared in worker processes")
        first = epoch(inputs)
        progress("second epoch, and one that decodes each image")
        second = epoch(inputs)

        def decode(part: np.ndarray) -> object:
            images = []
            for number in part:
                with Image.open(folder / "images" / f"{number}.jpg") as file:
                    images.append(file.convert("RGB"))
            return processor(images=images, return_tensors="pt")

        anew = epoch(decode)
    note = f"{count} JPEGs of 500 x 375 to {image} x {image}, batches of 64"
    return [
        lower_is_better("epoch_input_seconds", second, "s", "decoding each time", anew, note),
        lower_is_better(
            "first_epoch_input_seconds", first, "s", "decoding each time", anew, "fills the cache"
        ),
    ]


def resident_rows(
    progress: Callable[[str], None], count: int = 20_000, image: int = 224
) -> list[Row]:
    """Measure the peak memory of loading a folder and going through all of its images."""
    with tempfile.TemporaryDirectory() as name, _cache(Path(name) / "cache"):
        progress(f"writing {count} JPEGs")
        write_images(Path(name) / "images", count, 320, 240)
        progress("loading them, and an epoch over them")
        found = _measure(what="resident", folder=str(Path(name) / "images"), image_size=image)
    note = f"peak of the process, {count} images loaded and one epoch of pixels; at most 1.5 GB"
    ratio = _MOST / found["peak"]
    return [Row("resident_bytes", found["peak"], "B", "the bound", _MOST, ratio, note)]


def run(progress: Callable[[str], None]) -> list[Row]:
    """Measure all of it."""
    return [
        *step_rows(progress),
        *large_batch_rows(progress),
        *input_rows(progress),
        *resident_rows(progress),
    ]
