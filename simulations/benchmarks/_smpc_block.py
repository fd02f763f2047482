"""The block that the benchmark computes privately: one encoder block of ViT-B/32's size."""

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from secure.smpc import Builder, Value, register
from secure.smpc._handlers import pre_norm_block


class EncoderBlocks(nn.Module):
    """A stack of CLIP's encoder blocks with random weights of a trained model's spread.

    Args:
        width: Features.
        heads: Attention heads.
        hidden: Features of the MLP.
        depth: Number of blocks.
    """

    def __init__(
        self, width: int = 768, heads: int = 12, hidden: int = 3072, depth: int = 1
    ) -> None:
        super().__init__()
        from transformers import CLIPVisionConfig
        from transformers.models.clip.modeling_clip import CLIPEncoderLayer

        config = CLIPVisionConfig(
            hidden_size=width, num_attention_heads=heads, intermediate_size=hidden
        )
        config._attn_implementation = "eager"
        config.hidden_act = "gelu"
        self.layers = nn.ModuleList(CLIPEncoderLayer(config) for _ in range(depth))
        for name, parameter in self.named_parameters():
            if parameter.dim() == 2:
                # Queries and keys half as large again: scores of a deviation over 2.
                gain = 1.5 if "q_proj" in name or "k_proj" in name else 1.0
                nn.init.normal_(parameter, std=gain * parameter.shape[1] ** -0.5)

    def forward(self, features: Tensor) -> Tensor:
        """Map `(batch, tokens, width)` to the same shape."""
        for layer in self.layers:
            features = layer(features, None)
        return features


@register("EncoderBlocks")
def _blocks(
    builder: Builder, module: EncoderBlocks, batch: Mapping[str, Tensor], path: str
) -> Value:
    x = builder.real(batch["features"], "features")
    for i, layer in enumerate(module.layers):
        x = pre_norm_block(builder, layer, x, f"layers.{i}")
    builder.rescale(x, 16, "output")
    return x


def make(
    tokens: int = 50, width: int = 768, heads: int = 12, hidden: int = 3072, depth: int = 1
) -> tuple[EncoderBlocks, Tensor]:
    """Return a stack of blocks and a batch of two inputs, the same in every process."""
    torch.manual_seed(0)
    return EncoderBlocks(width, heads, hidden, depth).eval(), torch.randn(2, tokens, width)
