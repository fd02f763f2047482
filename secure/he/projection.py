"""The projection of a vision-language model on encrypted pooled features."""

from typing import Any

import numpy as np
from numpy.typing import NDArray

from secure.errors import ParameterError
from secure.he._arguments import as_matrix
from secure.he.adapter import EncryptedLoRA
from secure.he.ciphertext import Encrypted
from secure.he.keys import EvaluationKeys
from secure.he.linear import EncryptedLinear
from secure.he.params import HEParams
from secure.he.plans import Plan

_ATTRIBUTES = {"image": "visual_projection", "text": "text_projection"}


class EncryptedProjection:
    """The last linear map of a CLIP tower, from pooled features to the shared space.

    The client runs the tower up to its pooled features, encrypts them, and gets encrypted
    embeddings back: the server, who owns the projection or a LoRA on it, sees neither. The
    result is not normalised; the client does that after decrypting.

    Args:
        layer: The encrypted layer.
        modality: `image` or `text`.

    Guarantees:
        As for `EncryptedLinear`.
    """

    def __init__(self, layer: EncryptedLinear | EncryptedLoRA, modality: str) -> None:
        self.layer = layer
        self.modality = modality

    @property
    def plan(self) -> Plan:
        """How the client packs its features."""
        return self.layer.plan

    @classmethod
    def from_model(
        cls,
        model: Any,
        modality: str,
        params: HEParams,
        *,
        batch: int = 1,
        fold_lora: bool = True,
    ) -> "EncryptedProjection":
        """Take the projection of a model, with the LoRA that peft may have put on it.

        Args:
            model: Anything with `visual_projection` and `text_projection`, linear layers, such
                as transformers' `CLIPModel`; or what wraps one as its `backbone`.
            modality: `image` or `text`.
            params: Encryption parameters; `max_abs` bounds the norm of pooled features.
            batch: Vectors in one call.
            fold_lora: Add the LoRA to W (depth 0), or keep it as a second product (depth 1).

        Raises:
            ParameterError: The model has no such projection, or an adapter on it that is no
                plain LoRA.
        """
        if modality not in _ATTRIBUTES:
            raise ParameterError(f"modality is 'image' or 'text', got {modality!r}")
        name = _ATTRIBUTES[modality]
        holder = model if hasattr(model, name) else getattr(model, "backbone", model)
        if modality == "image" and getattr(model, "gate", None) is not None:
            raise ParameterError("a feature adapter follows the projection: it is not linear")
        if getattr(model, "head", None) is not None:
            raise ParameterError(
                "a head stands beside the projection, and reads frozen features: fold it into a "
                "linear layer of its own (fedvlm.adapters.folding) and pass that to "
                "EncryptedLinear.from_torch"
            )
        projection = getattr(holder, name, None)
        if projection is None or not hasattr(projection, "weight"):
            raise ParameterError(
                f"{type(model).__name__} has no linear {name}: pass its last "
                "layer to EncryptedLinear.from_torch"
            )
        weight, bias, updates = linear_and_lora(projection)
        if updates and not fold_lora:
            down = np.concatenate([a for a, _ in updates])
            up = np.concatenate([b for _, b in updates], axis=1)
            return cls(EncryptedLoRA(weight, bias, down, up, 1.0, params=params), modality)
        for a, b in updates:
            weight = weight + b @ a
        return cls(EncryptedLinear(weight, bias, params=params, batch=batch), modality)

    def __call__(self, encrypted: Encrypted, keys: EvaluationKeys | None = None) -> Encrypted:
        """Project encrypted pooled features; raises as `EncryptedLinear` does."""
        return self.layer(encrypted, keys)


def linear_and_lora(
    module: Any,
) -> tuple[
    NDArray[np.float64],
    NDArray[np.float64] | None,
    list[tuple[NDArray[np.float64], NDArray[np.float64]]],
]:
    """Return W, bias and the active LoRA updates (A, scaling * B) of a linear layer.

    Args:
        module: A `torch.nn.Linear`, or peft's LoRA layer around one.

    Raises:
        ParameterError: It carries an adapter that is no plain LoRA (DoRA, embedding).
    """
    base = module.get_base_layer() if hasattr(module, "get_base_layer") else module
    weight = as_matrix(base.weight, 2, "weight")
    bias = None if base.bias is None else as_matrix(base.bias, 1, "bias")
    if base is module or module.merged or getattr(module, "disable_adapters", False):
        return weight, bias, []
    if not hasattr(module, "lora_A"):
        raise ParameterError(
            f"{type(module).__name__} is an adapter other than LoRA: merge it first"
        )
    updates = []
    for name in module.active_adapters:
        if name not in module.lora_A:
            continue
        if name in getattr(module, "lora_magnitude_vector", {}):
            raise ParameterError(f"adapter {name!r} is a DoRA, which is not linear: merge it first")
        down = as_matrix(module.lora_A[name].weight, 2, "lora_A")
        up = as_matrix(module.lora_B[name].weight, 2, "lora_B") * float(module.scaling[name])
        if module.lora_B[name].bias is not None:
            raise ParameterError(f"adapter {name!r} has a LoRA bias: merge it first")
        updates.append((down, up))
    return weight, bias, updates
