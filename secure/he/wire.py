"""The envelope of everything that is sent: who made it, under what, whole or not at all.

    magic "FVHE" | version | kind | parameters 16 B | key 16 B | length 8 B | payload | SHA-256

The digest finds damage, not an enemy: whoever can alter a message can recompute it. Against an
enemy on the way there is the channel (TLS in `secure.he.serve`); against an enemy at the other
end, every field is checked before native code sees anything, so that hostile bytes raise
`WireError` and never crash the process.
"""

import hashlib
import struct
from dataclasses import dataclass
from enum import IntEnum

from secure.he.errors import KeyMismatchError, ParametersMismatchError, WireError

MAGIC = b"FVHE"
VERSION = 1
FINGERPRINT_BYTES = 16
_HEAD = struct.Struct("<4sBB16s16sQ")
_DIGEST_BYTES = 32


class Kind(IntEnum):
    """What an envelope carries."""

    CIPHERTEXT = 1
    EVALUATION_KEYS = 2
    SECRET_KEY = 3


@dataclass(frozen=True)
class Envelope:
    """A checked envelope.

    Attributes:
        kind: What the payload is.
        parameters: 16 bytes, `HEParams.identity`.
        fingerprint: 16 bytes that name the secret key, drawn when it was made.
        payload: The content.
    """

    kind: Kind
    parameters: bytes
    fingerprint: bytes
    payload: bytes | memoryview

    def to_bytes(self) -> bytes:
        """Serialize with the digest."""
        head = _HEAD.pack(
            MAGIC, VERSION, self.kind, self.parameters, self.fingerprint, len(self.payload)
        )
        digest = hashlib.sha256(head)
        digest.update(self.payload)
        return b"".join((head, self.payload, digest.digest()))

    @classmethod
    def from_bytes(cls, data: bytes | bytearray | memoryview, kind: Kind) -> "Envelope":
        """Read an envelope that must be of one kind.

        Raises:
            WireError: Not this format or version, of another kind, truncated or damaged.
        """
        view = memoryview(data)
        if len(view) < _HEAD.size + _DIGEST_BYTES:
            raise WireError(f"an envelope has at least {_HEAD.size + _DIGEST_BYTES} bytes")
        magic, version, found, parameters, fingerprint, length = _HEAD.unpack_from(view)
        if magic != MAGIC:
            raise WireError("this is not a message of secure.he")
        if version != VERSION:
            raise WireError(f"format version {version} is not supported, only {VERSION}")
        if found != kind:
            raise WireError(f"a message of kind {kind.name} was due, got kind {found}")
        if length != len(view) - _HEAD.size - _DIGEST_BYTES:
            raise WireError(f"{length} payload bytes announced in a message of {len(view)} bytes")
        if hashlib.sha256(view[:-_DIGEST_BYTES]).digest() != bytes(view[-_DIGEST_BYTES:]):
            raise WireError("the message was damaged: its digest does not match")
        return cls(kind, parameters, fingerprint, view[_HEAD.size : -_DIGEST_BYTES])


def require_same_parameters(found: bytes, expected: bytes, what: str) -> None:
    """Refuse an object made under other parameters."""
    if found != expected:
        raise ParametersMismatchError(f"{what} was made under other encryption parameters")


def require_same_key(found: bytes, expected: bytes, what: str) -> None:
    """Refuse an object made under another key: SEAL itself would compute with it silently."""
    if found != expected:
        raise KeyMismatchError(f"{what} belongs to key {found.hex()[:8]}, not {expected.hex()[:8]}")
