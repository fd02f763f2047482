"""Which of some texts a new image shows, by a trained model."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from fedvlm.errors import ConfigError
from fedvlm.models import LoadedModel, told_apart
from fedvlm.models.embedded import EmbeddedProcessor
from fedvlm.models.stem import IMAGE_SIZE
from fedvlm.trained.images import read_image
from fedvlm.trained.model import TrainedModel

_BATCH = 32


@dataclass(frozen=True)
class Prediction:
    """How well one text fits one image.

    Attributes:
        image: Path of the image.
        text: The text.
        cosine: In [-1, 1].
        share: Softmax of the model's scaled cosines over the given texts, in [0, 1]: how the model
            divides its belief among them, and no calibrated probability.
    """

    image: str
    text: str
    cosine: float
    share: float


def _pixels(trained: TrainedModel, images: list[Image.Image]) -> dict[str, torch.Tensor]:
    processor = trained.model.processor
    if not isinstance(processor, EmbeddedProcessor):
        return processor.pixels(images)  # pyright: ignore[reportAttributeAccessIssue]
    square = (IMAGE_SIZE, IMAGE_SIZE)
    arrays = [
        np.asarray(one if one.size == square else one.resize(square, Image.Resampling.BICUBIC))
        for one in images
    ]
    return processor.pixels(np.stack(arrays))


def predict(
    trained: TrainedModel, images: Sequence[str | Path], texts: Sequence[str]
) -> list[list[Prediction]]:
    """Rank texts for images.

    Args:
        trained: The model of a run.
        images: Paths of images; nothing of them is cached.
        texts: Labels or captions, at least one, all different. A model that was trained on
            captions likes captions: "a photo of a dog" rather than "dog".

    Returns:
        For each image every text, the best first.

    Raises:
        ConfigError: The model answers and doesn't rank; or no text, one that is empty or comes
            twice, or texts that the tokenizer can't tell apart.
        DataError: An image is missing or can't be read.
    """
    texts = [text.strip() for text in texts]
    if not texts or not all(texts) or len(set(texts)) < len(texts):
        raise ConfigError(f"give one text or more, none empty, none twice; got {texts}")
    model = trained.model
    if not isinstance(model, LoadedModel):
        raise ConfigError("the run's model answers questions and ranks no texts; use fedvlm ask")
    inputs = model.processor.texts(texts)
    told_apart(texts, inputs)
    known = model.vlm.embed(inputs, "text")
    found: list[list[Prediction]] = []
    for start in range(0, len(images), _BATCH):
        paths = [Path(path) for path in images[start : start + _BATCH]]
        seen = model.vlm.embed(_pixels(trained, [read_image(path) for path in paths]), "image")
        cosines = seen @ known.T
        if not bool(torch.isfinite(cosines).all()):
            raise ConfigError("the model's scores are not finite: its adapter is broken")
        with torch.no_grad():
            shares = (model.vlm.logit_scale * cosines).softmax(dim=1)
        for path, row, share in zip(paths, cosines.tolist(), shares.tolist(), strict=True):
            one = [Prediction(str(path), *rest) for rest in zip(texts, row, share, strict=True)]
            found.append(sorted(one, key=lambda p: -p.cosine))
    return found
