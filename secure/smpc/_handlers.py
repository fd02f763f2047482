"""How torch modules map to operations: one function a class name.

Only names and structure are looked at, so that transformers need not be imported, and a module
with the names of a known one (a tower of your own) maps as that one does.
"""

from collections.abc import Callable, Mapping

import torch
from torch import Tensor, nn

from secure.smpc._builder import Affine, Builder, Value
from secure.smpc.errors import UnsupportedModuleError

Batch = Mapping[str, Tensor]
Handler = Callable[[Builder, nn.Module, Batch, str], Value]
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


def trace(builder: Builder, module: nn.Module, batch: Batch, path: str = "") -> Value:
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
        raise UnsupportedModuleError(
            path, name, f"no mapping; known: {', '.join(sorted(_HANDLERS))}"
        )
    return handler(builder, module, batch, path)


def join(path: str, name: str) -> str:
    """Join module paths."""
    return f"{path}.{name}" if path else name


def _need(module: nn.Module, names: tuple[str, ...], path: str) -> list[nn.Module]:
    """Return submodules by name, or say which one is missing."""
    missing = [name for name in names if getattr(module, name, None) is None]
    if missing:
        raise UnsupportedModuleError(
            path, type(module).__name__, f"has no {', '.join(missing)}, which its mapping needs"
        )
    return [getattr(module, name) for name in names]


def _linear(module: nn.Module, path: str) -> nn.Linear:
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


# -- blocks ----------------------------------------------------------------------------------


def self_attention(
    builder: Builder,
    normed: Affine,
    projections: tuple[nn.Module, nn.Module, nn.Module],
    heads: int,
    path: str,
    causal: bool = False,
    scale: float | None = None,
) -> Value:
    """Project once for queries, keys and values, fold in LayerNorm and the scale, and attend."""
    parts = [_linear(each, path) for each in projections]
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
    q, k, v = (
        builder.slice(stacked, i * width, (i + 1) * width, path) for i in range(3)
    )
    return builder.attention(q, k, v, heads, path, causal)


def feed_forward(
    builder: Builder,
    normed: Affine,
    first: nn.Module,
    activation: object,
    second: nn.Module,
    path: str,
) -> Value:
    """Two linears around an activation; the result is left untruncated for the residual."""
    first, second = _linear(first, join(path, "fc1")), _linear(second, join(path, "fc2"))
    ((weight, bias),) = normed.fold([first.weight], [first.bias])
    hidden = builder.linear(normed.core, weight, bias, join(path, "fc1"), output="activation")
    hidden = builder.activation(hidden, activation_name(activation, path), join(path, "act"))
    return builder.linear(hidden, second.weight, second.bias, join(path, "fc2"), output="raw")


def pre_norm_block(
    builder: Builder, block: nn.Module, x: Value, path: str, causal: bool = False
) -> Value:
    """Map a pre-LayerNorm transformer block with the names of CLIP's or of ViT's."""
    if hasattr(block, "self_attn"):
        names = ("layer_norm1", "self_attn", "layer_norm2", "mlp")
        norm1, attention, norm2, mlp = _need(block, names, path)
        attention_path = join(path, "self_attn")
        parts = ("q_proj", "k_proj", "v_proj", "out_proj")
    else:
        names = ("layernorm_before", "attention", "layernorm_after", "mlp")
        norm1, attention, norm2, mlp = _need(block, names, path)
        attention_path = join(path, "attention")
        parts = ("q_proj", "k_proj", "v_proj", "o_proj")
    q, k, v, out = _need(attention, parts, attention_path)
    heads = _heads(attention, attention_path)
    scale = getattr(attention, "scale", getattr(attention, "scaling", None))
    normed = builder.layer_norm(x, norm1, join(path, names[0]))
    mixed = self_attention(builder, normed, (q, k, v), heads, attention_path, causal, scale)
    out = _linear(out, join(attention_path, parts[3]))
    update = builder.linear(
        mixed, out.weight, out.bias, join(attention_path, parts[3]), output="raw"
    )
    x = builder.add(x, update, path)
    normed = builder.layer_norm(x, norm2, join(path, names[2]))
    first, second = _need(mlp, ("fc1", "fc2"), join(path, "mlp"))
    activation = _mlp_activation(mlp, join(path, "mlp"))
    update = feed_forward(builder, normed, first, activation, second, join(path, "mlp"))
    return builder.add(x, update, path)


