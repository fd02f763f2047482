"""A model with what prepares its inputs."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from fedvlm.data.dataset import ImageTextData
from fedvlm.errors import ConfigError
from fedvlm.models.hashing import tokenizer_hash, weights_hash
from fedvlm.models.vlm import VLM


class ImageInputs(Protocol):
    """The image inputs of a data set, looked up by row."""

    def __call__(self, indices: NDArray[np.int64]) -> dict[str, Tensor]:
        """Return the inputs of rows of shape (B,), as `VLM.encode_image` takes them."""
        ...


class Processor(Protocol):
    """Turns images and captions into what `VLM` takes."""

    def images(
        self,
        data: ImageTextData,
        rows: NDArray[np.int64],
        progress: Callable[[str, int, int], None],
    ) -> ImageInputs:
        """Return the inputs of a data set's images, prepared for `rows` of shape (n,)."""
        ...

    def texts(self, captions: Sequence[str]) -> dict[str, Tensor]:
        """Return ids and mask of captions, shape (C, L), int64."""
        ...

    @property
    def tokenizer(self) -> Any:
        """The tokenizer behind `texts`, for `tokenizer_hash`."""
        ...


@dataclass(frozen=True)
class ModelHashes:
    """Which base model this is.

    Attributes:
        weights: `weights_hash` of the base model.
        tokenizer: `tokenizer_hash` of its tokenizer.
    """

    weights: str
    tokenizer: str


@dataclass(frozen=True)
class LoadedModel:
    """A model and its processor.

    Attributes:
        vlm: The model, on the CPU, in evaluation mode.
        processor: Prepares its inputs.
        name: "embedded", or the folder's or hub's name.
    """

    vlm: VLM
    processor: Processor
    name: str

    @cached_property
    def hashes(self) -> ModelHashes:
        """Hashes of the base model and its tokenizer; an adapter doesn't change them."""
        return ModelHashes(weights_hash(self.vlm), tokenizer_hash(self.processor.tokenizer))


def told_apart(captions: Sequence[str], inputs: Mapping[str, Tensor]) -> None:
    """Refuse a tokenizer that can't tell most captions apart.

    Args:
        captions: Distinct captions.
        inputs: What `Processor.texts` made of them.

    Raises:
        ConfigError: More than half of the captions have the ids of another one. Training on them
            runs, and learns nothing.
    """
    distinct = len(torch.unique(inputs["input_ids"], dim=0)) if len(captions) else 0
    if len(captions) > 1 and 2 * distinct < max(len(captions), 3):
        raise ConfigError(
            f"{len(captions)} different captions become {distinct} different rows of ids: the "
            "tokenizer isn't the model's own, or not made for this language, or cuts captions off "
            "where they are still alike"
        )
