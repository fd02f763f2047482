"""Lanes: small integers side by side in 64-bit words, so that adding words adds every lane.

As long as no lane's sum reaches 2^lane, the addition modulo 2^64 carries nothing from one lane
into the next, and keystream bytes = wire bytes. A vector is cut into as many runs as a word has
lanes, and run k fills lane k of the words in order: so every step works on contiguous memory.
"""

import numpy as np
from numpy.typing import NDArray

from secure.errors import ParameterError

WORD_BITS = 64
LANES = (16, 21, 32, 64)
"""Lane widths in bits: 4, 3, 2 and 1 to a word, 2, 2.67, 4 and 8 bytes a value."""


def lane_for(levels: int, clients: int) -> int:
    """Return the narrowest lane in which `clients` values below `levels` add without a carry.

    Args:
        levels: Number of values a client may send, that is, 0 to `levels - 1`; at least 2.
        clients: Most clients that are ever summed, at least 1.

    Raises:
        ParameterError: A value is out of range, or even 64 bits could overflow.

    Example:
        >>> lane_for(levels=2**14, clients=128), lane_for(levels=2**14, clients=129)
        (21, 32)
    """
    if levels < 2 or clients < 1:
        raise ParameterError(f"need levels >= 2 and clients >= 1, got {levels} and {clients}")
    for lane in LANES:
        if clients * (levels - 1) < 1 << lane:
            return lane
    raise ParameterError(
        f"{clients} clients with {levels} levels each can overflow a 64-bit lane; "
        "ask for fewer clients or fewer levels"
    )


def words_for(length: int, lane: int) -> int:
    """Return how many 64-bit words hold `length` values."""
    return -(-length // (WORD_BITS // lane))


def runs(length: int, lane: int) -> list[tuple[int, slice]]:
    """Return where each lane's values stand in a vector: (shift, slice), lowest lane first.

    Args:
        length: Values in the vector.
        lane: One of `LANES`.

    Raises:
        ParameterError: The lane is not one of `LANES`.

    Example:
        >>> runs(5, 21)
        [(0, slice(0, 2, None)), (21, slice(2, 4, None)), (42, slice(4, 5, None))]
    """
    if lane not in LANES:
        raise ParameterError(f"a lane has {', '.join(map(str, LANES))} bits, got {lane}")
    count = words_for(length, lane)
    edges = [min(length, index * count) for index in range(WORD_BITS // lane + 1)]
    return [
        (index * lane, slice(edges[index], edges[index + 1])) for index in range(WORD_BITS // lane)
    ]


def pack(values: NDArray[np.uint64], lane: int) -> NDArray[np.uint64]:
    """Lay values side by side in words, the first ones in the lowest bits.

    Args:
        values: Shape `(length,)`, dtype uint64, each below 2^lane.
        lane: One of `LANES`.

    Returns:
        Words of shape `(words_for(length, lane),)`, dtype uint64.

    Raises:
        ParameterError: The lane is not one of `LANES`.

    Example:
        >>> pack(np.array([1, 2, 3], dtype=np.uint64), 32).tolist()
        [12884901889, 2]
    """
    parts = runs(len(values), lane)
    words = np.zeros(words_for(len(values), lane), dtype=np.uint64)
    for shift, run in parts:
        part = values[run]
        words[: len(part)] |= part << np.uint64(shift)
    return words


def unpack(words: NDArray[np.uint64], lane: int, length: int) -> NDArray[np.uint64]:
    """Take the values apart again: shape `(length,)`, dtype uint64.

    Raises:
        ParameterError: The lane is not one of `LANES`, or the words don't hold `length` values.
    """
    parts = runs(length, lane)
    if len(words) != words_for(length, lane):
        raise ParameterError(
            f"{length} values in lanes of {lane} bits take {words_for(length, lane)} words, "
            f"got {len(words)}"
        )
    mask = np.uint64((1 << lane) - 1)
    values = np.empty(length, dtype=np.uint64)
    for shift, run in parts:
        part = values[run]
        np.right_shift(words[: len(part)], np.uint64(shift), out=part)
        part &= mask
    return values
