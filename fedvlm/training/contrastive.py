"""One step's loss and gradients of a dual encoder, whole or in pieces."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from fedvlm.errors import ConfigError
from fedvlm.models.vlm import VLM
from fedvlm.training.cached_gradients import backward_in_pieces
from fedvlm.training.losses import contrastive_loss, sigmoid_loss
from fedvlm.training.pairs import EncodedPairs
from fedvlm.training.settings import LocalSettings

if TYPE_CHECKING:
    from fedvlm.mitigation.repairs import Repair


def _cut(inputs: Mapping[str, Tensor], start: int, end: int) -> dict[str, Tensor]:
    return {key: value[start:end] for key, value in inputs.items()}


def loss_gradients(
    vlm: VLM,
    pairs: EncodedPairs,
    batch: NDArray[np.int64],
    settings: LocalSettings,
    repair: "Repair | None" = None,
) -> float:
    """Add a step's gradients to the trainable parameters' `.grad`.

    A caption that several pairs share is embedded once.

    Args:
        vlm: A model with an adapter, in training mode.
        pairs: The data set's inputs.
        batch: Shape (B,), the step's pairs.
        settings: Loss, and how many pairs' activations are held at a time.
        repair: A term that is added to the loss, of a mitigation; its steps are taken whole.

    Returns:
        The loss, in nats, without the repair's term.
    """
    rows, place = np.unique(pairs.caption_of[batch], return_inverse=True)
    images, captions = pairs.images(batch), pairs.captions(rows)
    concepts = torch.from_numpy(pairs.concepts[batch]).to(vlm.device)
    position = torch.from_numpy(place).to(vlm.device)

    def loss_of(image: Tensor, text: Tensor) -> Tensor:
        scale = vlm.logit_scale
        if settings.loss == "sigmoid":
            return sigmoid_loss(image, text[position], concepts, scale, vlm.logit_bias)
        return contrastive_loss(image, text[position], concepts, scale)

    if repair is not None:
        image, text = vlm.encode_image(images), vlm.encode_text(captions)
        loss = loss_of(image, text)
        extras = repair.extras(vlm, batch, images)
        term = repair.penalty(
            vlm, image, text[position], extras, lambda other: loss_of(other, text)
        )
        (loss + repair.weight * term.mean()).backward()
        return float(loss.detach())
    if not 0 < settings.micro_batch < len(batch):
        loss = loss_of(vlm.encode_image(images), vlm.encode_text(captions))
        loss.backward()
        return float(loss.detach())
    towers = (
        (lambda start, end: vlm.encode_image(_cut(images, start, end)), len(batch)),
        (lambda start, end: vlm.encode_text(_cut(captions, start, end)), len(rows)),
    )
    return backward_in_pieces(towers, loss_of, settings.micro_batch)


def _called(tower: Any, what: str) -> Any:
    """Return transformers' switch, by its new name or its old one."""
    new = getattr(tower, f"activation_checkpointing_{what}", None)
    return new or getattr(tower, f"gradient_checkpointing_{what}")


@contextmanager
def checkpointed(vlm: VLM, wanted: bool) -> Iterator[None]:
    """Compute each layer of the towers again in the backward pass within this block.

    Raises:
        ConfigError: The model has no such layers.
    """
    if not wanted:
        yield
        return
    backbone: Any = vlm.backbone
    inner: Any = backbone.get_base_model() if hasattr(backbone, "get_base_model") else backbone
    towers = [m for m in inner.modules() if getattr(m, "supports_gradient_checkpointing", False)]
    if not towers:
        raise ConfigError(
            f"checkpointing isn't known to {type(inner).__name__}; set micro_batch instead"
        )
    for tower in towers:
        _called(tower, "enable")({"use_reentrant": False})
    try:
        yield
    finally:
        for tower in towers:
            _called(tower, "disable")()
