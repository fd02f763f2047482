"""Images that were changed (corrupted, written on, stamped, recoloured) as a model's inputs."""

import hashlib
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from fedvlm.data.dataset import ImageTextData
from fedvlm.files import cache_dir, one_at_a_time, whole_file
from fedvlm.models.embedded import EmbeddedProcessor
from fedvlm.models.processor import LoadedModel
from fedvlm.models.stem import IMAGE_SIZE, WEIGHTS_SHA256, load_stem

Inputs = dict[str, Tensor]
Alter = Callable[[NDArray[np.uint8]], NDArray[np.uint8]]
_BATCH = 128


def image_side(model: LoadedModel) -> int:
    """Return the side of the square images that are altered, in pixels."""
    if isinstance(model.processor, EmbeddedProcessor):
        return IMAGE_SIZE
    found = getattr(getattr(model.processor, "image_processor", None), "size", None) or {}
    return int(found.get("height") or found.get("shortest_edge") or 224)


def altered_inputs(
    model: LoadedModel,
    name: str,
    data: ImageTextData | None,
    rows: NDArray[np.int64],
    alter: Alter,
    progress: Callable[[str, int, int], None],
) -> Inputs:
    """Prepare changed images; the embedded model's features are cached on disk.

    Args:
        model: The model whose inputs are wanted; its adapter doesn't matter.
        name: What is done to them, with every parameter and seed: part of the cache's key.
        data: Whose images; None where `alter` makes its own, of as many rows.
        rows: Shape (n,).
        alter: Takes and returns uint8 images (B, S, S, 3).
        progress: Called with (name, done, total).

    Returns:
        Inputs of n images, as `VLM.encode_image` takes them.
    """
    if not isinstance(model.processor, EmbeddedProcessor):
        images = _changed(data, rows, alter, image_side(model))
        return model.processor.pixels(  # pyright: ignore[reportAttributeAccessIssue]
            [Image.fromarray(one) for one in images]
        )
    parts = [name, data.fingerprint if data is not None else "", WEIGHTS_SHA256, str(IMAGE_SIZE)]
    digest = hashlib.sha256("\0".join(parts).encode())
    digest.update(np.ascontiguousarray(rows, dtype="<i8").tobytes())
    path = cache_dir() / "trust" / f"{digest.hexdigest()[:32]}.npy"
    with one_at_a_time(path):
        features = _kept(path, len(rows))
        if features is None:
            images = _changed(data, rows, alter, IMAGE_SIZE)
            found = []
            for at in range(0, len(images), _BATCH):
                batch = torch.from_numpy(images[at : at + _BATCH])
                found.append(load_stem()(batch).numpy().astype(np.float16))
                progress(name, at + len(batch), len(images))
            features = np.concatenate(found)
            with whole_file(path) as temporary, temporary.open("wb") as file:
                np.save(file, features)
    return {"pixel_values": torch.from_numpy(features.astype(np.float32))}


def _changed(
    data: ImageTextData | None, rows: NDArray[np.int64], alter: Alter, side: int
) -> NDArray[np.uint8]:
    if data is None:
        return alter(np.zeros((len(rows), side, side, 3), dtype=np.uint8))
    return alter(data.arrays(rows, side))


def _kept(path: Path, rows: int) -> NDArray[np.float16] | None:
    try:
        found = np.load(path, allow_pickle=False)
    except (OSError, ValueError, EOFError):
        return None  # not made yet, or broken: made anew
    return found if found.ndim == 4 and len(found) == rows else None
