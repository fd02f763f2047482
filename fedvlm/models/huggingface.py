"""CLIP, SigLIP and SigLIP 2 from a folder or the Hugging Face hub."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from fedvlm.data.dataset import ImageTextData
from fedvlm.errors import ConfigError
from fedvlm.models.processor import ImageInputs, LoadedModel
from fedvlm.models.vlm import SUPPORTED, VLM


class _ProcessedInputs:
    """Images processed when they are asked for: large models' pixels don't fit in memory."""

    def __init__(self, data: ImageTextData, image_processor: Any) -> None:
        self._data = data
        self._processor = image_processor

    def __call__(self, indices: NDArray[np.int64]) -> dict[str, Tensor]:
        images = [self._data.image(int(index)) for index in indices]
        return dict(self._processor(images=images, return_tensors="pt"))


class HuggingFaceProcessor:
    """A Hugging Face tokenizer and image processor behind this library's protocol."""

    def __init__(self, tokenizer: Any, image_processor: Any, max_length: int, masked: bool) -> None:
        self.tokenizer = tokenizer
        self.image_processor = image_processor
        self._max_length = max_length
        # SigLIP reads the last place and was trained without a mask. With one, padding would be
        # cut off, and what a caption embeds to would depend on the longest of its batch.
        self._keys = ("input_ids", "attention_mask") if masked else ("input_ids",)

    def images(
        self,
        data: ImageTextData,
        rows: NDArray[np.int64],
        progress: Callable[[str, int, int], None],
    ) -> ImageInputs:
        """Return the inputs of a data set's images, by row; each is processed when asked for."""
        return _ProcessedInputs(data, self.image_processor)

    def texts(self, captions: Sequence[str]) -> dict[str, Tensor]:
        """Return ids and, for CLIP where the tokenizer makes one, mask: shape (C, L), int64."""
        encoded = self.tokenizer(
            list(captions),
            # SigLIP was trained on captions padded to the full length; CLIP ignores what follows
            # the end token, so this is right for both.
            padding="max_length",
            truncation=True,
            max_length=self._max_length,
            return_tensors="pt",
        )
        return {key: encoded[key] for key in self._keys if key in encoded}


def load_huggingface(name: str) -> LoadedModel:
    """Load a dual encoder by folder or hub name.

    Args:
        name: A folder with `config.json`, weights, tokenizer and preprocessor configuration, or
            a name on the hub.

    Raises:
        ConfigError: Nothing can be loaded from there, or the model is of another type.
    """
    from transformers import AutoConfig, AutoImageProcessor, AutoModel, AutoTokenizer
    from transformers.utils.logging import disable_progress_bar

    disable_progress_bar()  # every client loads the model; a bar each would drown our own
    try:
        config = AutoConfig.from_pretrained(name)
        if config.model_type not in SUPPORTED:
            raise ConfigError(
                f"{name} is a {config.model_type!r} model; use one of {', '.join(SUPPORTED)}"
            )
        model = AutoModel.from_pretrained(name)
        tokenizer = AutoTokenizer.from_pretrained(name)
        # The Pillow backend: the other one needs torchvision, which this library leaves out.
        image_processor = AutoImageProcessor.from_pretrained(name, backend="pil")
    except (OSError, ValueError) as error:
        if isinstance(error, ConfigError):
            raise
        reason = str(error).strip().splitlines()[0]
        place = "folder" if Path(name).exists() else "hub model (is the network there?)"
        raise ConfigError(f"can't load {place} {name!r}: {reason}") from error
    length = int(config.text_config.max_position_embeddings)
    masked = config.model_type == "clip"
    processor = HuggingFaceProcessor(tokenizer, image_processor, length, masked)
    return LoadedModel(VLM(model.eval()), processor, name)
