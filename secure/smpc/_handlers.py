"""How torch modules map to operations: one function a class name.

Only names and structure are looked at, so that transformers need not be imported, and a module
with the names of a known one (a tower of your own) maps as that one does.
"""

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from secure.smpc._builder import Affine, Builder, Value
from secure.smpc.errors import UnsupportedModuleError

Batch = Mapping[str, Tensor]
#: A torch module whose parts are looked up by name.
Module = Any
Handler = Callable[[Builder, Module, Batch, str], Value]
_HANDLERS: dict[str, Handler] = {}

_ACTIVATIONS = {
    "GELUActivation": "gelu",
    "GELUTanh": "gelu_tanh",
    "PytorchGELUTanh": "gelu_tanh",
    "NewGELUActivation": "gelu_tanh",
    "FastGELUActivation": "gelu_tanh",
    "AccurateGELUActivation": "gelu_tanh",
    "QuickGELUActivation": "quick_gelu",
    "Tanh": "tanh",
}

#: What of well-known models has no private counterpart here, by the start of the class name.
_GAPS = {
    "DeiT": "its distillation token",
    "Beit": "the relative positions and the scaling of its attention",
    "Data2VecVision": "the relative positions and the scaling of its attention",
    "Swin": "attention in shifted windows",
    "ConvNext": "convolutions that overlap",
    "Albert": "layers that share their weights",
    "Deberta": "its disentangled attention",
    "ModernBert": "rotary positions",
    "Electra": "embeddings of another width than the layers'",
}


def register(*names: str) -> Callable[[Handler], Handler]:
    """Register a handler for the models of these class names.

    Args:
        names: Class names, as `type(model).__name__` gives them.

    Returns:
        Decorator for a function `(builder, module, batch, path) -> Value`; see `Builder`.
    """

    def add(handler: Handler) -> Handler:
        for name in names:
            _HANDLERS[name] = handler
        return handler

    return add


def trace(builder: Builder, module: Module, batch: Batch, path: str = "") -> Value:
    """Map a model by its class name.

    Raises:
        UnsupportedModuleError: No handler has that name.
    """
    name = type(module).__name__
    for part, child in module.named_modules():
        if any(mark in type(child).__name__ for mark in ("Lora", "PeftModel")):
            raise UnsupportedModuleError(
                part, type(child).__name__, "merge adapters first: model.merge_and_unload()"
            )
    handler = _HANDLERS.get(name)
    if handler is None:
        gap = next((why for start, why in _GAPS.items() if name.startswith(start)), None)
        reason = "no mapping" if gap is None else f"no mapping for {gap}"
        raise UnsupportedModuleError(path, name, f"{reason}; known: {', '.join(sorted(_HANDLERS))}")
    return handler(builder, module, batch, path)


def join(path: str, name: str) -> str:
    """Join module paths."""
    return f"{path}.{name}" if path else name


def need(module: Module, names: tuple[str, ...], path: str) -> list[Module]:
    """Return submodules by name, or say which one is missing."""
    missing = [name for name in names if getattr(module, name, None) is None]
    if missing:
        raise UnsupportedModuleError(
            path, type(module).__name__, f"has no {', '.join(missing)}, which its mapping needs"
        )
    return [getattr(module, name) for name in names]


def plain_linear(module: Module, path: str) -> nn.Linear:
    if type(module) is not nn.Linear:
        raise UnsupportedModuleError(path, type(module).__name__, "expected a plain Linear")
    return module


def activation_name(module: object, path: str) -> str:
    """Return the series' name for an activation module or function."""
    if isinstance(module, nn.GELU):
        return "gelu" if module.approximate == "none" else "gelu_tanh"
    if module is torch.nn.functional.gelu:
        return "gelu"
    name = type(module).__name__
    if name not in _ACTIVATIONS:
        known = ", ".join(sorted({"GELU", *_ACTIVATIONS}))
        raise UnsupportedModuleError(path, name, f"no series for this activation; known: {known}")
    return _ACTIVATIONS[name]


