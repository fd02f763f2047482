"""A model under audit: its embeddings of images, altered images and captions."""

from collections.abc import Callable, Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from fedvlm.data.dataset import ImageTextData
from fedvlm.data.emoji import Progress, quiet
from fedvlm.models.altered import Inputs, altered_inputs, image_side
from fedvlm.models.embedded import EmbeddedProcessor
from fedvlm.models.processor import ImageInputs, LoadedModel
from fedvlm.models.stem import load_stem
from fedvlm.trust.estimate import UnresolvedError

_BATCH = 128


class _Kept:
    """Embeddings of one set of weights: nothing is embedded twice, and none outlives a change."""

    def __init__(self) -> None:
        self._weights: tuple[tuple[int, int], ...] = ()
        self._images: dict[str, tuple[NDArray[np.float64], NDArray[np.bool_]]] = {}
        self._texts: dict[str, NDArray[np.float64]] = {}

    def _at(self, model: LoadedModel) -> None:
        # PyTorch counts a tensor's changes in place: the count tells that an adapter was written.
        weights = tuple((id(p), p._version) for p in model.vlm.parameters())
        if weights != self._weights:
            self._weights = weights
            self._images.clear()
            self._texts.clear()

    def images(
        self,
        model: LoadedModel,
        data: ImageTextData,
        rows: NDArray[np.int64],
        embed: Callable[[NDArray[np.int64]], NDArray[np.float64]],
    ) -> NDArray[np.float64]:
        """Return embeddings of rows, shape (n, D), of which those that are missing are made."""
        self._at(model)
        if data.fingerprint not in self._images:
            empty = np.empty((len(data), model.vlm.embedding_dim))
            self._images[data.fingerprint] = (empty, np.zeros(len(data), dtype=np.bool_))
        values, there = self._images[data.fingerprint]
        missing = np.unique(rows[~there[rows]])
        if len(missing):
            found = embed(missing)
            if found.shape[1] != values.shape[1]:  # a head widens embeddings
                values = np.empty((len(data), found.shape[1]))
                self._images[data.fingerprint] = (values, there)
            values[missing], there[missing] = found, True
        return values[rows]

    def texts(
        self,
        model: LoadedModel,
        captions: Sequence[str],
        embed: Callable[[list[str]], NDArray[np.float64]],
    ) -> NDArray[np.float64]:
        """Return embeddings of captions, shape (C, D), likewise."""
        self._at(model)
        missing = [one for one in dict.fromkeys(captions) if one not in self._texts]
        if missing:
            self._texts.update(zip(missing, embed(missing), strict=True))
        return np.stack([self._texts[one] for one in captions])


class Subject:
    """A model whose weights may change between two audits; its inputs are made once.

    Args:
        model: The model, with or without an adapter.
        progress: Called with (task, done, total) while inputs are prepared.
    """

    def __init__(self, model: LoadedModel, progress: Progress = quiet) -> None:
        self.model = model
        self._progress = progress
        self._inputs: dict[str, ImageInputs] = {}
        self._kept = _Kept()

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
        return image_side(self.model)

    def images(self, data: ImageTextData, rows: NDArray[np.int64]) -> NDArray[np.float64]:
        """Embed images of a data set, shape (n, D)."""
        return self._kept.images(self.model, data, rows, lambda some: self._embed_rows(data, some))

    def _embed_rows(self, data: ImageTextData, rows: NDArray[np.int64]) -> NDArray[np.float64]:
        key = data.fingerprint
        if key not in self._inputs or self.embedded:  # the cache on disk knows what is missing
            self._inputs[key] = self.model.processor.images(data, rows, self._progress)
        source = self._inputs[key]
        parts = [
            self.model.vlm.embed(source(rows[at : at + _BATCH]), "image")
            for at in range(0, len(rows), _BATCH)
        ]
        return torch.cat(parts).numpy().astype(np.float64)

    def texts(self, captions: Sequence[str]) -> NDArray[np.float64]:
        """Embed captions, shape (C, D)."""

        def embed(some: list[str]) -> NDArray[np.float64]:
            found = self.model.vlm.embed(self.model.processor.texts(some), "text")
            return found.numpy().astype(np.float64)

        return self._kept.texts(self.model, captions, embed)

    def altered(
        self,
        name: str,
        data: ImageTextData | None,
        rows: NDArray[np.int64],
        alter: Callable[[NDArray[np.uint8]], NDArray[np.uint8]],
    ) -> Inputs:
        """Prepare changed images, see `altered_inputs`."""
        return altered_inputs(self.model, name, data, rows, alter, self._progress)

    def embed(self, altered: Inputs) -> NDArray[np.float64]:
        """Embed changed images, shape (n, D)."""
        return self.model.vlm.embed(altered, "image").numpy().astype(np.float64)

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
