"""What one image adds to a sum, and that it is never longer than 1: where private pairs enter.

An image's term is Σ e_row ⊗ (√(1−a²)·x, a) over the rows of its captions, divided by the root of
their number: x is its unit feature, and the last coordinate counts. However many captions an image
has, however often its pair stands there, its whole term has an L2 norm of at most 1.
"""

import math

import numpy as np
from numpy.typing import NDArray

from fedvlm.errors import ConfigError, IntegrityError
from fedvlm.heads.whitening import unit_rows

COUNT_SHARE = 0.25
"""a: how much of an image's unit vector says that it is there at all, where rows are inferred."""
DECLARED_SHARE = 0.05
"""The same where the captions that are held were declared, and little need be told."""


def counted(features: NDArray[np.floating], share: float = COUNT_SHARE) -> NDArray[np.float64]:
    """Return unit features with a last coordinate that counts: shape (N, d + 1), norm at most 1.

    Args:
        features: Shape (N, d); rows are scaled to norm 1. One that isn't finite counts for nothing.
        share: a, in [0, 1).
    """
    if not 0 <= share < 1:
        raise ConfigError(f"the share of the count must be in [0, 1), got {share}")
    rows = unit_rows(features)
    there = (rows != 0).any(axis=1)
    both = np.column_stack([math.sqrt(1 - share**2) * rows, np.where(there, share, 0.0)])
    return unit_rows(both)


def image_terms(
    features: NDArray[np.floating],
    rows: NDArray[np.int64],
    images: NDArray[np.int64],
    size: int,
    share: float = COUNT_SHARE,
) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.float64]]:
    """Return each image's term, sparse: which image, which row, what is added there.

    Args:
        features: Shape (N, d): of each pair's image.
        rows: Shape (N,), in [0, size): the row of each pair's caption.
        images: Shape (N,): pairs of one image share a number.
        size: Rows of the sum.
        share: See `counted`.

    Returns:
        Numbers of images and rows, shape (M,), and vectors, shape (M, d + 1): of each image the
        first pair's feature, once for each different row of its captions.

    Guarantees:
        For each image, the L2 norm of all its vectors together is at most 1.

    Raises:
        IntegrityError: Shapes don't fit, or a row is out of range.
    """
    if not len(features) == len(rows) == len(images) or features.ndim != 2:
        raise IntegrityError(
            f"features {features.shape}, rows {rows.shape} and images {images.shape} don't fit"
        )
    if len(rows) and not (rows.min() >= 0 and rows.max() < size):
        raise IntegrityError(f"a caption's row is outside of [0, {size})")
    _, first, numbers = np.unique(images, return_index=True, return_inverse=True)
    pairs = np.unique(np.column_stack([numbers, rows]), axis=0).astype(np.int64)
    vectors = counted(features, share)[first[pairs[:, 0]]]
    captions = np.bincount(pairs[:, 0], minlength=len(first))[pairs[:, 0]]
    # The root is correctly rounded and so is the quotient: two roundings, taken off beforehand.
    vectors = vectors * ((1 - 2.0**-50) / np.sqrt(captions))[:, None]
    return pairs[:, 0], pairs[:, 1], vectors


def image_sums(
    features: NDArray[np.floating],
    rows: NDArray[np.int64],
    images: NDArray[np.int64],
    size: int,
    share: float = COUNT_SHARE,
) -> NDArray[np.float64]:
    """Return the sum of all images' terms: shape (size, d + 1); see `image_terms`.

    Guarantees:
        Adding or removing one image, with all its captions and pairs, moves the sum by an L2 norm
        of at most 1 (up to the rounding of the addition; what is released under DP is summed
        in integers, see `whole_terms`).
    """
    _, places, vectors = image_terms(features, rows, images, size, share)
    total = np.zeros((size, features.shape[1] + 1))
    np.add.at(total, places, vectors)
    return total


def whole_terms(vectors: NDArray[np.float64], scale: int) -> NDArray[np.int64]:
    """Return vectors as integers of `scale` to a unit, each rounded *towards zero*.

    Args:
        vectors: Shape (M, d).
        scale: s, positive.

    Guarantees:
        No vector, and no set of vectors of one image, gets longer than s times what it was: a
        bound on the terms is, times s, a bound on the integers, and their sum is exact.
    """
    return np.trunc(vectors * scale).astype(np.int64)
