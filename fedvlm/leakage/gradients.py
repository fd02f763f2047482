"""Per-example gradients of an adapter, by hooks on its linear layers."""

from collections.abc import Callable

import torch
from torch import Tensor, nn

from fedvlm.adapters.flat import FlatView


def per_example_gradients(
    module: nn.Module, view: FlatView, losses: Callable[[], Tensor]
) -> Tensor:
    """Return the gradient of each example's loss in the adapter's parameters.

    One backward pass: a linear layer's gradient for an example is the outer product of what came
    in and of what flows back, summed over tokens (Goodfellow 2015). A parameter outside a linear
    layer (prompt tokens) takes a backward pass an example.

    Args:
        module: The model with its adapter.
        view: The adapter's parameters, P floats.
        losses: Runs the model and returns shape (N,), each of one example alone; every layer
            must see the N examples in its first dimension.

    Returns:
        Shape (N, P), float32, in the order of the view.
    """
    wanted = {id(p): p for p in view.parameters}
    linear = [
        layer
        for layer in module.modules()
        if isinstance(layer, nn.Linear) and id(layer.weight) in wanted
    ]
    covered = {id(p) for layer in linear for p in layer.parameters()}
    if wanted.keys() - covered:
        return _one_by_one(view, losses)
    found: dict[int, Tensor] = {}

    def keep(layer: nn.Module, args: tuple, output: Tensor) -> None:
        seen = args[0].detach()

        def collect(flowing: Tensor) -> None:
            gradient = torch.einsum("n...i,n...o->noi", seen, flowing)
            found[id(layer.weight)] = gradient.flatten(1)
            if id(layer.bias) in wanted:
                tokens = tuple(range(1, flowing.dim() - 1))
                found[id(layer.bias)] = flowing.sum(tokens) if tokens else flowing

        output.register_hook(collect)

    handles = [layer.register_forward_hook(keep) for layer in linear]
    try:
        values = losses()
        torch.autograd.grad(values.sum(), view.parameters, allow_unused=True)
    finally:
        for handle in handles:
            handle.remove()
    rows = len(values)
    return torch.cat(
        [found[id(p)] if id(p) in found else torch.zeros(rows, p.numel()) for p in view.parameters],
        dim=1,
    )


def _one_by_one(view: FlatView, losses: Callable[[], Tensor]) -> Tensor:
    values = losses()
    rows = []
    for value in values:
        grads = torch.autograd.grad(value, view.parameters, retain_graph=True, allow_unused=True)
        pieces = zip(grads, view.parameters, strict=True)
        rows.append(
            torch.cat([(torch.zeros_like(p) if g is None else g).reshape(-1) for g, p in pieces])
        )
    return torch.stack(rows).detach()
