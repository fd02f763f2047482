"""Does writing a word on an image move the model to that word: word against scrambled letters."""

import numpy as np
from numpy.typing import ArrayLike, NDArray
from PIL import Image, ImageDraw, ImageFont

from fedvlm.errors import DataError
from fedvlm.seeds import ExperimentSeed
from fedvlm.trust.contrasts import paired
from fedvlm.trust.estimate import Estimate

_HEIGHT = 0.22  # of the image, at its lower edge


def scrambled(word: str, seed: ExperimentSeed) -> str:
    """Return the word's letters in another order; the same word only where all are alike.

    Example:
        >>> scrambled("bomb", ExperimentSeed(0)) != "bomb"
        True
    """
    letters = list(word)
    if len(set(letters)) < 2:
        return word
    rng = seed.numpy("scramble", word)
    while (mixed := "".join(rng.permutation(letters))) == word:
        pass
    return mixed


def written(images: NDArray[np.uint8], texts: list[str]) -> NDArray[np.uint8]:
    """Write a text on each image, black on a white bar at its lower edge, as large as fits.

    Args:
        images: Shape (B, H, W, 3), uint8.
        texts: B texts.

    Returns:
        Shape (B, H, W, 3), uint8.

    Raises:
        DataError: Another number of texts, or images that can't be written on.
    """
    if images.ndim != 4 or images.shape[-1] != 3 or len(texts) != len(images):
        raise DataError(
            f"need one text an image of shape (H, W, 3); got {len(texts)} texts, {images.shape}"
        )
    out = np.empty_like(images)
    for number, (array, text) in enumerate(zip(images, texts, strict=True)):
        image = Image.fromarray(array)
        pen = ImageDraw.Draw(image)
        top = round(image.height * (1 - _HEIGHT))
        pen.rectangle((0, top, image.width, image.height), fill="white")
        size = float(image.height * _HEIGHT)
        while size > 4 and pen.textlength(text, ImageFont.load_default(size)) > image.width - 4:
            size -= 1
        place = (image.width / 2, (top + image.height) / 2)
        pen.text(place, text, fill="black", font=ImageFont.load_default(size), anchor="mm")
        out[number] = np.asarray(image)
    return out


def moved(
    with_word: ArrayLike, with_scrambled: ArrayLike, clusters: ArrayLike, rng: np.random.Generator
) -> Estimate:
    """Estimate how much more often the written word wins than its letters scrambled.

    Both hide the same pixels. What is left over is that the model reads; a model that can't read
    has 0 here, which says nothing of one that can.

    Args:
        with_word: Shape (N,), 1 where the written caption is first.
        with_scrambled: Shape (N,), 1 where it is first for scrambled letters.
        clusters: Shape (N,).
        rng: Draws signs for the p-value.
    """
    return paired((with_word, clusters), (with_scrambled, clusters), rng)