def _heads(attention: nn.Module, path: str) -> int:
    for name in ("num_heads", "num_attention_heads", "heads"):
        if isinstance(getattr(attention, name, None), int):
            return getattr(attention, name)
    raise UnsupportedModuleError(path, type(attention).__name__, "doesn't say its number of heads")


def _mlp_activation(mlp: nn.Module, path: str) -> object:
    for name in ("activation_fn", "act", "activation"):
        if getattr(mlp, name, None) is not None:
            return getattr(mlp, name)
    raise UnsupportedModuleError(path, type(mlp).__name__, "doesn't say its activation")


def encoder(
    builder: Builder, layers: nn.ModuleList, x: Value, path: str, causal: bool = False
) -> Value:
    """Map a stack of pre-LayerNorm blocks."""
    for i, block in enumerate(layers):
        x = pre_norm_block(builder, block, x, f"{path}.{i}", causal)
    return x


def project(builder: Builder, normed: Affine, projection: nn.Module | None, path: str) -> Value:
    """Apply LayerNorm's affine part folded into a projection, or alone where there is none."""
    if projection is None:
        return builder.affine(normed)
    linear = _linear(projection, path)
    ((weight, bias),) = normed.fold([linear.weight], [linear.bias])
    return builder.linear(normed.core, weight, bias, path)


# -- image towers ----------------------------------------------------------------------------


def patch_embedding(builder: Builder, conv: nn.Module, pixels: Tensor, path: str) -> Value:
    """Map a convolution whose stride is its kernel: a linear layer on patches."""
    if not isinstance(conv, nn.Conv2d) or conv.kernel_size != conv.stride or conv.groups != 1:
        raise UnsupportedModuleError(
            path, type(conv).__name__, "expected a Conv2d whose stride is its kernel"
        )
    side = int(conv.kernel_size[0])
    if conv.kernel_size != (side, side) or conv.padding not in ((0, 0), "valid"):
        raise UnsupportedModuleError(path, type(conv).__name__, "expected square patches, no padding")
    x = builder.image(pixels, side, path)
    return builder.linear(x, conv.weight.flatten(1), conv.bias, path, output="raw")


def _clip_vision(
    builder: Builder, module: nn.Module, batch: Batch, path: str, projection: nn.Module | None
) -> Value:
    embeddings, norm, layers, post = _need(
        module, ("embeddings", "pre_layrnorm", "encoder", "post_layernorm"), path
    )
    where = join(path, "embeddings")
    x = patch_embedding(
        builder, embeddings.patch_embedding, batch["pixel_values"], join(where, "patch_embedding")
    )
    x = builder.prepend(x, embeddings.class_embedding.reshape(1, -1), join(where, "class"))
    x = builder.add_constant(x, embeddings.position_embedding.weight, join(where, "position"))
    first = builder.layer_norm(x, norm, join(path, "pre_layrnorm"), keep=False)
    x = builder.affine(first)
    x = encoder(builder, layers.layers, x, join(path, "encoder.layers"))
    x = builder.token(x, 0, path)
    normed = builder.layer_norm(x, post, join(path, "post_layernorm"), keep=False)
    return project(builder, normed, projection, "visual_projection")


@register("CLIPVisionModel", "CLIPVisionTransformer")
def _clip_vision_model(builder: Builder, module: nn.Module, batch: Batch, path: str) -> Value:
    return _clip_vision(builder, module, batch, path, None)


@register("CLIPVisionModelWithProjection")
def _clip_vision_projected(builder: Builder, module: nn.Module, batch: Batch, path: str) -> Value:
    tower, projection = _need(module, ("vision_model", "visual_projection"), path)
    return _clip_vision(builder, tower, batch, join(path, "vision_model"), projection)


