"""The typed wire format: frames of integers whose shapes the receiver knows beforehand.

A frame is a 20-byte header (magic, kind, sequence number, body length) and a body. The body of a
round is a count, one descriptor a tensor (modulus bits, dimensions) and then the words, each in as
few whole bytes as its modulus needs, little-endian. There is no pickle and nothing to execute; a
receiver states what it expects, and any other byte count, shape, modulus or order is refused
before a body is read.
"""

import json
import math
import struct
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from secure.smpc.errors import WireError

Shape = tuple[int, ...]
#: What a receiver expects of one tensor: its shape and its modulus 2^bits.
Expected = tuple[Shape, int]

MAGIC = b"FVP1"
HEADER = struct.Struct("<4sIIQ")
HEADER_BYTES = HEADER.size
ROUND, JSON, ERROR, BLOB = 1, 2, 3, 4
KINDS = (ROUND, JSON, ERROR, BLOB)
#: Room for 256 labels of 256 characters, each of them escaped.
MAX_JSON_BYTES = 1 << 20
MAX_ERROR_BYTES = 1 << 10
_COUNT = struct.Struct("<H")
_DESCRIPTOR = struct.Struct("<BB")


def header(kind: int, sequence: int, length: int) -> bytes:
    """Build a frame's header."""
    return HEADER.pack(MAGIC, kind, sequence, length)


def parse_header(data: bytes) -> tuple[int, int, int]:
    """Return kind, sequence number and body length.

    Raises:
        WireError: Not a header of this format.
    """
    magic, kind, sequence, length = HEADER.unpack(data)
    if magic != MAGIC or kind not in KINDS:
        raise WireError("the peer sent bytes that are not a frame of this protocol")
    return kind, sequence, length


def word_bytes(bits: int) -> int:
    """Return the bytes of one word modulo 2^bits."""
    return -(-bits // 8)


def _descriptors(expected: Sequence[Expected]) -> bytes:
    parts = [_COUNT.pack(len(expected))]
    for shape, bits in expected:
        parts.append(_DESCRIPTOR.pack(bits, len(shape)))
        parts.append(struct.pack(f"<{len(shape)}I", *shape))
    return b"".join(parts)


def body_bytes(expected: Sequence[Expected]) -> int:
    """Return the length of a round's body."""
    words = sum(math.prod(shape) * word_bytes(bits) for shape, bits in expected)
    return len(_descriptors(expected)) + words


def pack(tensors: Sequence[tuple[Tensor, int]]) -> bytes:
    """Build the body of a round from int64 tensors and their modulus bits."""
    parts = [_descriptors([(tuple(t.shape), bits) for t, bits in tensors])]
    for tensor, bits in tensors:
        width = word_bytes(bits)
        words = tensor.contiguous().numpy().reshape(-1).astype("<i8", copy=False)
        raw = words.view(np.uint8).reshape(-1, 8)
        parts.append(raw[:, :width].tobytes() if width < 8 else raw.tobytes())
    return b"".join(parts)


def unpack(body: bytes | bytearray, expected: Sequence[Expected]) -> list[Tensor]:
    """Read the body of a round that must hold just the tensors expected.

    Returns:
        int64 tensors; those of a smaller modulus are between 0 and 2^bits − 1.

    Raises:
        WireError: Another length, shape, modulus, or a word beyond its modulus.
    """
    head = _descriptors(expected)
    if len(body) != body_bytes(expected) or bytes(body[: len(head)]) != head:
        raise WireError("the peer's tensors have other shapes or moduli than this round's")
    at = len(head)
    tensors = []
    for shape, bits in expected:
        width, count = word_bytes(bits), math.prod(shape)
        raw = np.frombuffer(body, dtype=np.uint8, count=count * width, offset=at)
        at += count * width
        words = np.zeros((count, 8), dtype=np.uint8)
        words[:, :width] = raw.reshape(count, width)
        tensor = torch.from_numpy(words.view("<i8").astype(np.int64, copy=False).reshape(shape))
        if bits < 64 and count and int(tensor.max()) >> bits:
            raise WireError("a word of the peer's is beyond its modulus")
        tensors.append(tensor)
    return tensors


def pack_json(value: dict) -> bytes:
    """Encode a control message."""
    return json.dumps(value, sort_keys=True, separators=(",", ":")).encode()


def unpack_json(body: bytes | bytearray) -> dict:
    """Decode a control message: a JSON object and nothing else.

    Raises:
        WireError: Not UTF-8 JSON, or not an object.
    """
    try:
        value = json.loads(bytes(body).decode())
    except (UnicodeDecodeError, ValueError, RecursionError) as error:
        raise WireError("the peer sent a control message that is not JSON") from error
    if not isinstance(value, dict):
        raise WireError("the peer sent a control message that is not a JSON object")
    return value
