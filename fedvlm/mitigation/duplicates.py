"""Duplicates, which a model remembers best: found by what images show, then by embedding.

Perceptual hashes are not used. On drawings of one designer a distance of 4 bits joins hundreds of
pairs that show different things.
"""

from collections.abc import Hashable, Sequence

import numpy as np
from numpy.typing import ArrayLike, NDArray

_BLOCK = 512


def exact_duplicates(contents: Sequence[Hashable]) -> NDArray[np.int64]:
    """Return rows whose content stood before: all but the first of each.

    Args:
        contents: A hash of what each image shows, as `ImageTextData.groups`.
    """
    seen: set[Hashable] = set()
    return np.array(
        [row for row, one in enumerate(contents) if one in seen or seen.add(one)], dtype=np.int64
    )


def near_duplicates(
    embeddings: ArrayLike, threshold: float, concepts: ArrayLike | None = None
) -> NDArray[np.int64]:
    """Return rows whose embedding is near that of an earlier row that is kept.

    Args:
        embeddings: Shape (N, D), unit rows of the public model before training.
        threshold: Smallest cosine that counts as near; chosen on pairs that are known to differ.
        concepts: Shape (N,): only rows of one concept can be duplicates; None compares all.

    Returns:
        Rows to leave out, ascending; each is near a row that stays.
    """
    found = np.asarray(embeddings, dtype=np.float64)
    labels = None if concepts is None else np.asarray(concepts)
    kept: list[int] = []
    out: list[int] = []
    for row in range(len(found)):
        earlier = np.array(kept, dtype=np.int64)
        if labels is not None:
            earlier = earlier[labels[earlier] == labels[row]]
        near = any(
            bool((found[earlier[at : at + _BLOCK]] @ found[row] >= threshold).any())
            for at in range(0, len(earlier), _BLOCK)
        )
        (out if near else kept).append(row)
    return np.array(out, dtype=np.int64)
