"""A data set's pixels as a Hugging Face tower takes them: processed once, kept as bytes.

An image processor resizes and crops in 8 bits, and then scales and normalises. What it makes in 8
bits is kept; the rest is one pass over a batch. Whether a processor can be parted so is tried, not
assumed: one whose parts don't give what the whole gives is asked anew for every image.
"""

import hashlib
import json
import threading
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
import PIL
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from fedvlm.data.dataset import ImageTextData
from fedvlm.data.loading import each
from fedvlm.data.store import ArrayStore
from fedvlm.models.processor import ImageInputs

PIXELS, MASK = "pixel_values", "pixel_attention_mask"
_CLOSE = 1e-5
_VERSION = 1  # raise it when rows are laid out otherwise

Progress = Callable[[str, int, int], None]


def processor_hash(image_processor: Any) -> str | None:
    """Hash all that decides the pixels of a decoded image; None for one that doesn't say it."""
    if image_processor is None:
        return None
    if not hasattr(image_processor, "to_dict"):
        told = getattr(image_processor, "fingerprint", None)
        if not isinstance(told, str):
            return None
        content: Any = told
    else:
        content = image_processor.to_dict()
    parts = [_VERSION, type(image_processor).__name__, content, PIL.__version__]
    return hashlib.sha256(json.dumps(parts, sort_keys=True, default=str).encode()).hexdigest()


def _sample(width: int, height: int) -> Image.Image:
    rng = np.random.default_rng(width)
    return Image.fromarray(rng.integers(0, 256, (height, width, 3), dtype=np.uint8))


