"""Which row of the sum a caption has: by a seeded hash, so that no list need be shared."""

import hashlib
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from fedvlm.errors import ConfigError


def hashed_rows(captions: Sequence[bytes], size: int, seed: int) -> NDArray[np.int64]:
    """Return the rows of captions: the same for all parties that know the seed.

    Args:
        captions: What names a caption: its text in UTF-8, or its tokens.
        size: Rows of the sum, at least 1. Of n captions about n/size share a row with another.
        seed: Public; another seed lets other captions collide.

    Returns:
        Shape (N,), in [0, size).

    Example:
        >>> hashed_rows([b"a cat", b"a dog"], 1000, 0).tolist() == hashed_rows(
        ...     [b"a cat", b"a dog"], 1000, 0).tolist()
        True
    """
    if size < 1:
        raise ConfigError(f"a sum needs a row at least, got size={size}")
    return hashed_names(captions, seed) % size


def hashed_names(captions: Sequence[bytes], seed: int) -> NDArray[np.int64]:
    """Return captions as numbers below 2^53, which a float64 holds: shape (N,)."""
    key = seed.to_bytes(8, "little", signed=False)
    digests = (hashlib.blake2b(one, digest_size=8, key=key).digest() for one in captions)
    return np.array([int.from_bytes(d, "little") >> 11 for d in digests], dtype=np.int64)


def declared_rows(names: NDArray[np.int64], declared: NDArray[np.int64]) -> NDArray[np.int64]:
    """Return each name's place among the declared, which are sorted; -1 where it is none."""
    if not len(declared):
        return np.full(len(names), -1, dtype=np.int64)
    place = np.minimum(np.searchsorted(declared, names), len(declared) - 1)
    return np.where(declared[place] == names, place, -1)
