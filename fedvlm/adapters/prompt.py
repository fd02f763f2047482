"""Learned context tokens in front of every caption (CoOp)."""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from fedvlm.errors import ConfigError


class _ContextEmbedding(nn.Module):
    """A token embedding whose positions `start … start + n` are learned vectors."""

    def __init__(self, base: nn.Embedding, context: nn.Parameter, start: int) -> None:
        super().__init__()
        self.base = base
        self.context = context
        self.start = start

    @property
    def weight(self) -> Tensor:
        """The base's weight: Hugging Face's models read its dtype."""
        return self.base.weight

    def forward(self, ids: Tensor) -> Tensor:
        embedded = self.base(ids)
        n = len(self.context)
        context = self.context.expand(len(ids), -1, -1).to(embedded.dtype)
        head, tail = embedded[:, : self.start], embedded[:, self.start + n :]
        return torch.cat([head, context, tail], dim=1)


class PromptContext(nn.Module):
    """Learned context tokens (Zhou et al. 2022, "CoOp", equation 2, unified context).

    Room for the tokens is made behind the first token of a CLIP caption (its start token), and
    in front of a SigLIP caption, which has none.

    Args:
        backbone: A Hugging Face dual encoder; its token embedding is replaced.
        tokens: Number n of context tokens.
        generator: Draws the initial values, from N(0, 0.02^2).
    """

    def __init__(self, backbone: Any, tokens: int, generator: torch.Generator) -> None:
        super().__init__()
        embeddings = backbone.text_model.embeddings
        base = embeddings.token_embedding
        initial = torch.randn(tokens, base.embedding_dim, generator=generator) * 0.02
        self.context = nn.Parameter(initial)
        self.start = 1 if backbone.config.model_type == "clip" else 0
        self.max_length = int(backbone.config.text_config.max_position_embeddings)
        embeddings.token_embedding = _ContextEmbedding(base, self.context, self.start)

    def forward(self, inputs: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Make room for the context tokens in the ids and the mask.

        Raises:
            ConfigError: The caption with its context is longer than the text tower allows.
        """
        ids = inputs["input_ids"]
        n = len(self.context)
        if ids.shape[1] + n > self.max_length:
            raise ConfigError(
                f"captions of {ids.shape[1]} tokens leave no room for {n} context tokens in a "
                f"text tower of {self.max_length}; lower prompt tokens"
            )
        room = ids.new_zeros(len(ids), n)  # overwritten by the embedding; any id would do
        out = {"input_ids": torch.cat([ids[:, : self.start], room, ids[:, self.start :]], dim=1)}
        if "attention_mask" in inputs:
            mask = inputs["attention_mask"]
            out["attention_mask"] = torch.cat([torch.ones_like(room), mask], dim=1)
        return out
