"""A weight that several layers use is no layer's alone."""

from typing import Any, cast

import pytest
import torch
from torch import nn

from fedvlm.privacy._layerwise import taps_of


class Tied(nn.Module):
    """Words in, words out, by one table."""

    def __init__(self) -> None:
        super().__init__()
        self.backbone = nn.Module()
        self.words = nn.Embedding(7, 4)
        self.inner = nn.Linear(4, 4)
        self.last = nn.Linear(4, 7, bias=False)
        self.last.weight = self.words.weight


@pytest.mark.parametrize("shared", [True, False])
def test_taps_cover_what_is_a_linear_layer_s_alone(shared):
    """The clipped sum would miss the embedding's part of a gradient that is the sum of both."""
    model = Tied()
    if not shared:
        model.last.weight = nn.Parameter(torch.zeros(7, 4))
    model.words.weight.requires_grad_(shared)
    trained = [p for p in model.parameters() if p.requires_grad]
    found = taps_of(cast(Any, model), trained)
    assert (found is None) == shared


def test_two_linear_layers_that_share_a_weight_are_not_told_apart():
    model = Tied()
    model.words.weight.requires_grad_(False)
    model.last.weight = nn.Parameter(torch.zeros(4, 4))
    model.inner.weight = model.last.weight
    model.inner.bias.requires_grad_(False)
    assert taps_of(cast(Any, model), [model.inner.weight]) is None