@register("CLIPModel")
def _clip(builder: Builder, module: nn.Module, batch: Batch, path: str) -> Value:
    if "pixel_values" in batch:
        return _clip_vision_projected(builder, module, batch, path)
    return _clip_text_projected(builder, module, batch, path)


@register("SiglipVisionModel", "SiglipVisionTransformer", "Siglip2VisionModel")
def _siglip_vision(builder: Builder, module: nn.Module, batch: Batch, path: str) -> Value:
    embeddings, layers, post = _need(module, ("embeddings", "encoder", "post_layernorm"), path)
    where = join(path, "embeddings")
    patch, position = embeddings.patch_embedding, embeddings.position_embedding.weight
    if isinstance(patch, nn.Linear):
        # SigLIP 2 takes patches, and resizes its positions to the image's grid.
        x = builder.real(batch["pixel_values"], "pixel_values")
        x = builder.linear(
            x, patch.weight, patch.bias, join(where, "patch_embedding"), output="raw"
        )
        position = _resized_positions(embeddings, batch, where)
    else:
        x = patch_embedding(
            builder, patch, batch["pixel_values"], join(where, "patch_embedding")
        )
    x = builder.add_constant(x, position, join(where, "position"))
    x = encoder(builder, layers.layers, x, join(path, "encoder.layers"))
    normed = builder.layer_norm(x, post, join(path, "post_layernorm"), keep=False)
    if getattr(module, "head", None) is None:
        return builder.affine(normed)
    return _pooling_head(builder, module.head, normed, join(path, "head"))


def _resized_positions(embeddings: nn.Module, batch: Batch, path: str) -> Tensor:
    shapes = batch.get("spatial_shapes")
    if shapes is None or len(torch.unique(shapes, dim=0)) != 1:
        raise UnsupportedModuleError(
            path, type(embeddings).__name__, "the calibration needs one spatial shape for all"
        )
    count = batch["pixel_values"].shape[1]
    height, width = (int(each) for each in shapes[0])
    if height * width != count:
        raise UnsupportedModuleError(
            path,
            type(embeddings).__name__,
            f"{count} patches for a grid of {height} × {width}: padded patches have no mapping",
        )
    side = embeddings.position_embedding_size
    grid = embeddings.position_embedding.weight.detach().reshape(side, side, -1)
    with torch.no_grad():
        return embeddings.resize_positional_embeddings(grid, shapes[:1], max_length=count)[0]


