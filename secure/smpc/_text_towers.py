"""Text towers of transformers with LayerNorm first: CLIP, SigLIP and SigLIP 2."""

from torch import Tensor

from secure.smpc._builder import Builder, Value
from secure.smpc._handlers import (
    Batch,
    Module,
    encoder,
    join,
    need,
    project,
    register,
)
from secure.smpc.errors import UnsupportedModuleError


def padding(builder: Builder, batch: Batch) -> Value | None:
    """Take the padding from the client where the calibration has some: it stays secret."""
    mask = batch.get("attention_mask")
    return None if mask is None or bool((mask == 1).all()) else builder.padding(mask)


def token_embedding(
    builder: Builder,
    table: Module,
    position: Tensor,
    ids: Tensor,
    path: str,
    first_position: int = 0,
    pad: int | None = None,
) -> Value:
    """Map token and position embeddings: a one-hot row of the client's times the table.

    A public table is looked up by the client instead.

    Args:
        builder: The builder.
        table: Embedding of tokens.
        position: Embeddings of positions, from the first token's on: `(positions, width)`.
        ids: Calibration's tokens, `(batch, length)`.
        path: Path of the embeddings.
        first_position: What the model calls the first token's position.
        pad: Padding token around which the model counts its positions.
    """
    if ids.shape[-1] > len(position):
        raise UnsupportedModuleError(
            path, type(table).__name__, f"{ids.shape[-1]} tokens for {len(position)} positions"
        )
    if builder.public_embedding:
        x = builder.looked_up(ids, table.weight, first_position, pad)
    else:
        x = builder.tokens(ids, table.weight.shape[0], first_position, pad)
        x = builder.linear(x, table.weight.T, None, join(path, "token_embedding"), output="raw")
    return builder.add_constant(x, position[: ids.shape[1]], join(path, "position"))


def _clip_text(
    builder: Builder, module: Module, batch: Batch, path: str, projection: Module | None
) -> Value:
    embeddings, layers, norm = need(module, ("embeddings", "encoder", "final_layer_norm"), path)
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
def _clip_text_model(builder: Builder, module: Module, batch: Batch, path: str) -> Value:
    return _clip_text(builder, module, batch, path, None)


@register("CLIPTextModelWithProjection")
def clip_projected(builder: Builder, module: Module, batch: Batch, path: str) -> Value:
    """Map a tower with its projection."""
    tower, projection = need(module, ("text_model", "text_projection"), path)
    return _clip_text(builder, tower, batch, join(path, "text_model"), projection)


@register("SiglipTextModel", "Siglip2TextModel")
def siglip(builder: Builder, module: Module, batch: Batch, path: str) -> Value:
    """Map a tower with its head."""
    embeddings, layers, norm, head = need(
        module, ("embeddings", "encoder", "final_layer_norm", "head"), path
    )
    mask = padding(builder, batch)
    x = token_embedding(
        builder,
        embeddings.token_embedding,
        embeddings.position_embedding.weight,
        batch["input_ids"],
        join(path, "embeddings"),
    )
    x = encoder(builder, layers.layers, x, join(path, "encoder.layers"), mask=mask)
    x = builder.token(x, -1, path)
    normed = builder.layer_norm(x, norm, join(path, "final_layer_norm"), keep=False)
    return project(builder, normed, head, join(path, "head"))
