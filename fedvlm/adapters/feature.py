"""A gate over the image features (FedCLIP)."""

import torch
from torch import Tensor, nn


class FeatureGate(nn.Module):
    """Linear–Tanh–Linear–Softmax attention over image features (Lu et al. 2023, equation 2).

    The second layer starts at zero: the gate is then uniform, and the adapted model starts out
    as the zero-shot model, since what follows normalises.

    Args:
        width: Width D of the shared space.
        generator: Draws the initial values of the first layer, from U(±1/√D).
    """

    def __init__(self, width: int, generator: torch.Generator) -> None:
        super().__init__()
        self.inner = nn.Linear(width, width)
        self.outer = nn.Linear(width, width)
        bound = width**-0.5
        with torch.no_grad():
            for parameter in self.inner.parameters():
                parameter.copy_((torch.rand(parameter.shape, generator=generator) * 2 - 1) * bound)
            for parameter in self.outer.parameters():
                parameter.zero_()

    def forward(self, features: Tensor) -> Tensor:
        """Gate features of shape (B, D)."""
        gate = torch.softmax(self.outer(torch.tanh(self.inner(features))), dim=-1)
        return gate * features