def self_attention(
    builder: Builder,
    normed: Affine,
    projections: tuple[Module, Module, Module],
    heads: int,
    path: str,
    causal: bool = False,
    scale: float | None = None,
    mask: Value | None = None,
    bias: Tensor | None = None,
) -> Value:
    """Project once for queries, keys and values, fold in LayerNorm and the scale, and attend."""
    parts = [plain_linear(each, path) for each in projections]
    width = parts[0].out_features
    scale = (width // heads) ** -0.5 if scale is None else scale
    folded = normed.fold([p.weight for p in parts], [p.bias for p in parts])
    (wq, bq), (wk, bk), (wv, bv) = folded
    stacked = builder.linear(
        normed.core,
        torch.cat([wq * scale, wk, wv]),
        torch.cat([bq * scale, bk, bv]),
        join(path, "qkv"),
    )
    q, k, v = (builder.slice(stacked, i * width, (i + 1) * width, path) for i in range(3))
    return builder.attention(q, k, v, heads, path, causal, mask, bias)


def feed_forward(
    builder: Builder,
    normed: Affine,
    first: Module,
    activation: object,
    second: Module,
    path: str,
    scale: Module | None = None,
) -> Value:
    """Two linears around an activation; the result is left untruncated for the residual."""
    first, second = plain_linear(first, join(path, "fc1")), plain_linear(second, join(path, "fc2"))
    ((weight, bias),) = normed.fold([first.weight], [first.bias])
    hidden = builder.linear(normed.core, weight, bias, join(path, "fc1"), output="activation")
    hidden = builder.activation(hidden, activation_name(activation, path), join(path, "act"))
    weight, bias = _scaled(second, scale)
    return builder.linear(hidden, weight, bias, join(path, "fc2"), output="raw")


def _scaled(linear: nn.Linear, scale: Module | None) -> tuple[Tensor, Tensor | None]:
    """Return a linear layer's weight and bias with DINOv2's layer scale behind it folded in."""
    if scale is None:
        return linear.weight, linear.bias
    factor = scale.lambda1.detach().to(torch.float64)
    bias = None if linear.bias is None else linear.bias.detach().to(torch.float64) * factor
    return linear.weight.detach().to(torch.float64) * factor.unsqueeze(-1), bias


def pre_norm_block(
    builder: Builder,
    block: Module,
    x: Value,
    path: str,
    causal: bool = False,
    mask: Value | None = None,
) -> Value:
    """Map a pre-LayerNorm transformer block with the names of CLIP's, ViT's or DINOv2's."""
    scales = (None, None)
    if hasattr(block, "layer_scale1"):
        names = ("norm1", "attention", "norm2", "mlp")
        norm1, attention, norm2, mlp = need(block, names, path)
        scales = (block.layer_scale1, block.layer_scale2)
        attention_path = join(path, "attention")
        parts = ("q_proj", "k_proj", "v_proj", "o_proj")
    elif hasattr(block, "self_attn"):
        names = ("layer_norm1", "self_attn", "layer_norm2", "mlp")
        norm1, attention, norm2, mlp = need(block, names, path)
        attention_path = join(path, "self_attn")
        parts = ("q_proj", "k_proj", "v_proj", "out_proj")
    else:
        names = ("layernorm_before", "attention", "layernorm_after", "mlp")
        norm1, attention, norm2, mlp = need(block, names, path)
        attention_path = join(path, "attention")
        parts = ("q_proj", "k_proj", "v_proj", "o_proj")
    q, k, v, out = need(attention, parts, attention_path)
    heads = head_count(attention, attention_path)
    scale = getattr(attention, "scale", getattr(attention, "scaling", None))
    normed = builder.layer_norm(x, norm1, join(path, names[0]))
    mixed = self_attention(builder, normed, (q, k, v), heads, attention_path, causal, scale, mask)
    out = plain_linear(out, join(attention_path, parts[3]))
    weight, bias = _scaled(out, scales[0])
    update = builder.linear(mixed, weight, bias, join(attention_path, parts[3]), output="raw")
    x = builder.add(x, update, path)
    normed = builder.layer_norm(x, norm2, join(path, names[2]))
    first, second = need(mlp, ("fc1", "fc2"), join(path, "mlp"))
    activation = mlp_activation(mlp, join(path, "mlp"))
    update = feed_forward(builder, normed, first, activation, second, join(path, "mlp"), scales[1])
    return builder.add(x, update, path)


def head_count(attention: Module, path: str) -> int:
    for name in ("num_heads", "num_attention_heads", "heads"):
        if isinstance(getattr(attention, name, None), int):
            return getattr(attention, name)
    raise UnsupportedModuleError(path, type(attention).__name__, "doesn't say its number of heads")


def mlp_activation(mlp: Module, path: str) -> object:
    for name in ("activation_fn", "act", "activation"):
        if getattr(mlp, name, None) is not None:
            return getattr(mlp, name)
    raise UnsupportedModuleError(path, type(mlp).__name__, "doesn't say its activation")


def encoder(
    builder: Builder,
    layers: Module,
    x: Value,
    path: str,
    causal: bool = False,
    mask: Value | None = None,
) -> Value:
    """Map a stack of pre-LayerNorm blocks."""
    for i, block in enumerate(layers):
        x = pre_norm_block(builder, block, x, f"{path}.{i}", causal, mask)
    return x


def project(builder: Builder, normed: Affine, projection: Module | None, path: str) -> Value:
    """Apply LayerNorm's affine part folded into a projection, or alone where there is none."""
    if projection is None:
        return builder.affine(normed)
    linear = plain_linear(projection, path)
    ((weight, bias),) = normed.fold([linear.weight], [linear.bias])
    return builder.linear(normed.core, weight, bias, path)
