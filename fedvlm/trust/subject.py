"""A model under audit: its embeddings of images, altered images and captions."""

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from fedvlm.data.dataset import ImageTextData
from fedvlm.data.emoji import Progress, quiet
from fedvlm.files import cache_dir, one_at_a_time, whole_file
from fedvlm.models.embedded import EmbeddedProcessor
from fedvlm.models.processor import ImageInputs, LoadedModel
from fedvlm.models.stem import IMAGE_SIZE, WEIGHTS_SHA256, load_stem
from fedvlm.trust.estimate import UnresolvedError

_BATCH = 128
Inputs = dict[str, Tensor]


@dataclass(frozen=True, eq=False)
class Altered:
    """Images that were changed for an audit, as a model's inputs; kept, and read by row.

    Attributes:
        inputs: Of each image, N rows.
    """

    inputs: Inputs

    def __len__(self) -> int:
        return len(next(iter(self.inputs.values())))


class Subject:
    """A model whose weights may change between two audits; its inputs are made once.

    Args:
        model: The model, with or without an adapter.
        progress: Called with (task, done, total) while inputs are prepared.
    """

    def __init__(self, model: LoadedModel, progress: Progress = quiet) -> None:
        self.model = model
        self._progress = progress
        self._images: dict[str, ImageInputs] = {}

    @property
    def embedded(self) -> bool:
        """Whether this is the embedded model, whose stem's features are cached."""
        return isinstance(self.model.processor, EmbeddedProcessor)

    @property
    def scale(self) -> float:
        """The model's inverse temperature."""
        return float(self.model.vlm.logit_scale.detach())

    @property
    def size(self) -> int:
        """Side of the images that are altered, in pixels."""
        if self.embedded:
            return IMAGE_SIZE
        shape = getattr(self.model.processor, "image_processor", None)
        found = getattr(shape, "size", None) or {}
        return int(found.get("height") or found.get("shortest_edge") or 224)

    def images(self, data: ImageTextData, rows: NDArray[np.int64]) -> NDArray[np.float64]:
        """Embed images of a data set, shape (n, D)."""
        key = data.fingerprint
        if key not in self._images or self.embedded:  # the cache on disk knows what is missing
            self._images[key] = self.model.processor.images(data, rows, self._progress)
        source = self._images[key]
        parts = [
            self.model.vlm.embed(source(rows[at : at + _BATCH]), "image")
            for at in range(0, len(rows), _BATCH)
        ]
        return torch.cat(parts).numpy().astype(np.float64)

    def texts(self, captions: Sequence[str]) -> NDArray[np.float64]:
        """Embed captions, shape (C, D)."""
        found = self.model.vlm.embed(self.model.processor.texts(list(captions)), "text")
        return found.numpy().astype(np.float64)

    def altered(
        self,
        name: str,
        data: ImageTextData | None,
        rows: NDArray[np.int64],
        alter: Callable[[NDArray[np.uint8]], NDArray[np.uint8]],
    ) -> Altered:
        """Prepare changed images; the embedded model's features are cached on disk.

        Args:
            name: What is done to them, with every parameter and seed: part of the cache's key.
            data: Whose images; None where `alter` makes its own, of as many rows.
            rows: Shape (n,).
            alter: Takes and returns uint8 images (B, S, S, 3).
        """
        if not self.embedded:
            return Altered(self._pixels(self._changed(data, rows, alter)))
        parts = [
            name,
            data.fingerprint if data is not None else "",
            WEIGHTS_SHA256,
            str(IMAGE_SIZE),
        ]
        digest = hashlib.sha256("\0".join(parts).encode())
        digest.update(np.ascontiguousarray(rows, dtype="<i8").tobytes())
        path = cache_dir() / "trust" / f"{digest.hexdigest()[:32]}.npy"
        with one_at_a_time(path):
            features = _kept(path, len(rows))
            if features is None:
                images = self._changed(data, rows, alter)
                found = []
                for at in range(0, len(images), _BATCH):
                    batch = torch.from_numpy(images[at : at + _BATCH])
                    found.append(load_stem()(batch).numpy().astype(np.float16))
                    self._progress(name, at + len(batch), len(images))
                features = np.concatenate(found)
                with whole_file(path) as temporary, temporary.open("wb") as file:
                    np.save(file, features)
        return Altered({"pixel_values": torch.from_numpy(features.astype(np.float32))})

    def _changed(
        self,
        data: ImageTextData | None,
        rows: NDArray[np.int64],
        alter: Callable[[NDArray[np.uint8]], NDArray[np.uint8]],
    ) -> NDArray[np.uint8]:
        if data is None:
            return alter(np.zeros((len(rows), self.size, self.size, 3), dtype=np.uint8))
        return alter(data.arrays(rows, self.size))

    def _pixels(self, images: NDArray[np.uint8]) -> Inputs:
        return self.model.processor.pixels(  # pyright: ignore[reportAttributeAccessIssue]
            [Image.fromarray(one) for one in images]
        )

    def embed(self, altered: Altered) -> NDArray[np.float64]:
        """Embed changed images, shape (n, D)."""
        return self.model.vlm.embed(altered.inputs, "image").numpy().astype(np.float64)

    def classifier(self, captions: NDArray[np.float64]) -> Callable[[Tensor], Tensor]:
        """Return logits of pixels over captions, through which gradients flow.

        Args:
            captions: Shape (C, D), embeddings of the captions.

        Returns:
            A function of images (B, 3, S, S), float32, in [0, 1], to logits (B, C).

        Raises:
            UnresolvedError: The model's pixels aren't a plain normalised image.
        """
        columns = torch.from_numpy(captions.astype(np.float32)).T
        vlm, scale = self.model.vlm, self.scale
        prepare = self._differentiable()

        def logits(pixels: Tensor) -> Tensor:
            return scale * vlm.encode_image(prepare(pixels)) @ columns

        return logits

    def _differentiable(self) -> Callable[[Tensor], Inputs]:
        if self.embedded:
            stem = load_stem()
            return lambda pixels: {"pixel_values": stem.features(255.0 * pixels)}
        processor = getattr(self.model.processor, "image_processor", None)
        mean, spread = getattr(processor, "image_mean", None), getattr(processor, "image_std", None)
        config = self.model.vlm.backbone.config
        if mean is None or spread is None or config.model_type == "siglip2":  # pyright: ignore
            raise UnresolvedError("the model's pixels are no plain normalised image to attack")
        middle = torch.tensor(mean).view(1, 3, 1, 1)
        width = torch.tensor(spread).view(1, 3, 1, 1)
        return lambda pixels: {"pixel_values": (pixels - middle) / width}


def _kept(path, rows: int) -> NDArray[np.float16] | None:
    try:
        found = np.load(path, allow_pickle=False)
    except (OSError, ValueError, EOFError):
        return None  # not made yet, or broken: made anew
    return found if found.ndim == 4 and len(found) == rows else None
