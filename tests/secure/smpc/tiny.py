"""A tiny image classifier, compiled once: one pre-LayerNorm block on four tokens."""

import functools

import torch
from torch import nn

from secure.smpc import compile, register
from secure.smpc._handlers import pre_norm_block


class TinyAttention(nn.Module):
    def __init__(self, width):
        super().__init__()
        self.num_heads = 2
        for name in ("q_proj", "k_proj", "v_proj", "out_proj"):
            setattr(self, name, nn.Linear(width, width))

    def forward(self, x):
        batch, tokens, width = x.shape

        def split(y):
            return y.view(batch, tokens, 2, width // 2).transpose(1, 2)

        q, k, v = (split(each(x)) for each in (self.q_proj, self.k_proj, self.v_proj))
        mixed = ((q @ k.transpose(-1, -2)) * (width // 2) ** -0.5).softmax(-1) @ v
        return self.out_proj(mixed.transpose(1, 2).reshape(batch, tokens, width))


class TinyMlp(nn.Module):
    def __init__(self, width):
        super().__init__()
        self.fc1, self.fc2 = nn.Linear(width, 2 * width), nn.Linear(2 * width, width)
        self.act = nn.GELU()

    def forward(self, x):
        return self.fc2(self.act(self.fc1(x)))


class TinyBlock(nn.Module):
    def __init__(self, width):
        super().__init__()
        self.layer_norm1, self.layer_norm2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.self_attn, self.mlp = TinyAttention(width), TinyMlp(width)

    def forward(self, x):
        x = x + self.self_attn(self.layer_norm1(x))
        return x + self.mlp(self.layer_norm2(x))


class TinyTower(nn.Module):
    def __init__(self, width=16):
        super().__init__()
        self.block, self.head = TinyBlock(width), nn.Linear(width, 5)

    def forward(self, features):
        return self.head(self.block(features).mean(1))


@register("TinyTower")
def _tiny(builder, module, batch, path):
    x = builder.real(batch["features"], "features")
    x = pre_norm_block(builder, module.block, x, "block")
    x = builder.mean_tokens(x, 0, "pool")
    return builder.linear(x, module.head.weight, module.head.bias, "head")


@functools.lru_cache(maxsize=1)
def tiny():
    """Return model, calibration batch and plan."""
    torch.manual_seed(0)
    model = TinyTower().eval()
    batch = torch.randn(16, 4, 16)
    return model, batch, compile(model, batch)
