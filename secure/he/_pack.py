"""Residues as bytes: exactly as many bits as their prime has."""

import numpy as np
from numpy.typing import NDArray

from secure.he.errors import WireError


def packed_bytes(count: int, bits: int) -> int:
    """Return the bytes that `count` residues of `bits` bits take; `count` divisible by 8."""
    return count * bits // 8


def pack(residues: NDArray[np.uint64], bits: int) -> bytes:
    """Pack residues below 2^bits.

    The whole bytes of every residue come first, then its leftover bits: both are a strided
    copy, where a shift of each word across byte borders would cost a pass a bit.

    Args:
        residues: Shape `(count,)`, dtype uint64, `count` divisible by 8.
        bits: 1 to 64.

    Returns:
        `count * bits / 8` bytes.
    """
    whole, left = divmod(bits, 8)
    octets = np.ascontiguousarray(residues, dtype="<u8").view(np.uint8).reshape(-1, 8)
    out = octets[:, :whole].tobytes()
    if left:
        rest = np.unpackbits(octets[:, whole, None], axis=1, count=left, bitorder="little")
        out += np.packbits(rest.reshape(-1), bitorder="little").tobytes()
    return out


def unpack(data: bytes | memoryview, count: int, bits: int, modulus: int) -> NDArray[np.uint64]:
    """Read what `pack` wrote, and refuse a word that is no residue.

    Raises:
        WireError: The length is wrong, or a word is not below `modulus`.
    """
    if len(data) != packed_bytes(count, bits):
        raise WireError(
            f"{count} residues of {bits} bits take {packed_bytes(count, bits)} bytes, "
            f"got {len(data)}"
        )
    whole, left = divmod(bits, 8)
    octets = np.zeros((count, 8), dtype=np.uint8)
    raw = np.frombuffer(data, dtype=np.uint8)
    octets[:, :whole] = raw[: count * whole].reshape(count, whole)
    if left:
        rest = np.unpackbits(raw[count * whole :], bitorder="little").reshape(count, left)
        octets[:, whole] = np.packbits(rest, axis=1, bitorder="little")[:, 0]
    words = octets.view("<u8").reshape(count).astype(np.uint64, copy=False)
    if count and int(words.max()) >= modulus:
        raise WireError("a residue is not below its prime")
    return words