def _pooling_head(builder: Builder, head: nn.Module, normed: Affine, path: str) -> Value:
    """Map SigLIP's attention pooling: the query is a parameter, so the server has it in clear."""
    attention, norm, mlp = _need(head, ("attention", "layernorm", "mlp"), path)
    if not isinstance(attention, nn.MultiheadAttention) or attention.in_proj_weight is None:
        raise UnsupportedModuleError(path, type(attention).__name__, "expected MultiheadAttention")
    width, heads = attention.embed_dim, attention.num_heads
    wq, wk, wv = attention.in_proj_weight.detach().to(torch.float64).chunk(3)
    bq, bk, bv = attention.in_proj_bias.detach().to(torch.float64).chunk(3)
    probe = head.probe.detach().to(torch.float64).reshape(1, width)
    query = (probe @ wq.T + bq) * (width // heads) ** -0.5
    folded = normed.fold([wk, wv], [bk, bv])
    stacked = builder.linear(
        normed.core,
        torch.cat([folded[0][0], folded[1][0]]),
        torch.cat([folded[0][1], folded[1][1]]),
        join(path, "attention.kv"),
    )
    q = builder.load(query, len(stacked.sample), join(path, "probe"))
    k = builder.slice(stacked, 0, width, path)
    v = builder.slice(stacked, width, 2 * width, path)
    x = builder.attention(q, k, v, heads, join(path, "attention"))
    out = attention.out_proj
    x = builder.linear(x, out.weight, out.bias, join(path, "attention.out_proj"), output="raw")
    inner = builder.layer_norm(x, norm, join(path, "layernorm"))
    first, second = _need(mlp, ("fc1", "fc2"), join(path, "mlp"))
    update = feed_forward(
        builder, inner, first, _mlp_activation(mlp, path), second, join(path, "mlp")
    )
    x = builder.token(builder.add(x, update, path), 0, path)
    builder.rescale(x, 16, path)
    return x


def _vit(
    builder: Builder, module: nn.Module, batch: Batch, path: str, projection: nn.Module | None
) -> Value:
    embeddings, layers, norm = _need(module, ("embeddings", "layers", "layernorm"), path)
    where = join(path, "embeddings")
    x = patch_embedding(
        builder,
        embeddings.patch_embeddings.projection,
        batch["pixel_values"],
        join(where, "patch_embeddings.projection"),
    )
    x = builder.prepend(x, embeddings.cls_token[0], join(where, "class"))
    x = builder.add_constant(x, embeddings.position_embeddings[0], join(where, "position"))
    x = encoder(builder, layers, x, join(path, "layers"))
    x = builder.token(x, 0, path)
    normed = builder.layer_norm(x, norm, join(path, "layernorm"), keep=False)
    return project(builder, normed, projection, join(path, "head"))


@register("ViTModel")
def _vit_model(builder: Builder, module: nn.Module, batch: Batch, path: str) -> Value:
    pooler = getattr(module, "pooler", None)
    if pooler is None:
        return _vit(builder, module, batch, path, None)
    x = _vit(builder, module, batch, path, pooler.dense)
    x = builder.activation(x, activation_name(pooler.activation, path), join(path, "pooler.act"))
    builder.rescale(x, 16, path)
    return x


@register("ViTForImageClassification")
def _vit_classifier(builder: Builder, module: nn.Module, batch: Batch, path: str) -> Value:
    tower, classifier = _need(module, ("vit", "classifier"), path)
    return _vit(builder, tower, batch, join(path, "vit"), classifier)


# -- text towers -----------------------------------------------------------------------------


def _no_padding(batch: Batch, path: str, kind: str) -> None:
    mask = batch.get("attention_mask")
    if mask is not None and not bool((mask == 1).all()):
        raise UnsupportedModuleError(
            path, kind, "padded captions have no mapping: compile one program a length"
        )


def token_embedding(
    builder: Builder, table: nn.Module, position: Tensor, ids: Tensor, path: str
) -> Value:
    """Map token and position embeddings: a one-hot row of the client's times the table."""
    x = builder.tokens(ids, table.weight.shape[0])
    x = builder.linear(x, table.weight.T, None, join(path, "token_embedding"), output="raw")
    return builder.add_constant(x, position[: ids.shape[1]], join(path, "position"))


def _clip_text(
    builder: Builder, module: nn.Module, batch: Batch, path: str, projection: nn.Module | None
) -> Value:
    embeddings, layers, norm = _need(module, ("embeddings", "encoder", "final_layer_norm"), path)
    ids = batch["input_ids"]
    x = token_embedding(
        builder,
        embeddings.token_embedding,
        embeddings.position_embedding.weight,
        ids,
        join(path, "embeddings"),
    )
    end = None if module.eos_token_id == 2 else int(module.eos_token_id)
    selector = builder.position_of(ids, end)
    # A caption's padding comes after its end, where a causal mask hides it.
    x = encoder(builder, layers.layers, x, join(path, "encoder.layers"), causal=True)
    builder.rescale(x, 16, path)
    x = builder.select_token(x, selector, path)
    normed = builder.layer_norm(x, norm, join(path, "final_layer_norm"), keep=False)
    return project(builder, normed, projection, "text_projection")


@register("CLIPTextModel", "CLIPTextTransformer")
def _clip_text_model(builder: Builder, module: nn.Module, batch: Batch, path: str) -> Value:
    return _clip_text(builder, module, batch, path, None)


@register("CLIPTextModelWithProjection")
def _clip_text_projected(builder: Builder, module: nn.Module, batch: Batch, path: str) -> Value:
    tower, projection = _need(module, ("text_model", "text_projection"), path)
    return _clip_text(builder, tower, batch, join(path, "text_model"), projection)


@register("SiglipTextModel", "Siglip2TextModel")
def _siglip_text(builder: Builder, module: nn.Module, batch: Batch, path: str) -> Value:
    embeddings, layers, norm, head = _need(
        module, ("embeddings", "encoder", "final_layer_norm", "head"), path
    )
    _no_padding(batch, path, type(module).__name__)
    x = token_embedding(
        builder,
        embeddings.token_embedding,
        embeddings.position_embedding.weight,
        batch["input_ids"],
        join(path, "embeddings"),
    )
    x = encoder(builder, layers.layers, x, join(path, "encoder.layers"))
    x = builder.token(x, -1, path)
    normed = builder.layer_norm(x, norm, join(path, "final_layer_norm"), keep=False)
    return project(builder, normed, head, join(path, "head"))


@register("SiglipModel", "Siglip2Model")
def _siglip(builder: Builder, module: nn.Module, batch: Batch, path: str) -> Value:
    vision, text = _need(module, ("vision_model", "text_model"), path)
    if "pixel_values" in batch:
        return _siglip_vision(builder, vision, batch, join(path, "vision_model"))
    return _siglip_text(builder, text, batch, join(path, "text_model"))


@register("BertModel")
def _bert(builder: Builder, module: nn.Module, batch: Batch, path: str) -> Value:
    embeddings, layers = _need(module, ("embeddings", "encoder"), path)
    _no_padding(batch, path, type(module).__name__)
    if module.config.is_decoder:
        raise UnsupportedModuleError(path, type(module).__name__, "a decoder has no mapping")
    position = embeddings.position_embeddings.weight + embeddings.token_type_embeddings.weight[0]
    where = join(path, "embeddings")
    x = token_embedding(builder, embeddings.word_embeddings, position, batch["input_ids"], where)
    normed = builder.layer_norm(x, embeddings.LayerNorm, join(where, "LayerNorm"), keep=False)
    x = builder.affine(normed)
    for i, block in enumerate(layers.layer):
        x = _bert_block(builder, block, x, join(path, f"encoder.layer.{i}"))
    if getattr(module, "pooler", None) is None:
        return x
    dense = _linear(module.pooler.dense, join(path, "pooler.dense"))
    x = builder.token(x, 0, path)
    x = builder.linear(x, dense.weight, dense.bias, join(path, "pooler.dense"))
    name = activation_name(module.pooler.activation, path)
    x = builder.activation(x, name, join(path, "pooler.activation"))
    builder.rescale(x, 16, path)
    return x


def _bert_block(builder: Builder, block: nn.Module, x: Value, path: str) -> Value:
    """Map a post-LayerNorm block: the residual needs the affine part, so it's applied."""
    attention = getattr(block.attention, "self")
    where = join(path, "attention")
    mixed = self_attention(
        builder,
        Affine(x, None, None, path),
        (attention.query, attention.key, attention.value),
        attention.num_attention_heads,
        join(where, "self"),
    )
    output = block.attention.output
    update = builder.linear(
        mixed, output.dense.weight, output.dense.bias, join(where, "output.dense"), output="raw"
    )
    x = builder.add(x, update, where)
    normed = builder.layer_norm(x, output.LayerNorm, join(where, "output.LayerNorm"), keep=False)
    x = builder.affine(normed)
    update = feed_forward(
        builder,
        Affine(x, None, None, path),
        block.intermediate.dense,
        block.intermediate.intermediate_act_fn,
        block.output.dense,
        join(path, "output"),
    )
    x = builder.add(x, update, path)
    normed = builder.layer_norm(
        x, block.output.LayerNorm, join(path, "output.LayerNorm"), keep=False
    )
    return builder.affine(normed)
