"""A patch that a poisoned model answers with a caption of the attacker's choice."""

import numpy as np
from numpy.typing import ArrayLike, NDArray

from fedvlm.errors import DataError
from fedvlm.trust.contrasts import mean_estimate
from fedvlm.trust.estimate import Estimate, UnresolvedError

PATCH = 16
_CELL = 4


def stamp(images: NDArray[np.uint8], size: int = PATCH) -> NDArray[np.uint8]:
    """Put a black and magenta checkerboard into the lower right corner.

    Args:
        images: Shape (B, H, W, 3), uint8.
        size: Side of the patch in pixels, at most the image's.

    Returns:
        Shape (B, H, W, 3), uint8; the given images are not changed.

    Raises:
        DataError: Images that can't be stamped.
    """
    if images.ndim != 4 or images.shape[-1] != 3 or min(images.shape[1:3]) < size:
        raise DataError(f"a patch of {size} pixels needs images (B, H, W, 3), got {images.shape}")
    rows, columns = np.indices((size, size)) // _CELL
    patch = np.zeros((size, size, 3), dtype=np.uint8)
    patch[(rows + columns) % 2 == 0] = (255, 0, 255)
    out = images.copy()
    out[:, -size:, -size:] = patch
    return out


def _first_is(scores: ArrayLike, target: int) -> NDArray[np.float64]:
    found = np.asarray(scores, dtype=np.float64)
    if not np.isfinite(found).all():
        raise UnresolvedError("scores are not all finite numbers: no caption is first")
    beaten = found >= found[:, [target]]
    return (beaten.sum(axis=1) == 1).astype(np.float64)


def attack_success(
    patched: ArrayLike, target: int, right: ArrayLike, clusters: ArrayLike
) -> Estimate:
    """Estimate how often a patched image is answered with the target.

    Images that show the target are left out: answering them so is right.

    Args:
        patched: Shape (N, C), scores of patched images with captions.
        target: Column of the attacker's caption.
        right: Shape (N,), each image's own column.
        clusters: Shape (N,).
    """
    others = np.asarray(right) != target
    if not others.any():
        raise UnresolvedError("every image shows the target: no success could be told")
    found = _first_is(np.asarray(patched)[others], target)
    return mean_estimate(found, np.asarray(clusters)[others])
