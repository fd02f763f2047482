"""Corrupted images: six kinds at five severities, by seed.

ImageNet-C's constants (Hendrycks and Dietterich 2019), its lengths scaled from 224 to 96 pixels.
"""

import io
from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageFilter

from fedvlm.errors import DataError
from fedvlm.seeds import ExperimentSeed

Pixels = NDArray[np.uint8]
SEVERITIES = (1, 2, 3, 4, 5)
_REFERENCE = 224


def _back(values: NDArray[np.float64]) -> Pixels:
    return np.rint(np.clip(values, 0.0, 1.0) * 255).astype(np.uint8)


def _gaussian_noise(image: Pixels, level: int, rng: np.random.Generator) -> Pixels:
    sigma = (0.08, 0.12, 0.18, 0.26, 0.38)[level]
    return _back(image / 255 + rng.normal(0, sigma, image.shape))


def _shot_noise(image: Pixels, level: int, rng: np.random.Generator) -> Pixels:
    photons = (60, 25, 12, 5, 3)[level]
    return _back(rng.poisson(image / 255 * photons) / photons)


def _blur(image: Pixels, level: int, rng: np.random.Generator) -> Pixels:
    radius = (1, 2, 3, 4, 6)[level] * image.shape[0] / _REFERENCE
    return np.asarray(Image.fromarray(image).filter(ImageFilter.GaussianBlur(radius)))


def _contrast(image: Pixels, level: int, rng: np.random.Generator) -> Pixels:
    kept = (0.4, 0.3, 0.2, 0.1, 0.05)[level]
    found = image / 255
    mean = found.mean(axis=(0, 1))
    return _back((found - mean) * kept + mean)


def _pixelate(image: Pixels, level: int, rng: np.random.Generator) -> Pixels:
    share = (0.6, 0.5, 0.4, 0.3, 0.25)[level]
    size = image.shape[1], image.shape[0]
    small = tuple(max(1, round(side * share)) for side in size)
    shrunk = Image.fromarray(image).resize(small, Image.Resampling.BOX)
    return np.asarray(shrunk.resize(size, Image.Resampling.NEAREST))


def _jpeg(image: Pixels, level: int, rng: np.random.Generator) -> Pixels:
    held = io.BytesIO()
    Image.fromarray(image).save(held, "JPEG", quality=(25, 18, 15, 10, 7)[level])
    return np.asarray(Image.open(held).convert("RGB"))


CORRUPTIONS: dict[str, Callable[[Pixels, int, np.random.Generator], Pixels]] = {
    "gaussian noise": _gaussian_noise,
    "shot noise": _shot_noise,
    "blur": _blur,
    "contrast": _contrast,
    "pixelate": _pixelate,
    "jpeg": _jpeg,
}


def corrupt(images: Pixels, kind: str, severity: int, seed: ExperimentSeed) -> Pixels:
    """Corrupt images, each by its own draw from the seed.

    Args:
        images: Shape (B, H, W, 3), uint8, H and W at least 8.
        kind: A name in `CORRUPTIONS`.
        severity: 1 to 5.
        seed: Decides the noise; image i of any batch gets the same.

    Returns:
        Shape (B, H, W, 3), uint8.

    Raises:
        DataError: Images that this can't take, an unknown kind or severity.
    """
    if kind not in CORRUPTIONS or severity not in SEVERITIES:
        raise DataError(
            f"no corruption {kind!r} of severity {severity}; 1 to 5 of {[*CORRUPTIONS]}"
        )
    right = images.ndim == 4 and images.shape[-1] == 3 and images.dtype == np.uint8
    if not right or min(images.shape[1:3]) < 8:
        raise DataError(
            f"corruptions take uint8 images (B, H, W, 3) of 8 pixels or more a side; got "
            f"{images.dtype} {images.shape}"
        )
    out = np.empty_like(images)
    for number, image in enumerate(images):
        rng = seed.numpy("corrupt", kind, severity, number)
        out[number] = CORRUPTIONS[kind](image, severity - 1, rng)
    return out


def noise_images(count: int, size: int, seed: ExperimentSeed) -> Pixels:
    """Draw images that show nothing: half uniform noise, half smooth colour fields.

    Args:
        count: Number of images.
        size: Side in pixels.
        seed: Decides them.

    Returns:
        Shape (count, size, size, 3), uint8.
    """
    out = np.empty((count, size, size, 3), dtype=np.uint8)
    for number in range(count):
        rng = seed.numpy("noise image", number)
        side = size if number % 2 == 0 else 4
        drawn = rng.integers(0, 256, (side, side, 3), dtype=np.uint8)
        full = Image.fromarray(drawn).resize((size, size), Image.Resampling.BICUBIC)
        out[number] = np.asarray(full)
    return out
