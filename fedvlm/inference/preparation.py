"""What the client does to an image in the clear: public, and handed over with the program.

For the embedded model that is its frozen stem, which everybody has; for a model of Hugging Face's
its image processor (size, mean, deviation), as a file.
"""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from fedvlm.data.dataset import decode_image
from fedvlm.errors import ConfigError, DataError
from fedvlm.files import write_text
from fedvlm.models.stem import IMAGE_SIZE, WEIGHTS_SHA256, load_stem

_STEM_FILE = "stem.json"
_PROCESSOR_FILE = "preprocessor_config.json"
_STEM = {"stem": "EfficientNet-Lite0", "image_size": IMAGE_SIZE, "weights_sha256": WEIGHTS_SHA256}


class Preparation(Protocol):
    """Turns images into the public input of a program."""

    #: What it does beyond resizing, in words, for `plan.leakage()`.
    public_parts: tuple[str, ...]

    def __call__(self, images: Sequence[Image.Image]) -> dict[str, Tensor]:
        """Return `pixel_values` of shape (B, ...), float32."""
        ...

    def write(self, folder: Path) -> None:
        """Write what a client needs to do the same."""
        ...


class StemPreparation:
    """The embedded model's: resize to 96 × 96 and run the frozen stem."""

    public_parts: tuple[str, ...] = ("the frozen image stem, EfficientNet-Lite0",)

    def __call__(self, images: Sequence[Image.Image]) -> dict[str, Tensor]:
        """Return feature maps of shape (B, 320, 3, 3)."""
        size = (IMAGE_SIZE, IMAGE_SIZE)
        arrays = [
            np.asarray(i if i.size == size else i.resize(size, Image.Resampling.BICUBIC))
            for i in images
        ]
        stem = load_stem()
        parts = [
            stem(torch.from_numpy(np.stack(arrays[start : start + 64])))
            for start in range(0, len(arrays), 64)
        ]
        return {"pixel_values": torch.cat(parts).clone()}

    def write(self, folder: Path) -> None:
        """Write the stem's name and hash."""
        write_text(folder / _STEM_FILE, json.dumps(_STEM, indent=2) + "\n")


class ProcessorPreparation:
    """A Hugging Face image processor."""

    public_parts: tuple[str, ...] = ()

    def __init__(self, processor: Any) -> None:
        self._processor = processor

    def __call__(self, images: Sequence[Image.Image]) -> dict[str, Tensor]:
        """Return pixels of shape (B, 3, H, W)."""
        try:
            made = dict(self._processor(images=list(images), return_tensors="pt"))
        except Exception as error:  # so does a file that says what can't be done
            raise ConfigError(
                f"the image processor can't prepare these images ({_first(error)}); "
                f"{_PROCESSOR_FILE} may be damaged: ask the model's owner for it again"
            ) from error
        if not isinstance(made.get("pixel_values"), Tensor):
            raise ConfigError(f"the image processor of {_PROCESSOR_FILE} makes no pixel_values")
        if "spatial_shapes" in made:
            raise ConfigError(
                "a SigLIP 2 that takes images of any shape has no private counterpart here; "
                "use one of fixed size, or secure.smpc with images of one grid"
            )
        return {"pixel_values": made["pixel_values"]}

    def write(self, folder: Path) -> None:
        """Write the processor's configuration."""
        self._processor.save_pretrained(folder)


def read_preparation(folder: Path) -> Preparation:
    """Read what an owner published beside its program.

    Raises:
        ConfigError: The folder says nothing that this library knows, or names another stem.
    """
    if (folder / _STEM_FILE).is_file():
        try:
            named = json.loads((folder / _STEM_FILE).read_text())
        except (OSError, ValueError, RecursionError) as error:
            raise ConfigError(f"{folder / _STEM_FILE} can't be read as JSON: {error}") from error
        if named != _STEM:
            raise ConfigError(
                f"{folder / _STEM_FILE} names another image stem than this library's; "
                "use the owner's version of fedvlm"
            )
        if (folder / "head.npz").is_file():
            from fedvlm.inference.folded import HeadPreparation

            return HeadPreparation.read(folder)
        return StemPreparation()
    if (folder / _PROCESSOR_FILE).is_file():
        from fedvlm._torchvision import hide_if_broken

        hide_if_broken()
        from transformers import AutoImageProcessor

        try:
            # Unless told, transformers asks on the terminal whether to run the folder's own code.
            processor = AutoImageProcessor.from_pretrained(
                folder, backend="pil", trust_remote_code=False
            )
            return ProcessorPreparation(processor)
        except Exception as error:  # a damaged file makes transformers raise all kinds
            raise ConfigError(f"can't read {folder / _PROCESSOR_FILE}: {_first(error)}") from error
    raise ConfigError(
        f"{folder} has neither {_STEM_FILE} nor {_PROCESSOR_FILE}; "
        "ask the model's owner for its whole public folder"
    )


def _first(error: Exception) -> str:
    lines = str(error).strip().splitlines()
    return lines[0][:200] if lines else type(error).__name__


def read_images(paths: Sequence[Path]) -> list[Image.Image]:
    """Read image files as RGB.

    Raises:
        DataError: A file is missing or no image; it is named.
    """
    images = []
    for path in paths:
        try:
            images.append(decode_image(path.read_bytes()))
        except OSError as error:
            raise DataError(f"can't read the image {path}: {error.strerror}") from error
        except DataError as error:
            raise DataError(f"can't read the image {path}: {error}") from error
    return images
