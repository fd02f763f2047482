"""The one protocol behind every model here: a dual encoder of images and captions.

It wraps Hugging Face's `CLIPModel`, `SiglipModel` and `Siglip2Model` alike; the embedded default
is a `CLIPModel` too, whose pixels are the feature map of a frozen stem.
"""

from collections.abc import Mapping

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from fedvlm.errors import ConfigError

SUPPORTED = ("clip", "siglip", "siglip2")

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
        if kind not in SUPPORTED:
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
        self.train(backbone.training)  # the mode of what it holds, not a new module's own

    @property
    def embedding_dim(self) -> int:
        """Width D of the shared space."""
        config = self.backbone.config
        if config.model_type == "clip":  # pyright: ignore[reportAttributeAccessIssue]
            return config.projection_dim  # pyright: ignore
        return config.vision_config.hidden_size  # pyright: ignore

    @property
    def logit_scale(self) -> Tensor:
        """Inverse temperature, a positive scalar tensor."""
        return self.backbone.logit_scale.exp().reshape(())  # pyright: ignore

    def encode_image(self, inputs: Inputs) -> Tensor:
        """Embed images.

        Args:
            inputs: `pixel_values` of shape (B, C, H, W), float, as the model's processor
                makes them; for SigLIP 2 also `pixel_attention_mask` and `spatial_shapes`.

        Returns:
            Shape (B, D), float32, rows of unit norm.
        """
        pooled = self.backbone.get_image_features(**inputs).pooler_output  # pyright: ignore
        if self.gate is not None:
            pooled = self.gate(pooled)
        if self.head is not None:
            return self.head.images(F.normalize(pooled, dim=-1), inputs)  # pyright: ignore
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
        pooled = self.backbone.get_text_features(**inputs).pooler_output  # pyright: ignore
        if self.head is not None:
            return self.head.texts(F.normalize(pooled, dim=-1), inputs)  # pyright: ignore
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
            Shape (N, D), float32.
        """
        encode = self.encode_image if which == "image" else self.encode_text
        rows = len(next(iter(inputs.values())))
        was_training = self.training
        self.eval()
        parts = [
            encode({key: value[start : start + batch_size] for key, value in inputs.items()})
            for start in range(0, rows, batch_size)
        ]
        self.train(was_training)
        return torch.cat(parts) if parts else torch.empty(0, self.embedding_dim)
