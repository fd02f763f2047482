"""The only source of secret randomness.

Keys, shares, masks and noise that is released come from here: the operating system's entropy,
expanded by AES-256 in counter mode. Experiment seeds never reach this module; there is no seed
argument to pass one to.
"""

import os
from collections.abc import Sequence

import numpy as np
from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes
from numpy.typing import NDArray

from secure import _whole
from secure.errors import ParameterError

_whole.require()

KEY_BYTES = 32
_COUNTER_START = bytes(16)
# Bytes that a pass works on: input, output and accumulator together stay in a core's own cache.
_CHUNK = 1 << 17
_ZEROS = memoryview(bytes(_CHUNK))


def _stream(key: bytes):
    if len(key) != KEY_BYTES:
        raise ParameterError(f"a keystream key has {KEY_BYTES} bytes, got {len(key)}")
    return Cipher(algorithms.AES(key), modes.CTR(_COUNTER_START)).encryptor()


def _fill(stream, out: memoryview) -> None:
    """Write keystream over `out`, a flat byte view, in pieces that stay in the cache."""
    for start in range(0, len(out), _CHUNK):
        piece = out[start : start + _CHUNK]
        stream.update_into(_ZEROS[: len(piece)], piece)


def keystream(key: bytes, count: int) -> NDArray[np.uint64]:
    """Expand a key into the first `count` 64-bit words of its AES-256-CTR keystream.

    Args:
        key: 32 bytes, used for this stream and for nothing else. NEVER REUSE A KEY: the counter
            starts at zero, so one key gives one stream (NIST SP 800-38A, section 6.5).
        count: Number of words, at least 0.

    Returns:
        Array of shape `(count,)`, dtype uint64, little-endian on every machine.

    Raises:
        ParameterError: The key is not 32 bytes, or `count` is negative.

    Example:
        >>> keystream(bytes(32), 1).tolist()
        [9910523521560253916]
    """
    if count < 0:
        raise ParameterError(f"count must be at least 0, got {count}")
    out = np.empty(count, dtype="<u8")
    _fill(_stream(key), out.view(np.uint8).data)
    return out.astype(np.uint64, copy=False)


def add_keystreams(
    words: NDArray[np.uint64], added: Sequence[bytes], subtracted: Sequence[bytes] = ()
) -> NDArray[np.uint64]:
    """Add and subtract whole keystreams, modulo 2^64, in one pass over the words.

    The same as `words + Σ keystream(a, n) − Σ keystream(s, n)`, without writing any stream to
    memory: piece by piece, each stream goes over one buffer that stays in the cache.

    Args:
        words: Shape `(n,)`, dtype uint64; left as it is.
        added: Keys of the streams to add, 32 bytes each. NEVER REUSE A KEY for another vector.
        subtracted: Keys of the streams to subtract.

    Returns:
        Shape `(n,)`, dtype uint64.

    Raises:
        ParameterError: A key is not 32 bytes.
    """
    signed = [(np.add, _stream(key)) for key in added]
    signed += [(np.subtract, _stream(key)) for key in subtracted]
    if not signed:
        return words.copy()
    out = np.empty_like(words)
    size = _CHUNK // 8
    buffer = np.empty(size, dtype="<u8")
    view = buffer.view(np.uint8).data
    for start in range(0, len(words), size):
        source, target = words[start : start + size], out[start : start + size]
        piece, flat = buffer[: len(target)], view[: 8 * len(target)]
        zeros = _ZEROS[: len(flat)]
        for combine, stream in signed:
            stream.update_into(zeros, flat)
            combine(source, piece, out=target)
            source = target
    return out


class SecureRandom:
    """Secret randomness from the operating system, expanded by AES-256-CTR.

    Every call takes a key of its own from the operating system and forgets it: no key outlives a
    call, threads share nothing, and a forked child draws its own secrets.

    Guarantees:
        Draws are indistinguishable from uniform to anyone who has not read this process's
        memory during the draw, as long as AES-256 is a pseudo-random permutation. Nothing here
        can be seeded, and nothing can be pickled.

    Example:
        >>> rng = SecureRandom()
        >>> len(rng.token(16))
        16
    """

    def _fresh_key(self) -> bytes:
        return os.urandom(KEY_BYTES)

    def token(self, size: int) -> bytes:
        """Return `size` secret bytes, for keys and seeds."""
        if size < 0:
            raise ParameterError(f"size must be at least 0, got {size}")
        out = bytearray(size)
        _fill(_stream(self._fresh_key()), memoryview(out))
        return bytes(out)

    def words(self, count: int) -> NDArray[np.uint64]:
        """Return `count` uniform 64-bit words: shape `(count,)`, dtype uint64."""
        if count < 0:
            raise ParameterError(f"count must be at least 0, got {count}")
        out = np.empty(count, dtype=np.uint64)
        _fill(_stream(self._fresh_key()), out.view(np.uint8).data)
        return out

    def below(self, bound: int, count: int) -> NDArray[np.uint64]:
        """Return `count` integers, uniform on `[0, bound)` without modulo bias.

        Args:
            bound: Between 1 and 2^64.
            count: Number of draws.

        Returns:
            Array of shape `(count,)`, dtype uint64.

        Raises:
            ParameterError: `bound` is out of range.
        """
        if not 1 <= bound <= 1 << 64:
            raise ParameterError(f"bound must be in [1, 2^64], got {bound}")
        if bound & (bound - 1) == 0:
            return self.words(count) & np.uint64(bound - 1)
        # Rejection: keep words under the largest multiple of `bound` that fits in 64 bits.
        limit = np.uint64((1 << 64) - (1 << 64) % bound - 1)
        kept = np.empty(0, dtype=np.uint64)
        while len(kept) < count:
            draw = self.words(count - len(kept) + 16)
            kept = np.concatenate([kept, draw[draw <= limit]])
        return kept[:count] % np.uint64(bound)

    def uniform(self, count: int) -> NDArray[np.float64]:
        """Return `count` floats uniform on `[0, 1)` in steps of 2^-53: shape `(count,)`."""
        return (self.words(count) >> np.uint64(11)).astype(np.float64) * 2.0**-53

    def __reduce__(self):
        raise TypeError("SecureRandom can't be pickled: each process draws its own secrets")
