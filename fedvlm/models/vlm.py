"""The one protocol behind every model here: a dual encoder of images and captions.

It wraps Hugging Face's `CLIPModel`, `SiglipModel`, `Siglip2Model` and `VisionTextDualEncoderModel`
alike, and encoders of a user's own; the embedded default is a `CLIPModel` too, whose pixels are the
feature map of a frozen stem.
"""

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from fedvlm.errors import ConfigError

PAIR = "vision-text-dual-encoder"
"""A ViT and a BERT with projections: what transformers calls a pair of any two towers."""
OWN = "own"
SUPPORTED = ("clip", "siglip", "siglip2", PAIR)

POOLED = "pooled_image_features"
"""The input that stands for an image whose frozen tower has been run before."""

Inputs = Mapping[str, Tensor]


class VLM(nn.Module):
    """A vision-language model with images and captions in one space.

    Args:
        backbone: A Hugging Face dual encoder of one of the types in `SUPPORTED`, or the same
            wrapped by peft.

    Raises:
        ConfigError: The model is of another type.
    """

    def __init__(self, backbone: nn.Module) -> None:
        super().__init__()
        kind = getattr(getattr(backbone, "config", None), "model_type", type(backbone).__name__)
        if kind not in (*SUPPORTED, OWN):
            raise ConfigError(
                f"a model of type {kind!r} has no image and text encoder for "
                f"retrieval; use one of {', '.join(SUPPORTED)}"
            )
        self.backbone = backbone
        # What an adapter may put in: tokens before the caption, a gate after the image tower.
        self.prompt: nn.Module | None = None
        self.gate: nn.Module | None = None
        # What widens both embeddings beside the towers: `fedvlm.adapters.prototypes`.
        self.head: nn.Module | None = None
        # The padding's id where captions are padded on the left: what the prompt may cut there.
        self.left_padding: int | None = None
        # Inputs to try the towers with, where the configuration doesn't tell their shapes.
        self.probe: Callable[[int], tuple[Inputs, Inputs]] | None = None
        # Of the base model as it was loaded, where `place` has rounded it since.
        self.hash_as_loaded: str | None = None
        first = next(backbone.parameters())
        self.device, self.dtype = first.device, first.dtype
        self.train(backbone.training)  # the mode of what it holds, not a new module's own

    def set_placement(self, device: torch.device, dtype: torch.dtype) -> None:
        """Note where the base model is and in which precision; `placement.place` moves it."""
        self.device, self.dtype = device, dtype

    def train(self, mode: bool = True) -> "VLM":
        """Set the mode; what counts batches (batch norm) stays as it was pretrained."""
        super().train(mode)
        for module in self.modules():
            if isinstance(module, nn.modules.batchnorm._BatchNorm):
                module.eval()
        return self

    @property
    def embedding_dim(self) -> int:
        """Width D of the shared space."""
        config = self.backbone.config
        if config.model_type in ("clip", PAIR, OWN):  # pyright: ignore
            return config.projection_dim  # pyright: ignore
        return config.vision_config.hidden_size  # pyright: ignore

    @property
    def logit_scale(self) -> Tensor:
        """Inverse temperature, a positive scalar tensor."""
        return self.backbone.logit_scale.exp().reshape(())  # pyright: ignore

    @property
    def logit_bias(self) -> Tensor:
        """What a sigmoid loss adds to the scaled cosines: SigLIP's own, else 0; a scalar."""
        bias = getattr(self.backbone, "logit_bias", None)
        return self.logit_scale.new_zeros(()) if bias is None else bias.reshape(())  # pyright: ignore

    def ready(self, inputs: Inputs) -> dict[str, Tensor]:
        """Return inputs on the model's device, pixels in its precision."""
        return {
            key: value.to(self.device, self.dtype if value.is_floating_point() else None)
            for key, value in inputs.items()
        }

    def pooled_image(self, inputs: Inputs) -> Tensor:
        """Return the image tower's projected features, shape (B, D), float32, not normalised.

        Args:
            inputs: As for `encode_image`.
        """
        if POOLED in inputs:
            return inputs[POOLED].to(self.device, torch.float32)
        ready = self.ready(inputs)
        found: Any = self.backbone.get_image_features(**ready)  # pyright: ignore
        return found.pooler_output.float()

    def encode_image(self, inputs: Inputs) -> Tensor:
        """Embed images.

        Args:
            inputs: `pixel_values` of shape (B, C, H, W), float, as the model's processor
                makes them; for SigLIP 2 also `pixel_attention_mask` and `spatial_shapes`. Or
                `POOLED` alone: what a frozen tower's `pooled_image` gave before.

        Returns:
            Shape (B, D), float32, rows of unit norm.
        """
        pooled = self.pooled_image(inputs)
        if self.gate is not None:
            pooled = self.gate(pooled)
        if self.head is not None:
            there = {key: value.to(self.device) for key, value in inputs.items()}
            return self.head.images(F.normalize(pooled, dim=-1), there)  # pyright: ignore
        return F.normalize(pooled, dim=-1)

    def encode_text(self, inputs: Inputs) -> Tensor:
        """Embed captions.

        Args:
            inputs: `input_ids` of shape (B, L), int64, and `attention_mask` of the same shape.

        Returns:
            Shape (B, D), float32, rows of unit norm.
        """
        if self.prompt is not None:
            inputs = self.prompt(inputs)
        found: Any = self.backbone.get_text_features(**self.ready(inputs))  # pyright: ignore
        pooled = found.pooler_output.float()
        if self.head is not None:
            there = {key: value.to(self.device) for key, value in inputs.items()}
            return self.head.texts(F.normalize(pooled, dim=-1), there)  # pyright: ignore
        return F.normalize(pooled, dim=-1)

    def similarity(self, images: Inputs, texts: Inputs) -> Tensor:
        """Return cosines of every image with every caption: shape (B, C)."""
        return self.encode_image(images) @ self.encode_text(texts).T

    @torch.inference_mode()
    def embed(self, inputs: Inputs, which: str, batch_size: int = 512) -> Tensor:
        """Embed many images or captions, batch by batch, without gradients.

        Args:
            inputs: As for `encode_image` or `encode_text`, N rows.
            which: "image" or "text".
            batch_size: Rows a batch.

        Returns:
            Shape (N, D), float32, on the CPU.
        """
        encode = self.encode_image if which == "image" else self.encode_text
        rows = len(next(iter(inputs.values())))
        was_training = self.training
        self.eval()
        parts = [
            encode({key: value[start : start + batch_size] for key, value in inputs.items()}).cpu()
            for start in range(0, rows, batch_size)
        ]
        self.train(was_training)
        return torch.cat(parts) if parts else torch.empty(0, self.embedding_dim)
