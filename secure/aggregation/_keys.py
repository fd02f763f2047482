"""Keys: long-lived Ed25519 identities, the roster of them, and one round's X25519 keys."""

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

from cryptography.exceptions import InvalidSignature, InvalidTag
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric.ed25519 import (
    Ed25519PrivateKey,
    Ed25519PublicKey,
)
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey, X25519PublicKey
from cryptography.hazmat.primitives.ciphers.aead import ChaCha20Poly1305
from cryptography.hazmat.primitives.kdf.hkdf import HKDF

from secure._hashing import Part, digest
from secure.errors import IntegrityError, ParameterError
from secure.random import SecureRandom

KEY_BYTES = 32
SIGNATURE_BYTES = 64
NONCE_BYTES = 12
TAG_BYTES = 16
# A private key that protects nothing: exchanges with it only test the other side's key.
_ANYBODY = X25519PrivateKey.from_private_bytes(bytes(range(KEY_BYTES)))

Verify = Callable[[bytes, bytes, bytes], bool]
"""`verify(public_key, signature, message)`."""


def verify(public_key: bytes, signature: bytes, message: bytes) -> bool:
    """Check an Ed25519 signature; False for a bad one, whatever is bad about it."""
    try:
        Ed25519PublicKey.from_public_bytes(public_key).verify(signature, message)
    except (InvalidSignature, ValueError):
        return False
    return True


class Identity:
    """A client's long-lived Ed25519 key: who it is to the others, round after round.

    Example:
        >>> identity = Identity.generate(SecureRandom())
        >>> verify(identity.public_key, identity.sign(b"text"), b"text")
        True
    """

    def __init__(self, private_key: bytes) -> None:
        """Take the 32-byte private key."""
        if len(private_key) != KEY_BYTES:
            raise ParameterError(f"an identity key has {KEY_BYTES} bytes, got {len(private_key)}")
        self._key = Ed25519PrivateKey.from_private_bytes(private_key)
        self.public_key = self._key.public_key().public_bytes_raw()

    @classmethod
    def generate(cls, rng: SecureRandom) -> "Identity":
        """Draw a new identity."""
        return cls(rng.token(KEY_BYTES))

    def sign(self, message: bytes) -> bytes:
        """Sign a message: 64 bytes."""
        return self._key.sign(message)

    def private_bytes(self) -> bytes:
        """Return the private key, to be stored where only this client reads it."""
        return self._key.private_bytes_raw()

    def __repr__(self) -> str:
        return f"Identity(public_key={self.public_key.hex()[:16]}…)"


@dataclass(frozen=True)
class Roster:
    """The identities a client trusts, handed to it out of band and never by the server.

    Attributes:
        keys: Ed25519 public key (32 bytes) by member id, a positive number below 2^31. The id
            is also the member's point in every Shamir polynomial.

    Raises:
        ParameterError: An id is out of range, a key is not 32 bytes, or a key occurs twice.
    """

    keys: Mapping[int, bytes]

    def __post_init__(self) -> None:
        """Check ids and keys."""
        for member, key in self.keys.items():
            if not 0 < member < 1 << 31:
                raise ParameterError(f"a member id is in [1, 2^31), got {member}")
            if len(key) != KEY_BYTES:
                raise ParameterError(f"member {member} has a key of {len(key)} bytes, not 32")
        if len(set(self.keys.values())) != len(self.keys):
            raise ParameterError("two members of the roster have the same identity key")

    def member_of(self, public_key: bytes) -> int:
        """Return the id under which a key is listed.

        Raises:
            ParameterError: The roster doesn't list the key.
        """
        for member, key in self.keys.items():
            if key == public_key:
                return member
        raise ParameterError("this client's own identity is not in its roster; add its key")

    def save(self, path: Path) -> None:
        """Write the roster as JSON."""
        members = {str(member): self.keys[member].hex() for member in sorted(self.keys)}
        path.write_text(json.dumps({"members": members}, indent=1) + "\n")

    @classmethod
    def load(cls, path: Path) -> "Roster":
        """Read a roster from JSON.

        Raises:
            ParameterError: The file is missing or is not a roster.
        """
        try:
            members = json.loads(path.read_text())["members"]
            keys = {int(member): bytes.fromhex(key) for member, key in members.items()}
        except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
            raise ParameterError(
                f"{path} is not a roster ({type(error).__name__}); "
                "write one with provision() or Roster.save()"
            ) from None
        return cls(keys)


def exchange(private_key: X25519PrivateKey, public_key: bytes) -> bytes:
    """Return the shared secret of X25519 (RFC 7748), 32 bytes that are no key before `derive`.

    Raises:
        IntegrityError: The public key has low order (RFC 7748, section 6.1) or a wrong length.
    """
    try:
        return private_key.exchange(X25519PublicKey.from_public_bytes(public_key))
    except ValueError:
        raise IntegrityError("a public key is malformed or of low order") from None


def agree(private_key: X25519PrivateKey, public_key: bytes, *context: Part) -> bytes:
    """Agree on a 32-byte key by X25519 (RFC 7748) and HKDF-SHA256 (RFC 5869).

    Args:
        private_key: This side's key of the round.
        public_key: The other side's, 32 bytes.
        context: What the key is for: session, roster, role, both members. Two uses with
            different contexts get independent keys.

    Raises:
        IntegrityError: The public key has low order (RFC 7748, section 6.1) or a wrong length.
    """
    return derive(exchange(private_key, public_key), *context)


def check_public_key(public_key: bytes) -> None:
    """Refuse a key whose shared secret with anybody is zero, before it is used.

    Raises:
        IntegrityError: The key has low order or a wrong length.
    """
    agree(_ANYBODY, public_key, "check")


def derive(secret: bytes, *context: Part) -> bytes:
    """Derive a 32-byte key for one purpose from a secret, by HKDF-SHA256."""
    return HKDF(hashes.SHA256(), KEY_BYTES, None, digest("key", *context)).derive(secret)


def seal(key: bytes, plaintext: bytes, associated: bytes, rng: SecureRandom) -> bytes:
    """Encrypt by ChaCha20-Poly1305 (RFC 8439): nonce, ciphertext, tag.

    A key is derived for one direction of one pair in one session and is used once; the nonce is
    random all the same, so that a client set back to an older state repeats none.
    """
    nonce = rng.token(NONCE_BYTES)
    return nonce + ChaCha20Poly1305(key).encrypt(nonce, plaintext, associated)


def unseal(key: bytes, sealed: bytes, associated: bytes, sender: int) -> bytes:
    """Decrypt what `seal` made.

    Raises:
        IntegrityError: The ciphertext was altered, or made for another key, session or member.
    """
    try:
        nonce, ciphertext = sealed[:NONCE_BYTES], sealed[NONCE_BYTES:]
        return ChaCha20Poly1305(key).decrypt(nonce, ciphertext, associated)
    except (InvalidTag, ValueError):
        raise IntegrityError(
            f"the shares from member {sender} don't decrypt: altered, or meant for another "
            "session or member"
        ) from None
