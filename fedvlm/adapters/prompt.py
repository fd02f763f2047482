"""Learned context tokens in front of every caption (CoOp)."""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from fedvlm.errors import ConfigError

_LEAST = 3  # a start token, one token of the caption, an end token
_OLD_END = 2  # in older CLIP configurations the end token is the one with the largest id


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
    in front of a SigLIP caption, which has none. A caption that is then too long is cut to what is
    left, and keeps the token that the model reads: CLIP's end token, SigLIP's last place.

    Args:
        backbone: A Hugging Face dual encoder; its token embedding is replaced.
        tokens: Number n of context tokens.
        generator: Draws the initial values, from N(0, 0.02^2).

    Attributes:
        left_padding: The padding's id where captions are padded on the left, else None.

    Raises:
        ConfigError: The context leaves no room for a caption.
    """

    def __init__(self, backbone: Any, tokens: int, generator: torch.Generator) -> None:
        super().__init__()
        if backbone.config.model_type not in ("clip", "siglip", "siglip2"):
            raise ConfigError(
                f"the prompt adapter isn't known to {type(backbone).__name__}; use lora or feature"
            )
        embeddings = backbone.text_model.embeddings
        base = embeddings.token_embedding
        text = backbone.config.text_config
        clip = backbone.config.model_type == "clip"
        self.start = 1 if clip else 0
        self.room = int(text.max_position_embeddings) - tokens
        if self.room < _LEAST:
            raise ConfigError(
                f"{tokens} context tokens leave no room for a caption in a text tower of "
                f"{text.max_position_embeddings}; use at most "
                f"{int(text.max_position_embeddings) - _LEAST}"
            )
        self.left_padding: int | None = None
        self._end = int(text.eos_token_id) if clip else None
        initial = torch.randn(tokens, base.embedding_dim, generator=generator) * 0.02
        self.context = nn.Parameter(initial)
        embeddings.token_embedding = _ContextEmbedding(base, self.context, self.start)

    def _kept(self, ids: Tensor) -> Tensor:
        """Return which places of captions that are too long are kept: shape (B, room), int64."""
        length = ids.shape[1]
        places = torch.arange(self.room)
        last = torch.full((len(ids), 1), length - 1)
        first = torch.zeros(len(ids), 1, dtype=torch.int64)
        if self._end is not None:  # CLIP reads its end token (an old configuration: largest id)
            ends = ids == self._end if self._end != _OLD_END else ids == ids.amax(1, keepdim=True)
            last = ends.int().argmax(dim=1, keepdim=True)
        elif self.left_padding is not None:  # padding goes first, then the caption's end
            padded = (ids == self.left_padding).int().cumprod(dim=1).sum(dim=1, keepdim=True)
            first = padded.clamp(max=length - self.room)
        kept = first + places
        # The last of the kept places is the one that is read, unless that stands before it.
        return torch.where((places == self.room - 1) & (last > kept), last, kept)

    def forward(self, inputs: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Cut captions to what is left, and make room for the context in ids and mask."""
        ids, mask = inputs["input_ids"], inputs.get("attention_mask")
        if ids.shape[1] > self.room:
            kept = self._kept(ids)
            ids = ids.gather(1, kept)
            mask = None if mask is None else mask.gather(1, kept)
        room = ids.new_zeros(len(ids), len(self.context))  # overwritten; any id would do
        out = {"input_ids": torch.cat([ids[:, : self.start], room, ids[:, self.start :]], dim=1)}
        if mask is not None:
            out["attention_mask"] = torch.cat([torch.ones_like(room), mask], dim=1)
        return out
