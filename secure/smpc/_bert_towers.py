"""Text towers with LayerNorm behind: BERT, RoBERTa, XLM-RoBERTa, DistilBERT and MPNet."""

from dataclasses import dataclass

import torch
from torch import Tensor

from secure.smpc._builder import Affine, Builder, Value
from secure.smpc._handlers import (
    Batch,
    Module,
    activation_name,
    feed_forward,
    join,
    need,
    plain_linear,
    register,
    self_attention,
)
from secure.smpc._text_towers import padding, token_embedding
from secure.smpc.errors import UnsupportedModuleError


@dataclass(frozen=True)
class _Block:
    """The parts of a block, whatever its model calls them."""

    projections: tuple[Module, Module, Module]
    heads: int
    out: Module
    attention_norm: Module
    first: Module
    activation: object
    second: Module
    output_norm: Module


def _apply(
    builder: Builder,
    block: _Block,
    x: Value,
    path: str,
    mask: Value | None,
    bias: Tensor | None = None,
) -> Value:
    """Map a post-LayerNorm block: the residual needs the affine part, so it's applied."""
    where = join(path, "attention")
    whole = Affine(x, None, None, path)
    mixed = self_attention(
        builder, whole, block.projections, block.heads, join(where, "self"), mask=mask, bias=bias
    )
    out = plain_linear(block.out, join(where, "output.dense"))
    update = builder.linear(mixed, out.weight, out.bias, join(where, "output.dense"), output="raw")
    x = builder.add(x, update, where)
    norm_path = join(where, "output.LayerNorm")
    x = builder.affine(builder.layer_norm(x, block.attention_norm, norm_path, keep=False))
    update = feed_forward(
        builder,
        Affine(x, None, None, path),
        block.first,
        block.activation,
        block.second,
        join(path, "output"),
    )
    x = builder.add(x, update, path)
    norm_path = join(path, "output.LayerNorm")
    return builder.affine(builder.layer_norm(x, block.output_norm, norm_path, keep=False))


def _embed(builder: Builder, embeddings: Module, batch: Batch, path: str) -> Value:
    """Map embeddings with their LayerNorm; RoBERTa and MPNet count positions from pad + 1."""
    position = embeddings.position_embeddings.weight
    segments = getattr(embeddings, "token_type_embeddings", None)
    if segments is not None:
        position = position + segments.weight[0]
    pad = getattr(embeddings, "padding_idx", None)
    first = 0 if pad is None else pad + 1
    x = token_embedding(
        builder,
        embeddings.word_embeddings,
        position[first:],
        batch["input_ids"],
        path,
        first,
        pad,
    )
    return builder.affine(
        builder.layer_norm(x, embeddings.LayerNorm, join(path, "LayerNorm"), keep=False)
    )


def _pool(builder: Builder, module: Module, x: Value, path: str) -> Value:
    """Map the pooler: the first token through a linear layer and tanh; x itself without one."""
    pooler = getattr(module, "pooler", None)
    if pooler is None:
        return x
    where = join(path, "pooler")
    dense = plain_linear(pooler.dense, join(where, "dense"))
    x = builder.token(x, 0, path)
    x = builder.linear(x, dense.weight, dense.bias, join(where, "dense"))
    name = activation_name(pooler.activation, path)
    x = builder.activation(x, name, join(where, "activation"))
    builder.rescale(x, 16, path)
    return x


@register("BertModel", "RobertaModel", "XLMRobertaModel", "CamembertModel")
def _bert(builder: Builder, module: Module, batch: Batch, path: str) -> Value:
    embeddings, layers = need(module, ("embeddings", "encoder"), path)
    if module.config.is_decoder:
        raise UnsupportedModuleError(path, type(module).__name__, "a decoder has no mapping")
    mask = padding(builder, batch)
    x = _embed(builder, embeddings, batch, join(path, "embeddings"))
    for i, block in enumerate(layers.layer):
        attention = block.attention.self
        parts = _Block(
            (attention.query, attention.key, attention.value),
            attention.num_attention_heads,
            block.attention.output.dense,
            block.attention.output.LayerNorm,
            block.intermediate.dense,
            block.intermediate.intermediate_act_fn,
            block.output.dense,
            block.output.LayerNorm,
        )
        x = _apply(builder, parts, x, join(path, f"encoder.layer.{i}"), mask)
    return _pool(builder, module, x, path)


@register("DistilBertModel")
def _distilbert(builder: Builder, module: Module, batch: Batch, path: str) -> Value:
    embeddings, layers = need(module, ("embeddings", "transformer"), path)
    mask = padding(builder, batch)
    x = _embed(builder, embeddings, batch, join(path, "embeddings"))
    for i, block in enumerate(layers.layer):
        attention = block.attention
        parts = _Block(
            (attention.q_lin, attention.k_lin, attention.v_lin),
            attention.n_heads,
            attention.out_lin,
            block.sa_layer_norm,
            block.ffn.lin1,
            block.ffn.activation,
            block.ffn.lin2,
            block.output_layer_norm,
        )
        x = _apply(builder, parts, x, join(path, f"transformer.layer.{i}"), mask)
    return x


@register("MPNetModel")
def _mpnet(builder: Builder, module: Module, batch: Batch, path: str) -> Value:
    embeddings, layers = need(module, ("embeddings", "encoder"), path)
    mask = padding(builder, batch)
    x = _embed(builder, embeddings, batch, join(path, "embeddings"))
    # The bias by distance is the owner's own: added to its share of the scores.
    like = torch.empty(1, batch["input_ids"].shape[1], 1)
    bias = layers.compute_position_bias(like)[0]
    for i, block in enumerate(layers.layer):
        attention = block.attention.attn
        parts = _Block(
            (attention.q, attention.k, attention.v),
            attention.num_attention_heads,
            attention.o,
            block.attention.LayerNorm,
            block.intermediate.dense,
            block.intermediate.intermediate_act_fn,
            block.output.dense,
            block.output.LayerNorm,
        )
        x = _apply(builder, parts, x, join(path, f"encoder.layer.{i}"), mask, bias)
    return _pool(builder, module, x, path)
