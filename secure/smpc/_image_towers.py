"""Image towers of transformers: CLIP, SigLIP, SigLIP 2 and ViT."""

import torch
from torch import Tensor, nn

from secure.smpc._builder import Affine, Builder, Value
from secure.smpc._handlers import (
    Batch,
    Module,
    activation_name,
    encoder,
    feed_forward,
    join,
    mlp_activation,
    need,
    project,
    register,
)
from secure.smpc.errors import UnsupportedModuleError


def patch_embedding(builder: Builder, conv: Module, pixels: Tensor, path: str) -> Value:
    """Map a convolution whose stride is its kernel: a linear layer on patches."""
    if not isinstance(conv, nn.Conv2d) or conv.kernel_size != conv.stride or conv.groups != 1:
        raise UnsupportedModuleError(
            path, type(conv).__name__, "expected a Conv2d whose stride is its kernel"
        )
    side = int(conv.kernel_size[0])
    if conv.kernel_size != (side, side) or conv.padding not in ((0, 0), "valid"):
        raise UnsupportedModuleError(
            path, type(conv).__name__, "expected square patches, no padding"
        )
    x = builder.image(pixels, side, path)
    return builder.linear(x, conv.weight.flatten(1), conv.bias, path, output="raw")


def _clip_vision(
    builder: Builder, module: Module, batch: Batch, path: str, projection: Module | None
) -> Value:
    embeddings, norm, layers, post = need(
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
def _clip_vision_model(builder: Builder, module: Module, batch: Batch, path: str) -> Value:
    return _clip_vision(builder, module, batch, path, None)


@register("CLIPVisionModelWithProjection")
def clip_projected(builder: Builder, module: Module, batch: Batch, path: str) -> Value:
    """Map a tower with its projection."""
    tower, projection = need(module, ("vision_model", "visual_projection"), path)
    return _clip_vision(builder, tower, batch, join(path, "vision_model"), projection)


@register("SiglipVisionModel", "SiglipVisionTransformer", "Siglip2VisionModel")
def siglip(builder: Builder, module: Module, batch: Batch, path: str) -> Value:
    """Map a tower with its head."""
    embeddings, layers, post = need(module, ("embeddings", "encoder", "post_layernorm"), path)
    where = join(path, "embeddings")
    patch, position = embeddings.patch_embedding, embeddings.position_embedding.weight
    if isinstance(patch, nn.Linear):
        # SigLIP 2 takes patches, and resizes its positions to the image's grid.
        grid = tuple(int(each) for each in _one_grid(embeddings, batch, where))
        x = builder.real(batch["pixel_values"], "pixel_values", grid)
        x = builder.linear(
            x, patch.weight, patch.bias, join(where, "patch_embedding"), output="raw"
        )
        position = _resized_positions(embeddings, batch, where)
    else:
        x = patch_embedding(builder, patch, batch["pixel_values"], join(where, "patch_embedding"))
    x = builder.add_constant(x, position, join(where, "position"))
    x = encoder(builder, layers.layers, x, join(path, "encoder.layers"))
    normed = builder.layer_norm(x, post, join(path, "post_layernorm"), keep=False)
    if getattr(module, "head", None) is None:
        return builder.affine(normed)
    return _pooling_head(builder, module.head, normed, join(path, "head"))


def _one_grid(embeddings: Module, batch: Batch, path: str) -> Tensor:
    shapes = batch.get("spatial_shapes")
    if shapes is None or len(torch.unique(shapes, dim=0)) != 1:
        raise UnsupportedModuleError(
            path, type(embeddings).__name__, "the calibration needs one spatial shape for all"
        )
    return shapes[0]


def _resized_positions(embeddings: Module, batch: Batch, path: str) -> Tensor:
    count = batch["pixel_values"].shape[1]
    grid_shape = _one_grid(embeddings, batch, path)
    height, width = (int(each) for each in grid_shape)
    if height * width != count:
        raise UnsupportedModuleError(
            path,
            type(embeddings).__name__,
            f"{count} patches for a grid of {height} × {width}: padded patches have no mapping",
        )
    side = embeddings.position_embedding_size
    grid = embeddings.position_embedding.weight.detach().reshape(side, side, -1)
    with torch.no_grad():
        return embeddings.resize_positional_embeddings(
            grid, grid_shape.unsqueeze(0), max_length=count
        )[0]


def _pooling_head(builder: Builder, head: Module, normed: Affine, path: str) -> Value:
    """Map SigLIP's attention pooling: the query is a parameter, so the server has it in clear."""
    attention, norm, mlp = need(head, ("attention", "layernorm", "mlp"), path)
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
    first, second = need(mlp, ("fc1", "fc2"), join(path, "mlp"))
    update = feed_forward(
        builder, inner, first, mlp_activation(mlp, path), second, join(path, "mlp")
    )
    x = builder.token(builder.add(x, update, path), 0, path)
    builder.rescale(x, 16, path)
    return x


def _vit(
    builder: Builder, module: Module, batch: Batch, path: str, projection: Module | None
) -> Value:
    embeddings, layers, norm = need(module, ("embeddings", "layers", "layernorm"), path)
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
def _vit_model(builder: Builder, module: Module, batch: Batch, path: str) -> Value:
    pooler = getattr(module, "pooler", None)
    if pooler is None:
        return _vit(builder, module, batch, path, None)
    x = _vit(builder, module, batch, path, pooler.dense)
    x = builder.activation(x, activation_name(pooler.activation, path), join(path, "pooler.act"))
    builder.rescale(x, 16, path)
    return x


@register("ViTForImageClassification")
def _vit_classifier(builder: Builder, module: Module, batch: Batch, path: str) -> Value:
    tower, classifier = need(module, ("vit", "classifier"), path)
    return _vit(builder, tower, batch, join(path, "vit"), classifier)


def _dinov2(builder: Builder, module: Module, batch: Batch, path: str) -> Affine:
    """Map DINOv2, with registers or without, up to its last normalisation."""
    embeddings, layers, norm = need(module, ("embeddings", "encoder", "layernorm"), path)
    where = join(path, "embeddings")
    pixels = batch["pixel_values"]
    x = patch_embedding(
        builder,
        embeddings.patch_embeddings.projection,
        pixels,
        join(where, "patch_embeddings.projection"),
    )
    # Positions are resized to the image's grid by the model's own code: the grid is public.
    like = embeddings.cls_token.new_zeros(1, x.shape[0] + 1, x.shape[1])
    positions = embeddings.interpolate_pos_encoding(like, *pixels.shape[-2:])[0]
    x = builder.add_constant(x, positions[1:], join(where, "position"))
    leading = [embeddings.cls_token[0] + positions[:1]]
    if getattr(embeddings, "register_tokens", None) is not None:
        leading.append(embeddings.register_tokens[0])
    x = builder.prepend(x, torch.cat(leading), join(where, "class"))
    x = encoder(builder, layers.layer, x, join(path, "encoder.layer"))
    x = builder.token(x, 0, path)
    return builder.layer_norm(x, norm, join(path, "layernorm"), keep=False)


@register("Dinov2Model", "Dinov2WithRegistersModel")
def _dinov2_model(builder: Builder, module: Module, batch: Batch, path: str) -> Value:
    return builder.affine(_dinov2(builder, module, batch, path))
