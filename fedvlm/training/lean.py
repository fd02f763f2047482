"""LoRA's forward and backward pass with less to remember: the same gradients, in less memory.

A plain peft layer keeps its input for A's gradient, an activation keeps two or three tensors of
the widest size, and a layer norm's output is kept beside its input. Each of these follows from
another tensor that is kept anyway, by an elementwise pass that costs next to nothing beside the
matrix products. Here they are computed again in the backward pass. LoRA's own products are added
in place, so that the scaled update is never a tensor of its own.
"""

import types
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

LEAST_WEIGHTS = 16_000_000
"""Base weights from which it is used: below, there is nothing to save."""
_NORM = "_fedvlm_norm"  # on a layer norm's output: the layer, and what it took
_MLP = ("fc1", "fc2", "activation_fn")  # of CLIP, SigLIP, SigLIP 2
_GATED = ("gate_proj", "up_proj", "down_proj", "act_fn")  # of Llama, Qwen, Gemma

Activation = Callable[[Tensor], Tensor]


class _LoraLinear(torch.autograd.Function):
    """y = W x + b + s B A x of a frozen layer, where x is a layer norm's or activation's output."""

    @staticmethod
    def forward(  # pyright: ignore[reportIncompatibleMethodOverride]
        ctx: Any,
        x: Tensor,
        before: Tensor | None,
        weight: Tensor,
        bias: Tensor | None,
        a: Tensor,
        b: Tensor,
        scale: float,
        norm: nn.Module | None,
        act: Activation | None,
    ) -> Tensor:
        given = x if act is None else act(x)
        out = F.linear(given, weight, bias)
        inner = given.reshape(-1, given.shape[-1]).to(a.dtype) @ a.T
        flat = out.view(-1, out.shape[-1])
        if flat.dtype == b.dtype:
            flat.addmm_(inner, b.T, alpha=scale)
        else:
            flat += (inner @ b.T).mul_(scale).to(flat.dtype)
        ctx.save_for_backward(x if before is None else before, inner, weight, a, b)
        ctx.rest = (scale, norm, act)
        return out

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        kept, inner, weight, a, b = ctx.saved_tensors
        scale, norm, act = ctx.rest
        for_x, for_a, for_b = (ctx.needs_input_grad[i] for i in (0, 4, 5))
        grad = grads[0]
        flat = grad.reshape(-1, grad.shape[-1])
        low = flat.to(b.dtype)
        narrow = (low @ b).mul_(scale)
        grad_b = (low.T @ inner).mul_(scale) if for_b else None
        given = opened = None
        if act is not None and (for_x or for_a):
            with torch.enable_grad():
                opened = kept.detach().requires_grad_()
                given = act(opened)
        elif for_a:
            # The norm's own forward, past its hooks: a norm has nothing of LoRA in it.
            given = kept if norm is None else norm.forward(kept)
        grad_a = None
        if for_a and given is not None:
            grad_a = narrow.T @ given.detach().reshape(-1, given.shape[-1]).to(a.dtype)
        grad_x = None
        if for_x:
            grad_x = flat @ weight
            if grad_x.dtype == a.dtype:
                grad_x.addmm_(narrow, a)
            else:
                grad_x += (narrow @ a).to(grad_x.dtype)
            grad_x = grad_x.view(*grad.shape[:-1], weight.shape[1])
            if opened is not None and given is not None:
                (grad_x,) = torch.autograd.grad(given, opened, grad_x)
        return grad_x, None, None, None, grad_a, grad_b, None, None, None


class _Activation(torch.autograd.Function):
    """An activation that keeps its input alone."""

    @staticmethod
    def forward(  # pyright: ignore[reportIncompatibleMethodOverride]
        ctx: Any, x: Tensor, act: Activation
    ) -> Tensor:
        ctx.save_for_backward(x)
        ctx.act = act
        return act(x)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        (x,) = ctx.saved_tensors
        with torch.enable_grad():
            opened = x.detach().requires_grad_()
            (grad,) = torch.autograd.grad(ctx.act(opened), opened, grads[0])
        return grad, None


