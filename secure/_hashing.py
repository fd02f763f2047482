"""Hashing of structured public values: labelled, and framed so that two values can't collide."""

import hashlib
from collections.abc import Sequence

Part = int | str | bytes | Sequence["Part"]
"""What can be hashed: numbers of up to 63 bits, text, bytes, and sequences of these."""

_PREFIX = b"fedvlm secure aggregation 1"


def _framed(part: Part) -> bytes:
    if isinstance(part, int):
        kind, data = b"i", part.to_bytes(8, "little", signed=True)
    elif isinstance(part, str):
        kind, data = b"s", part.encode()
    elif isinstance(part, bytes):
        kind, data = b"b", part
    else:
        kind, data = b"l", b"".join(_framed(each) for each in part)
    return kind + len(data).to_bytes(8, "little") + data


def digest(label: str, *parts: Part) -> bytes:
    """Return the SHA-256 of a label and parts, 32 bytes.

    Every part carries its type and length, so that no two different calls hash the same bytes.

    Example:
        >>> digest("a", b"x", b"yz") == digest("a", b"xy", b"z")
        False
    """
    return hashlib.sha256(_PREFIX + _framed(label) + _framed(parts)).digest()
