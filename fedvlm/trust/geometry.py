"""Where images and captions lie: the gap between them, and what closing it does."""

import numpy as np
from numpy.typing import ArrayLike, NDArray

from fedvlm.trust.contrasts import bootstrap
from fedvlm.trust.estimate import Estimate


def modality_gap(
    images: ArrayLike, texts: ArrayLike, clusters: ArrayLike, rng: np.random.Generator
) -> Estimate:
    """Estimate ‖mean image − mean caption‖ of pairs (Liang et al. 2022), by concept.

    Args:
        images: Shape (N, D), unit rows.
        texts: Shape (N, D), unit rows, each image's caption.
        clusters: Shape (N,).
        rng: Resamples.
    """
    difference = np.asarray(images, dtype=np.float64) - np.asarray(texts, dtype=np.float64)
    return bootstrap(
        lambda rows: float(np.linalg.norm(difference[rows].mean(axis=0))), clusters, rng
    )


def shifted(images: ArrayLike, texts: ArrayLike, share: float) -> NDArray[np.float64]:
    """Move images towards captions by a share of the gap; rows of unit norm again.

    Args:
        images: Shape (N, D), unit rows.
        texts: Shape (M, D), unit rows.
        share: 0 leaves them, 1 closes the gap of the means.
    """
    found = np.asarray(images, dtype=np.float64)
    moved = found - share * (found.mean(axis=0) - np.asarray(texts, dtype=np.float64).mean(axis=0))
    return moved / np.linalg.norm(moved, axis=1, keepdims=True)
