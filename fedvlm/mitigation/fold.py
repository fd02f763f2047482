"""Fold a projection of the embedding into a model's output layer."""

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from fedvlm.errors import ConfigError
from fedvlm.models.vlm import VLM

_LAYERS = {"image": "visual_projection", "text": "text_projection"}


def fold(vlm: VLM, matrix: NDArray[np.float64], which: str = "image") -> None:
    """Multiply a matrix into the output layer of a tower, in place.

    Embeddings are normalised after that layer, so that a linear map before normalisation is the
    same as one after it with another normalisation. A LoRA on the layer is multiplied too.

    Args:
        vlm: A CLIP model, with or without an adapter.
        matrix: Shape (D, D).
        which: "image" or "text".

    Raises:
        ConfigError: Another shape, values that aren't finite, or a model whose tower doesn't end
            in a linear layer (SigLIP's pools by attention).
    """
    name = _LAYERS.get(which)
    layer = None
    if name is not None and vlm.gate is None and vlm.head is None:
        layer = next((m for n, m in vlm.named_modules() if n.rpartition(".")[2] == name), None)
    base = getattr(layer, "base_layer", layer)
    if not isinstance(base, nn.Linear) or base.bias is not None:
        raise ConfigError(
            f"no linear output layer to fold into in the {which} tower; project embeddings with "
            "apply_projection instead"
        )
    if matrix.shape != (base.out_features, base.out_features) or not np.isfinite(matrix).all():
        raise ConfigError(
            f"expected a finite matrix ({base.out_features}, {base.out_features}), got "
            f"{matrix.shape}"
        )
    map_ = torch.from_numpy(matrix).to(base.weight.dtype)
    with torch.no_grad():
        base.weight.copy_(map_ @ base.weight)
        for factor in getattr(layer, "lora_B", {}).values():
            factor.weight.copy_(map_ @ factor.weight)
