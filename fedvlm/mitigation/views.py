"""Views of an image in which one attribute changed: a drawing's palette, by recolouring."""

from collections.abc import Callable

import numpy as np
import torch
from numpy.typing import NDArray

from fedvlm.data.dataset import ImageTextData
from fedvlm.data.emoji import quiet
from fedvlm.errors import ConfigError, DataError
from fedvlm.models.altered import altered_inputs
from fedvlm.models.processor import ImageInputs, LoadedModel

PALETTE: dict[str, tuple[int, int, int]] = {
    "light": (247, 222, 206),
    "medium-light": (243, 210, 162),
    "medium": (213, 171, 136),
    "medium-dark": (175, 126, 87),
    "dark": (124, 83, 62),
}
"""What the default yellow becomes; brightness within a drawing is kept in proportion."""
_YELLOW = (255, 205, 80)
_HUES = (36.0, 58.0)
_LEAST_SATURATION = 0.35


def recoloured(images: NDArray[np.uint8], tone: str) -> NDArray[np.uint8]:
    """Recolour what is drawn in the default yellow; all else stays.

    A counterfactual that needs no drawings of others: what a client can make of its own images.
    Everything of that yellow changes, a banana too.

    Args:
        images: Shape (B, H, W, 3), uint8.
        tone: A name in `PALETTE`.

    Returns:
        Shape (B, H, W, 3), uint8.

    Raises:
        DataError: An unknown tone, or arrays that are no such images.
    """
    if tone not in PALETTE or images.ndim != 4 or images.shape[-1] != 3:
        raise DataError(f"need images (B, H, W, 3) and one of {', '.join(PALETTE)}; got {tone!r}")
    found = images.astype(np.float64)
    high, low = found.max(axis=-1), found.min(axis=-1)
    spread = np.maximum(high - low, 1e-9)
    red, green, blue = found[..., 0], found[..., 1], found[..., 2]
    # Hue where red is largest: yellow and orange lie between 0° and 60°.
    hue = np.where((high == red) & (green >= blue), 60 * (green - blue) / spread, -1.0)
    marked = (hue >= _HUES[0]) & (hue <= _HUES[1]) & (spread >= _LEAST_SATURATION * high)
    light = found.mean(axis=-1, keepdims=True) / np.mean(_YELLOW)
    tinted = np.clip(np.array(PALETTE[tone]) * light, 0, 255)
    return np.where(marked[..., None], np.rint(tinted), found).astype(np.uint8)


class _Views:
    """Inputs of altered images of some rows, looked up by row; a lookup elsewhere fails."""

    def __init__(self, inputs: dict, rows: NDArray[np.int64]) -> None:
        self._inputs = inputs
        self._rows = rows

    def __call__(self, indices: NDArray[np.int64]) -> dict:
        place = np.searchsorted(self._rows, indices).clip(max=len(self._rows) - 1)
        if not (self._rows[place] == indices).all():
            raise ConfigError("a view was asked for of an image that none was made of")
        chosen = torch.from_numpy(place)
        return {key: value[chosen] for key, value in self._inputs.items()}


def view_of(
    model: LoadedModel,
    data: ImageTextData,
    rows: NDArray[np.int64],
    name: str,
    alter: Callable[[NDArray[np.uint8]], NDArray[np.uint8]],
) -> ImageInputs:
    """Prepare a view of some images; the embedded model's features are cached on disk.

    Args:
        model: The model whose inputs are wanted.
        data: Image–caption pairs.
        rows: Shape (n,), ascending: whose images.
        name: Says all that `alter` depends on, for the cache.
        alter: Takes and returns uint8 images (B, S, S, 3).
    """
    return _Views(altered_inputs(model, f"view {name}", data, rows, alter, quiet), rows)