class PartedProcessor:
    """An image processor in two parts: 8-bit rows, and what makes inputs of them.

    Args:
        image_processor: Of transformers, or another one with the same options.

    Raises:
        ValueError: Its parts don't give what the whole gives.
    """

    def __init__(self, image_processor: Any) -> None:
        self._processor = image_processor
        sample = self._raw(_sample(61, 47))
        self._layout = [(key, array.shape, array.dtype) for key, array in sample.items()]
        pixels = sample[PIXELS]
        channels = len(image_processor.image_mean)
        std = np.array(image_processor.image_std, dtype=np.float64)
        mean = np.array(image_processor.image_mean, dtype=np.float64)
        if not image_processor.do_normalize:
            mean, std = np.zeros(channels), np.ones(channels)
        scale = float(image_processor.rescale_factor) if image_processor.do_rescale else 1.0
        first = pixels.shape[0] == channels and pixels.ndim == 3
        if not first and pixels.shape[-1] % channels:
            raise ValueError("pixels of an unknown layout")
        shape = (channels, 1, 1) if first else (pixels.shape[-1] // channels, channels)
        gain, offset = (
            torch.tensor(np.broadcast_to(x.reshape(channels, 1, 1) if first else x, shape).copy())
            .reshape((channels, 1, 1) if first else (-1,))
            .float()
            for x in (scale / std, -mean / std)
        )
        self._gain, self._offset = gain, offset
        self.row_bytes = len(self.row(_sample(61, 47)))
        for size in ((61, 47), (40, 90), (300, 33)):
            image = _sample(*size)
            whole = image_processor(images=[image], return_tensors="pt")
            parts = self.inputs(self.row(image)[None])
            if whole.keys() != parts.keys():
                raise ValueError("other inputs in parts")
            for key, value in whole.items():
                same = value.shape == parts[key].shape and value.dtype == parts[key].dtype
                if not same or float((value - parts[key]).abs().max()) > _CLOSE:
                    raise ValueError(f"other {key} in parts")

    def _raw(self, image: Image.Image) -> dict[str, NDArray]:
        found = self._processor(
            images=[image], return_tensors="np", do_rescale=False, do_normalize=False
        )
        arrays = {key: value[0] for key, value in found.items()}
        if PIXELS not in arrays or arrays[PIXELS].dtype != np.uint8:
            raise ValueError("no 8-bit pixels")
        return arrays

    def row(self, image: Image.Image) -> NDArray[np.uint8]:
        """Return an image's row: its inputs' bytes, one behind the other."""
        parts = self._raw(image)
        rows = [
            np.ascontiguousarray(parts[key], dtype).view(np.uint8).reshape(-1)
            for key, _, dtype in self._layout
        ]
        return np.concatenate(rows)

    def inputs(self, rows: NDArray[np.uint8]) -> dict[str, Tensor]:
        """Return the inputs of rows of shape (B, bytes), as the whole processor makes them."""
        out, start = {}, 0
        for key, shape, dtype in self._layout:
            end = start + int(np.prod(shape)) * dtype.itemsize
            part = np.ascontiguousarray(rows[:, start:end]).view(dtype)
            out[key] = torch.from_numpy(part.reshape(len(rows), *shape))
            start = end
        pixels = out[PIXELS].float().mul_(self._gain).add_(self._offset)
        if MASK in out:  # padding is zero once it is normalised
            pixels *= out[MASK][..., None]
        return out | {PIXELS: pixels}


class PixelInputs:
    """The image inputs of a data set, looked up by row: from the store, or processed anew.

    Args:
        data: Image–caption pairs.
        rows: Shape (n,), the pairs whose images will be asked for.
        image_processor: Makes pixels of images.
        progress: Called with (task, done, total) while the store is filled.
        loaders: Worker processes that fill it; None for what suits.
    """

    def __init__(
        self,
        data: ImageTextData,
        rows: NDArray[np.int64],
        image_processor: Any,
        progress: Progress,
        loaders: int | None = None,
    ) -> None:
        self._data, self._processor = data, image_processor
        self._progress, self._loaders = progress, loaders
        self._rows = rows
        self._lock = threading.Lock()
        self._ready = False
        self._store: ArrayStore | None = None
        self._parts: PartedProcessor | None = None
        key = processor_hash(image_processor)
        if data.contents is None or key is None:
            return
        try:
            self._parts = PartedProcessor(image_processor)
        except (ValueError, TypeError, AttributeError, KeyError):
            return
        self._store = ArrayStore(f"pixels {key}", (self._parts.row_bytes,), np.uint8)

    def _made(self, numbers: list[int]) -> Iterator[NDArray]:
        """Yield the rows of images, in worker processes where that is worth while."""
        parts = self._parts
        if parts is None:
            raise ValueError("nothing to compute rows with")
        made = each(lambda number: parts.row(self._data.image(number)), numbers, self._loaders)
        for done, array in enumerate(made, 1):
            yield array
            if done % 64 == 0 or done == len(numbers):
                self._progress("pixels", done, len(numbers))

    def _compute(self, places: Sequence[int]) -> Iterator[NDArray]:
        return self._made([int(self._rows[place]) for place in places])

    def stream(self, indices: NDArray[np.int64], size: int) -> Iterator[dict[str, Tensor]]:
        """Yield the inputs of rows, `size` at a time, without keeping any."""
        if self._parts is None:
            for start in range(0, len(indices), size):
                yield self.anew(indices[start : start + size])
            return
        made = self._made([int(index) for index in indices])
        for start in range(0, len(indices), size):
            count = min(size, len(indices) - start)
            yield self._parts.inputs(np.stack([next(made) for _ in range(count)]))

    def _prepare(self) -> None:
        with self._lock:
            if self._ready or self._store is None:
                return
            contents: Sequence[bytes] = self._data.contents or []
            if not self._store.fill([contents[row] for row in self._rows], self._compute):
                self._store = None
            self._ready = True

    def anew(self, indices: NDArray[np.int64]) -> dict[str, Tensor]:
        """Return the inputs of rows, decoded and processed now."""
        images = [self._data.image(int(index)) for index in indices]
        return dict(self._processor(images=images, return_tensors="pt"))

    def __call__(self, indices: NDArray[np.int64]) -> dict[str, Tensor]:
        """Return the inputs of rows of shape (B,)."""
        self._prepare()
        store, parts, contents = self._store, self._parts, self._data.contents
        if store is None or parts is None or contents is None:
            return self.anew(indices)
        wanted = [contents[int(index)] for index in indices]
        if not store.has(wanted):  # a row that nobody announced
            return self.anew(indices)
        return parts.inputs(store.read(wanted))


class PixelProcessor:
    """The image half of a processor whose model takes pixels.

    Attributes:
        image_processor: Makes pixels of images.
        loaders: Worker processes that prepare a data set's images; None for what suits.
    """

    def __init__(self, image_processor: Any) -> None:
        self.image_processor = image_processor
        self.loaders: int | None = None

    def images(
        self, data: ImageTextData, rows: NDArray[np.int64], progress: Progress
    ) -> ImageInputs:
        """Return the inputs of a data set's images, by row; processed once, at first use."""
        return PixelInputs(data, rows, self.image_processor, progress, self.loaders)

    def pixels(self, images: Sequence[Image.Image]) -> dict[str, Tensor]:
        """Return the inputs of images in RGB."""
        return dict(self.image_processor(images=list(images), return_tensors="pt"))
