"""Lanes: small integers side by side in 64-bit words, so that adding words adds every lane.

As long as no lane's sum reaches 2^lane, the addition modulo 2^64 carries nothing from one lane
into the next, and keystream bytes = wire bytes.
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


def pack(values: NDArray[np.uint64], lane: int) -> NDArray[np.uint64]:
    """Lay values side by side in words, the first in the lowest bits.

    Args:
        values: Shape `(length,)`, dtype uint64, each below 2^lane.
        lane: One of `LANES`.

    Returns:
        Words of shape `(words_for(length, lane),)`, dtype uint64.

    Raises:
        ParameterError: The lane is not one of `LANES`.

    Example:
        >>> pack(np.array([1, 2, 3], dtype=np.uint64), 32).tolist()
        [8589934593, 3]
    """
    _check_lane(lane)
    per_word = WORD_BITS // lane
    whole = len(values) // per_word
    words = np.zeros(words_for(len(values), lane), dtype=np.uint64)
    body = values[: whole * per_word].reshape(whole, per_word)
    for index in range(per_word):
        words[:whole] |= body[:, index] << np.uint64(index * lane)
    for index, value in enumerate(values[whole * per_word :]):
        words[whole] |= value << np.uint64(index * lane)
    return words


def unpack(words: NDArray[np.uint64], lane: int, length: int) -> NDArray[np.uint64]:
    """Take the values apart again: shape `(length,)`, dtype uint64.

    Raises:
        ParameterError: The lane is not one of `LANES`, or the words don't hold `length` values.
    """
    _check_lane(lane)
    if len(words) != words_for(length, lane):
        raise ParameterError(
            f"{length} values in lanes of {lane} bits take {words_for(length, lane)} words, "
            f"got {len(words)}"
        )
    per_word = WORD_BITS // lane
    mask = np.uint64((1 << lane) - 1)
    values = np.empty((len(words), per_word), dtype=np.uint64)
    for index in range(per_word):
        values[:, index] = (words >> np.uint64(index * lane)) & mask
    return values.reshape(-1)[:length]


def _check_lane(lane: int) -> None:
    if lane not in LANES:
        raise ParameterError(f"a lane has {', '.join(map(str, LANES))} bits, got {lane}")
