"""What a trained model that answers says about new images."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image

from fedvlm.data.conversation import question
from fedvlm.errors import ConfigError
from fedvlm.models.generative import LoadedGenerative, left_padded
from fedvlm.models.generative.embedded import EmbeddedAnswers
from fedvlm.models.generative.processor import HuggingFaceAnswers
from fedvlm.models.stem import IMAGE_SIZE
from fedvlm.trained.images import read_image
from fedvlm.trained.model import TrainedModel

_BATCH = 16


def ask(
    trained: TrainedModel, images: Sequence[str | Path], prompt: str, most_tokens: int = 64
) -> list[str]:
    """Ask one question about images.

    Args:
        trained: The model of a run that answers.
        images: Paths of images; nothing of them is cached.
        prompt: The question.
        most_tokens: Most tokens of an answer, at least 1.

    Returns:
        An answer an image, greedily chosen.

    Raises:
        ConfigError: The model is a dual encoder, the question is empty or too long, or holds what
            stands for an image.
        DataError: An image is missing or can't be read.
    """
    model = trained.model
    if not isinstance(model, LoadedGenerative):
        raise ConfigError("the run's model is a dual encoder and answers nothing; use predict")
    _check(model, prompt, most_tokens)
    answers: list[str] = []
    for start in range(0, len(images), _BATCH):
        seen = [read_image(Path(path)) for path in images[start : start + _BATCH]]
        answers += say(model, seen, [prompt] * len(seen), most_tokens)
    return answers


def _check(model: LoadedGenerative, prompt: str, most_tokens: int) -> None:
    own = model.processor
    if not prompt.strip() or most_tokens < 1:
        raise ConfigError("give a question, and at least one token to answer it")
    if any(mark in prompt for mark in own.image_texts):
        raise ConfigError(f"the question holds {' or '.join(own.image_texts)}; take it out")
    if own.prompt_length(question(prompt.strip())) + most_tokens > own.length:
        raise ConfigError(
            f"question and answer don't fit the model's context of {own.length} tokens; shorten "
            "the question, or allow a shorter answer"
        )


def say(
    model: LoadedGenerative,
    images: Sequence[Image.Image],
    prompts: Sequence[str],
    most_tokens: int = 64,
) -> list[str]:
    """Answer a question about each of some images, greedily.

    Args:
        model: A model that answers.
        images: N images in RGB; nothing of them is cached.
        prompts: N questions.
        most_tokens: Most tokens of an answer, at least 1.

    Raises:
        ConfigError: A question is empty or too long, or holds what stands for an image; another
            number of questions than images.
    """
    own = model.processor
    if len(images) != len(prompts):
        raise ConfigError(f"need a question an image; got {len(prompts)} to {len(images)} images")
    for prompt in dict.fromkeys(prompts):
        _check(model, prompt, most_tokens)
    answers: list[str] = []
    for start in range(0, len(images), _BATCH):
        seen = images[start : start + _BATCH]
        chats = [question(prompt.strip()) for prompt in prompts[start : start + _BATCH]]
        if isinstance(own, EmbeddedAnswers):
            prompted = own.prompts(own.pixels(np.stack([_square(one) for one in seen])), chats)
        elif isinstance(own, HuggingFaceAnswers):
            prompted = own.prompts(seen, chats)
        else:
            raise ConfigError(f"{type(own).__name__} can't be asked about images of files")
        ids = model.vlm.generate(
            left_padded(prompted, own.padding), most_tokens, own.ends, own.padding
        )
        answers += [own.text(one) for one in ids]
    return answers


def _square(image: Image.Image) -> np.ndarray:
    side = (IMAGE_SIZE, IMAGE_SIZE)
    return np.asarray(image if image.size == side else image.resize(side, Image.Resampling.BICUBIC))
