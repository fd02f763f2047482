"""Vision-language models that answer: the embedded one, and Hugging Face's."""

from fedvlm._torchvision import hide_if_broken
from fedvlm.models.generative.families import FAMILIES, Family
from fedvlm.models.generative.model import IGNORED, AnswerBatch, GenerativeVLM
from fedvlm.models.generative.processor import (
    AnswerProcessor,
    LoadedGenerative,
    PromptSource,
    left_padded,
    with_answers,
)

__all__ = [
    "FAMILIES",
    "IGNORED",
    "AnswerBatch",
    "AnswerProcessor",
    "Family",
    "GenerativeVLM",
    "LoadedGenerative",
    "PromptSource",
    "left_padded",
    "with_answers",
]

hide_if_broken()