class _Gate(torch.autograd.Function):
    """act(x) * y, of which x and y alone are kept."""

    @staticmethod
    def forward(  # pyright: ignore[reportIncompatibleMethodOverride]
        ctx: Any, x: Tensor, y: Tensor, act: Activation
    ) -> Tensor:
        ctx.save_for_backward(x, y)
        ctx.act = act
        return act(x) * y

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        with torch.enable_grad():
            pair = [each.detach().requires_grad_() for each in ctx.saved_tensors]
            found = torch.autograd.grad(ctx.act(pair[0]) * pair[1], pair, grads[0])
        return *found, None


def _plain_lora(module: nn.Module) -> bool:
    """Say whether a module is a peft LoRA whose value is W x + b + s B A x and nothing else."""
    layer: Any = module
    if type(getattr(layer, "base_layer", None)) is not nn.Linear or not hasattr(layer, "lora_A"):
        return False
    names = list(layer.active_adapters)
    if len(names) != 1 or names[0] not in layer.lora_A or layer.lora_variant:
        return False
    (name,) = names
    own = (layer.base_layer.weight, layer.base_layer.bias)
    factors = (layer.lora_A[name], layer.lora_B[name])
    return (
        not any(p is not None and p.requires_grad for p in own)
        and isinstance(layer.lora_dropout[name], nn.Identity)
        and all(type(factor) is nn.Linear and factor.bias is None for factor in factors)
        and not (layer.merged or layer.disable_adapters)
    )


def _apply(layer: Any, x: Tensor, act: Activation | None = None) -> Tensor:
    (name,) = layer.active_adapters
    norm, before = (None, None) if act is not None else getattr(x, _NORM, (None, None))
    return _LoraLinear.apply(  # pyright: ignore[reportReturnType]
        x,
        before,
        layer.base_layer.weight,
        layer.base_layer.bias,
        layer.lora_A[name].weight,
        layer.lora_B[name].weight,
        float(layer.scaling[name]),
        norm,
        act,
    )


def _lora_forward(self: nn.Module, x: Tensor) -> Tensor:
    return _apply(self, x)


def _mlp_forward(self: Any, x: Tensor) -> Tensor:
    wide = self.fc1(x)
    if _plain_lora(self.fc2):
        return _apply(self.fc2, wide, self.activation_fn)
    return self.fc2(_Activation.apply(wide, self.activation_fn))


def _gated_forward(self: Any, x: Tensor) -> Tensor:
    return self.down_proj(_Gate.apply(self.gate_proj(x), self.up_proj(x), self.act_fn))


def _is_norm(module: nn.Module) -> bool:
    """Say whether a module is a frozen norm over the last dimension."""
    named = type(module) is nn.LayerNorm or type(module).__name__.endswith("RMSNorm")
    return named and not any(p.requires_grad for p in module.parameters())


def _mark(module: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
    setattr(output, _NORM, (module, inputs[0].detach()))


@contextmanager
def lean(model: nn.Module, always: bool = False) -> Iterator[None]:
    """Train a LoRA with less memory within this block.

    Args:
        model: A model with an adapter. Only LoRA layers of peft's plain kind take part, and only
            where the model has `LEAST_WEIGHTS` or more; the others go on as they were.
        always: Whether small models take part too.

    Guarantees:
        Outputs and gradients are those of the plain layers but for rounding. On leaving, the model
        is as it was.
    """
    modules = list(model.modules())
    size = sum(p.numel() for p in model.parameters())
    if (size < LEAST_WEIGHTS and not always) or not any(map(_plain_lora, modules)):
        yield
        return
    patched: list[nn.Module] = []
    handles = []
    try:
        for module in modules:
            if _is_norm(module):
                handles.append(module.register_forward_hook(_mark))
                continue
            if _plain_lora(module):
                forward = _lora_forward
            elif all(hasattr(module, part) for part in _MLP):
                forward = _mlp_forward
            elif all(hasattr(module, part) for part in _GATED):
                forward = _gated_forward
            else:
                continue
            module.forward = types.MethodType(forward, module)
            patched.append(module)
        yield
    finally:
        for module in patched:
            del module.forward
        for handle in handles:
            handle.remove()
