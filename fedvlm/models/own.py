"""A dual encoder of one's own: any two torch modules that embed images and captions.

What it has to have is in `DualEncoder`; what prepares its inputs, in `own_model`. Everything else
(LoRA and the gate, devices, federations, privacy, audits) is then what it is for CLIP.
"""

import importlib
import importlib.util
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn

from fedvlm.errors import ConfigError
from fedvlm.models.pixels import PixelProcessor
from fedvlm.models.processor import LoadedModel
from fedvlm.models.vlm import OWN, VLM
from fedvlm.models.weights import first_line

_TEXT_KEYS = ("input_ids", "attention_mask", "token_type_ids")


@runtime_checkable
class DualEncoder(Protocol):
    """What a module has so that it can be federated as a dual encoder.

    Attributes:
        embedding_dim: Width D of the shared space.
        logit_scale: Logarithm of the inverse temperature, a parameter or buffer of one value.
    """

    embedding_dim: int
    logit_scale: Tensor

    def encode_image(self, **inputs: Tensor) -> Tensor:
        """Embed what the image processor makes: shape (B, D), not normalised.

        Row i must depend on image i alone.
        """
        ...

    def encode_text(self, **inputs: Tensor) -> Tensor:
        """Embed what the tokenizer makes: shape (B, D), not normalised. Row i alone, too."""
        ...


@dataclass(frozen=True)
class _Config:
    model_type: str
    projection_dim: int

    def to_dict(self) -> dict[str, Any]:
        """Return what peft may ask for."""
        return {"model_type": self.model_type, "projection_dim": self.projection_dim}


@dataclass(frozen=True)
class _Pooled:
    pooler_output: Tensor


class _Backbone(nn.Module):
    """An encoder under the names that the rest of this library knows."""

    base_model_prefix = ""  # peft asks for it where a configuration names a type

    def __init__(self, encoder: Any) -> None:
        super().__init__()
        self.encoder = encoder
        self.config = _Config(OWN, int(encoder.embedding_dim))

    @property
    def logit_scale(self) -> Tensor:
        return self.encoder.logit_scale

    @property
    def logit_bias(self) -> Tensor | None:
        return getattr(self.encoder, "logit_bias", None)

    def get_image_features(self, **inputs: Tensor) -> _Pooled:
        """Return the image's features, as transformers' models do."""
        return _Pooled(self.encoder.encode_image(**inputs))

    def get_text_features(self, **inputs: Tensor) -> _Pooled:
        """Return the caption's features, as transformers' models do."""
        return _Pooled(self.encoder.encode_text(**inputs))


class OwnProcessor(PixelProcessor):
    """A tokenizer and an image processor of a user's choice behind this library's protocol."""

    def __init__(self, image_processor: Any, tokenizer: Any, length: int) -> None:
        super().__init__(image_processor)
        self.tokenizer = tokenizer
        self._length = length

    def texts(self, captions: Sequence[str]) -> dict[str, Tensor]:
        """Return the inputs of captions, padded to the longest: shape (C, L), int64."""
        found: Mapping[str, Tensor] = self.tokenizer(
            list(captions),
            padding="longest",
            truncation=True,
            max_length=self._length,
            return_tensors="pt",
        )
        return {key: found[key] for key in _TEXT_KEYS if key in found}


def own_model(
    encoder: nn.Module,
    image_processor: Any,
    tokenizer: Any,
    *,
    name: str,
    max_length: int,
) -> LoadedModel:
    """Make a model of this library from an encoder of one's own.

    Args:
        encoder: A module with what `DualEncoder` names. Its dropout is switched off: pieces of a
            batch must add up, and a seed must decide a result.
        image_processor: Called with `images=[…], return_tensors="pt"`; gives a mapping with
            `pixel_values` first of all. One of transformers' is kept in the cache by its options;
            another one only if it has a text `fingerprint` that changes with what it does.
        tokenizer: Called as transformers' are; padded on the right.
        name: What the model is called in results.
        max_length: Tokens that a caption has at most.

    Returns:
        The model, in evaluation mode.

    Raises:
        ConfigError: Something is missing, or doesn't fit; the message says what.
    """
    lacks = [
        part
        for part in ("embedding_dim", "logit_scale", "encode_image", "encode_text")
        if not hasattr(encoder, part)
    ]
    if lacks:
        raise ConfigError(f"{type(encoder).__name__} has no {', '.join(lacks)}; see DualEncoder")
    if not torch.is_tensor(encoder.logit_scale) or encoder.logit_scale.numel() != 1:
        raise ConfigError("logit_scale must be a tensor of one value, a parameter or a buffer")
    for module in encoder.modules():
        if isinstance(module, nn.modules.dropout._DropoutNd):
            module.p = 0.0
    vlm = VLM(_Backbone(encoder.float()).eval())
    processor = OwnProcessor(image_processor, tokenizer, max_length)

    def probe(rows: int) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        rng = np.random.default_rng(0)
        shape = (rows, 48, 48, 3)
        pixels = [Image.fromarray(x) for x in rng.integers(0, 256, shape, dtype=np.uint8)]
        words = ["a photo of a cat", "two red circles", "x", "an old house by the sea"]
        return processor.pixels(pixels), processor.texts([words[i % 4] for i in range(rows)])

    vlm.probe = probe
    images, texts = probe(3)
    with torch.no_grad():
        for what, encode, inputs in (
            ("encode_image", vlm.encode_image, images),
            ("encode_text", vlm.encode_text, texts),
        ):
            try:
                found = encode(inputs)
            except Exception as error:  # the user's own code
                raise ConfigError(f"{what} failed: {first_line(error)}") from error
            if found.shape != (3, vlm.embedding_dim) or not bool(torch.isfinite(found).all()):
                raise ConfigError(
                    f"{what} must give finite values of shape (B, {vlm.embedding_dim}), got "
                    f"{tuple(found.shape)} for B = 3"
                )
            alone = encode({key: value[:1] for key, value in inputs.items()})
            if float((alone - found[:1]).abs().max()) > 1e-4:
                raise ConfigError(f"{what} gives a row that depends on the batch's other rows")
    return LoadedModel(vlm, processor, name)


def load_own(name: str) -> LoadedModel:
    """Call a function of the user's that makes a model.

    This runs that code. No name of this kind is ever taken from a message: a node loads what its
    owner's file names, which is a folder.

    Args:
        name: `python:FILE.py:FUNCTION`, or `python:MODULE:FUNCTION`.

    Raises:
        ConfigError: There is no such function, or it gives something else.
    """
    _, _, rest = name.partition(":")
    where, sign, function = rest.rpartition(":")
    if not sign or not where or not function.isidentifier():
        raise ConfigError(f"model {name!r}: write python:FILE.py:FUNCTION")
    try:
        if where.endswith(".py"):
            path = Path(where).expanduser()
            spec = importlib.util.spec_from_file_location(path.stem, path)
            if spec is None or spec.loader is None or not path.is_file():
                raise ConfigError(f"model {name!r}: there is no file {where}")
            module = importlib.util.module_from_spec(spec)
            spec.loader.exec_module(module)
        else:
            module = importlib.import_module(where)
        make = getattr(module, function, None)
        if make is None:
            raise ConfigError(f"model {name!r}: {where} has no function {function}")
        found = make()
    except ConfigError:
        raise
    except Exception as error:  # the user's own code
        kind = type(error).__name__
        raise ConfigError(f"model {name!r}: {kind}: {first_line(error)}") from error
    if not isinstance(found, LoadedModel):
        raise ConfigError(
            f"model {name!r}: {function}() gives a {type(found).__name__}; return own_model(…)"
        )
    return found
