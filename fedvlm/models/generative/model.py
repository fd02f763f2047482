"""The protocol behind generative VLMs: an image and a prompt in, an answer's tokens out.

It wraps what `AutoModelForImageTextToText` loads, of the families in `FAMILIES`.
"""

import inspect
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from fedvlm.errors import ConfigError
from fedvlm.models.generative.families import FAMILIES, Family

IGNORED = -100
"""The label of a token that no loss is taken of."""

Inputs = Mapping[str, Tensor]


@dataclass(frozen=True)
class AnswerBatch:
    """Prompts with their answers, padded on the right.

    Attributes:
        inputs: What the model takes: `input_ids` and `attention_mask`, shape (B, L), int64, and
            whatever else its processor made of the images.
        labels: Shape (B, L), int64: the answer's ids, and `IGNORED` elsewhere.
    """

    inputs: dict[str, Tensor]
    labels: Tensor


class GenerativeVLM(nn.Module):
    """A vision-language model that answers in words.

    Args:
        backbone: A Hugging Face model for image and text to text of one of `FAMILIES`, or the
            same wrapped by peft.

    Attributes:
        probe: A batch that fits the model, as its own processor makes one; the loader sets it.

    Raises:
        ConfigError: The model is of another type.
    """

    def __init__(self, backbone: nn.Module) -> None:
        super().__init__()
        config: Any = getattr(backbone, "config", None)
        kind = getattr(config, "model_type", type(backbone).__name__)
        if kind not in FAMILIES:
            raise ConfigError(
                f"a model of type {kind!r} is no generative model that is known here; use one of "
                f"{', '.join(FAMILIES)}"
            )
        self.kind: str = kind
        self.backbone = backbone
        self.probe: AnswerBatch | None = None
        accepted = inspect.signature(backbone.forward).parameters
        self._keeps = "logits_to_keep" in accepted
        self.train(backbone.training)

    @property
    def family(self) -> Family:
        """How its family is fed and adapted."""
        return FAMILIES[self.kind]

    def token_losses(self, batch: AnswerBatch) -> tuple[Tensor, Tensor]:
        """Return the answers' log-losses token by token, and the logits that they come from.

        Args:
            batch: Prompts with answers.

        Returns:
            Negative log-probabilities of shape (B, K), float32, in nats, where K is the number of
            places from the first answer's first token on, 0 where a place is no answer's; and
            logits of shape (B, K, V).
        """
        labels = batch.labels
        answered = (labels != IGNORED).any(dim=0).nonzero()
        # A place's logits are about the next one, so the first answer token's stand before it.
        kept = labels.shape[1] - int(answered[0]) + 1 if len(answered) else 1
        extra = {"logits_to_keep": kept} if self._keeps else {}
        out = self.backbone(**batch.inputs, **extra, use_cache=False)
        logits = out.logits[:, -kept:-1].float()
        target = labels[:, labels.shape[1] - kept + 1 :]
        losses = F.cross_entropy(
            logits.transpose(1, 2), target, ignore_index=IGNORED, reduction="none"
        )
        return losses, logits

    def answer_losses(self, batch: AnswerBatch) -> Tensor:
        """Return each answer's mean negative log-likelihood a token: shape (B,), in nats."""
        losses, _ = self.token_losses(batch)
        counts = (batch.labels != IGNORED).sum(dim=1)
        return losses.sum(dim=1) / counts.clamp(min=1)

    @torch.inference_mode()
    def generate(
        self, inputs: Inputs, most: int, ends: tuple[int, ...], padding: int
    ) -> list[list[int]]:
        """Answer greedily.

        Args:
            inputs: Prompts, padded on the left.
            most: Most new tokens.
            ends: Ids that end an answer.
            padding: The padding's id.

        Returns:
            The ids of each answer, without its end.
        """
        was_training = self.training
        self.eval()
        try:
            out = self.backbone.generate(  # pyright: ignore
                **inputs,
                max_new_tokens=most,
                do_sample=False,
                num_beams=1,
                eos_token_id=list(ends),
                pad_token_id=padding,
                use_cache=True,
            )
        finally:
            self.train(was_training)
        answers = []
        for row in out[:, inputs["input_ids"].shape[1] :].tolist():
            end = next((place for place, one in enumerate(row) if one in ends), len(row))
            answers.append(row[:end])
        return answers
