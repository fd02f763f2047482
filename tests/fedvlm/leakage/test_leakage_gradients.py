"""Per-example gradients by hooks against one backward pass an example."""

import torch
from torch import nn

from fedvlm.adapters.flat import FlatView
from fedvlm.leakage.gradients import per_example_gradients


class _Tower(nn.Module):
    """Two linear layers over tokens, one with bias over pooled features, one frozen."""

    def __init__(self, free: bool = False) -> None:
        super().__init__()
        self.a = nn.Linear(6, 3, bias=False)
        self.b = nn.Linear(3, 6, bias=False)
        self.frozen = nn.Linear(6, 6).requires_grad_(False)
        self.head = nn.Linear(6, 2)
        self.shift = nn.Parameter(torch.zeros(6)) if free else None

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if self.shift is not None:
            x = x + self.shift
        x = torch.tanh(self.frozen(x) + self.b(self.a(x)))
        return self.head(x.mean(dim=1)).pow(2).sum(dim=1)


def _check(module: nn.Module) -> None:
    torch.manual_seed(0)
    x = torch.randn(5, 4, 6)
    view = FlatView(module)
    found = per_example_gradients(module, view, lambda: module(x))
    for row, one in zip(found, x, strict=True):
        grads = torch.autograd.grad(module(one[None])[0], view.parameters)
        expected = torch.cat([g.reshape(-1) for g in grads])
        torch.testing.assert_close(row, expected, atol=1e-6, rtol=1e-5)


def test_gradients_of_linear_layers_equal_one_backward_pass_an_example() -> None:
    _check(_Tower())


def test_a_parameter_outside_a_linear_layer_is_covered_too() -> None:
    _check(_Tower(free=True))
