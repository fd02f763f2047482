"""Zero-shot score and prototypes together, also as one pair of embeddings.

The score a·cos(image, text) + x·m is an inner product of [√a·image, x, 0] and [√a·text, m, rest],
where `rest` fills the text's side up to a norm that all captions have. Both sides then have one
norm for all rows, so that cosines rank as the scores do, and whatever takes an image's and a
caption's embedding takes these.
"""

import numpy as np
from numpy.typing import NDArray


def mixed_scores(
    zero_shot: NDArray[np.floating],
    features: NDArray[np.floating],
    prototypes: NDArray[np.floating],
    weight: float,
) -> NDArray[np.float64]:
    """Return weight · zero-shot + features · prototypes: shape (N, C)."""
    return weight * np.asarray(zero_shot, dtype=np.float64) + features @ prototypes.T


def joint_images(
    images: NDArray[np.floating], features: NDArray[np.floating], weight: float
) -> NDArray[np.float64]:
    """Return embeddings of images: shape (N, D + d + 1); see the module."""
    return np.column_stack([np.sqrt(weight) * images, features, np.zeros(len(images))])


def joint_texts(
    texts: NDArray[np.floating], prototypes: NDArray[np.floating], weight: float
) -> NDArray[np.float64]:
    """Return embeddings of captions: shape (C, D + d + 1), whose prototypes have a norm up to 1."""
    rest = np.sqrt(np.clip(1 - np.einsum("cd,cd->c", prototypes, prototypes), 0, None))
    return np.column_stack([np.sqrt(weight) * texts, prototypes, rest])
