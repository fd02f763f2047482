"""An image and a prompt in, words out: what a red-teaming tool attacks."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from PIL import Image

from fedvlm.data.conversation import question
from fedvlm.errors import ConfigError
from fedvlm.models.generative import LoadedGenerative
from fedvlm.models.generative.embedded import EmbeddedAnswers
from fedvlm.models.stem import IMAGE_SIZE
from fedvlm.trained.ask import say
from fedvlm.trained.images import read_image
from fedvlm.trained.model import load_trained

_SIDE = 224
Shown = Image.Image | str | Path


@dataclass(frozen=True, eq=False)
class Target:
    """A generative model as a function of an image and a prompt.

    Attributes:
        model: The model.
        name: What it is called in reports.
        most_tokens: Most tokens of an answer, at least 1.
    """

    model: LoadedGenerative
    name: str
    most_tokens: int = 64

    @property
    def side(self) -> int:
        """Side in pixels of pictures that are made for the model."""
        return IMAGE_SIZE if isinstance(self.model.processor, EmbeddedAnswers) else _SIDE

    @property
    def blank(self) -> Image.Image:
        """A white picture, for a prompt that comes without one: these models need an image."""
        return Image.new("RGB", (self.side, self.side), "white")

    def __call__(self, image: Shown | None, prompt: str) -> str:
        """Answer a prompt about an image, greedily.

        Args:
            image: The image or its path; None shows a blank white picture.
            prompt: What is asked.

        Raises:
            ConfigError: The prompt is empty or too long, or holds what stands for an image.
            DataError: The image is missing or can't be read.
        """
        return self.many([self.blank if image is None else image], [prompt])[0]

    def many(self, images: Sequence[Shown], prompts: Sequence[str]) -> list[str]:
        """Answer N prompts about N images; raises what a single call does."""
        seen = [
            one.convert("RGB") if isinstance(one, Image.Image) else read_image(Path(one))
            for one in images
        ]
        return say(self.model, seen, prompts, self.most_tokens)

    def fits(self, prompt: str) -> bool:
        """Say whether a prompt leaves room for an answer in the model's context."""
        own = self.model.processor
        return own.prompt_length(question(prompt.strip())) + self.most_tokens <= own.length

    def without_marks(self, prompt: str) -> str:
        """Return a prompt without what stands for an image, whose place is the processor's."""
        for mark in self.model.processor.image_texts:
            prompt = prompt.replace(mark, "")
        return prompt.strip()


def load_target(folder: str | Path, most_tokens: int = 64) -> Target:
    """Load a run's trained model as a target.

    Args:
        folder: Of a finished run whose model answers.
        most_tokens: Most tokens of an answer, at least 1.

    Raises:
        ConfigError: The folder holds no finished run, or its model is a dual encoder.
    """
    model = load_trained(folder).model
    if not isinstance(model, LoadedGenerative):
        raise ConfigError("the run's model is a dual encoder and answers nothing: no target for it")
    return Target(model, f"fedvlm:{Path(folder).name}", most_tokens)
