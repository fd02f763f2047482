"""Text towers of transformers: CLIP, SigLIP, SigLIP 2 and BERT."""

from torch import Tensor

from secure.smpc._builder import Affine, Builder, Value
from secure.smpc._handlers import (
    Batch,
    Module,
    activation_name,
    encoder,
    feed_forward,
    join,
    need,
    plain_linear,
    project,
    register,
    self_attention,
)
from secure.smpc.errors import UnsupportedModuleError


def _padding(builder: Builder, batch: Batch) -> Value | None:
    """Take the padding from the client where the calibration has some: it stays secret."""
    mask = batch.get("attention_mask")
    return None if mask is None or bool((mask == 1).all()) else builder.padding(mask)


def token_embedding(
    builder: Builder, table: Module, position: Tensor, ids: Tensor, path: str
) -> Value:
    """Map token and position embeddings: a one-hot row of the client's times the table.

    A public table is looked up by the client instead.
    """
    if builder.public_embedding:
        x = builder.looked_up(ids, table.weight)
    else:
        x = builder.tokens(ids, table.weight.shape[0])
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
    mask = _padding(builder, batch)
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


@register("BertModel")
def _bert(builder: Builder, module: Module, batch: Batch, path: str) -> Value:
    embeddings, layers = need(module, ("embeddings", "encoder"), path)
    mask = _padding(builder, batch)
    if module.config.is_decoder:
        raise UnsupportedModuleError(path, type(module).__name__, "a decoder has no mapping")
    position = embeddings.position_embeddings.weight + embeddings.token_type_embeddings.weight[0]
    where = join(path, "embeddings")
    x = token_embedding(builder, embeddings.word_embeddings, position, batch["input_ids"], where)
    normed = builder.layer_norm(x, embeddings.LayerNorm, join(where, "LayerNorm"), keep=False)
    x = builder.affine(normed)
    for i, block in enumerate(layers.layer):
        x = _bert_block(builder, block, x, join(path, f"encoder.layer.{i}"), mask)
    if getattr(module, "pooler", None) is None:
        return x
    dense = plain_linear(module.pooler.dense, join(path, "pooler.dense"))
    x = builder.token(x, 0, path)
    x = builder.linear(x, dense.weight, dense.bias, join(path, "pooler.dense"))
    name = activation_name(module.pooler.activation, path)
    x = builder.activation(x, name, join(path, "pooler.activation"))
    builder.rescale(x, 16, path)
    return x


def _bert_block(builder: Builder, block: Module, x: Value, path: str, mask: Value | None) -> Value:
    """Map a post-LayerNorm block: the residual needs the affine part, so it's applied."""
    attention = block.attention.self
    where = join(path, "attention")
    mixed = self_attention(
        builder,
        Affine(x, None, None, path),
        (attention.query, attention.key, attention.value),
        attention.num_attention_heads,
        join(where, "self"),
        mask=mask,
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
