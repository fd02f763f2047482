"""Zero-shot score and prototypes together, also as one pair of embeddings.

The score w_c·cos(image, text) + x·m is an inner product of [√W·image, x, 0] and
[w_c/√W·text, m, rest], W the largest w_c, where `rest` fills the text's side up to a norm that all
captions have. Both sides then have one norm for all rows, so that cosines rank as the scores do,
and whatever takes an image's and a caption's embedding takes these.
"""

import numpy as np
from numpy.typing import NDArray


def mixed_scores(
    zero_shot: NDArray[np.floating],
    features: NDArray[np.floating],
    prototypes: NDArray[np.floating],
    weights: NDArray[np.floating],
) -> NDArray[np.float64]:
    """Return weights · zero-shot + features · prototypes: shape (N, C).

    Args:
        zero_shot: Shape (N, C): cosines.
        features: Shape (N, d).
        prototypes: Shape (C, d).
        weights: Shape (C,).
    """
    return np.asarray(weights * zero_shot + features @ prototypes.T, dtype=np.float64)


def joint_images(
    images: NDArray[np.floating], features: NDArray[np.floating], most: float
) -> NDArray[np.float64]:
    """Return embeddings of images: shape (N, D + d + 1).

    Args:
        images: Shape (N, D), unit rows.
        features: Shape (N, d), unit rows.
        most: W, at least every weight of `joint_texts`.
    """
    joined = np.column_stack([np.sqrt(most) * images, features, np.zeros(len(images))])
    return joined.astype(np.float64)


def joint_texts(
    texts: NDArray[np.floating],
    prototypes: NDArray[np.floating],
    weights: NDArray[np.floating],
    most: float,
) -> NDArray[np.float64]:
    """Return embeddings of captions: shape (C, D + d + 1), rows of norm √(1 + W).

    Args:
        texts: Shape (C, D), unit rows.
        prototypes: Shape (C, d), rows of a norm up to 1.
        weights: Shape (C,): w_c, at most `most`.
        most: W.
    """
    scaled = (weights / np.sqrt(most))[:, None] * texts
    used = (scaled**2).sum(axis=1) + (prototypes**2).sum(axis=1)
    rest = np.sqrt(np.clip(1 + most - used, 0, None))
    return np.column_stack([scaled, prototypes, rest]).astype(np.float64)
