"""A head as one linear layer on frozen features: what takes linear layers then takes heads.

The score of an image with a caption is weight · z. What z is made of is frozen and public: the
image's embedding by the tower and its whitened feature. What was learned is in the weights alone.
"""

import numpy as np
import torch
from torch import Tensor, nn

from fedvlm.adapters.frozen_head import MOST_ZERO_SHOT, FrozenHead
from fedvlm.errors import ConfigError
from fedvlm.models.vlm import VLM, Inputs


def frozen_features(vlm: VLM, images: Inputs) -> Tensor:
    """Return what a head's linear layer takes: shape (B, D + d), rows of norm up to 1.

    Args:
        vlm: A model with a head.
        images: As for `VLM.encode_image`.

    Guarantees:
        They follow from the frozen model and public pairs, and tell nothing of what was learned.

    Raises:
        ConfigError: The model has no head.
    """
    head_of(vlm)
    with torch.no_grad():
        return vlm.encode_image(images)[:, :-1]


def folded_head(vlm: VLM, texts: Inputs) -> nn.Linear:
    """Return the linear layer that scores some captions: D + d inputs, one output a caption.

    `folded_head(vlm, texts)(frozen_features(vlm, images))` is `vlm.similarity(images, texts)`, up
    to the rounding of float32.

    Args:
        vlm: A model with a head.
        texts: As for `VLM.encode_text`, C captions.

    Raises:
        ConfigError: The model has no head.
    """
    head_of(vlm)
    with torch.no_grad():
        weight = vlm.encode_text(texts)[:, :-1].contiguous()
    layer = nn.Linear(weight.shape[1], len(weight), bias=False)
    layer.weight = nn.Parameter(weight.clone(), requires_grad=False)
    return layer.eval()


def head_of(vlm: VLM) -> FrozenHead:
    """Return a model's head.

    Raises:
        ConfigError: It has none.
    """
    if not isinstance(vlm.head, FrozenHead):
        raise ConfigError(
            "only a head (adapter = prototypes or head) folds into one linear layer; a LoRA is "
            "merged into the model's own: fedvlm.adapters.merge"
        )
    return vlm.head


def split_weights(layer: nn.Linear, embedding_dim: int) -> tuple[np.ndarray, np.ndarray]:
    """Take a folded layer apart: the captions' part for an embedding, and that for a feature.

    Args:
        layer: Of `folded_head`.
        embedding_dim: D.

    Returns:
        Shapes (C, D) and (C, d): for *unit* embeddings and *unit* features.
    """
    weight = layer.weight.detach().double().numpy() / np.sqrt(1 + MOST_ZERO_SHOT)
    return np.sqrt(MOST_ZERO_SHOT) * weight[:, :embedding_dim], weight[:, embedding_dim:]
