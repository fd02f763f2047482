"""The messages of the protocol, typed, and their flat form for any transport.

trip 1   Setup          →  Advert         ephemeral keys, signed
trip 2   Cohort         →  Dealt          encrypted shares for each neighbour
trip 3   Inbox          →  Masked         the masked vector
trip 4   Survivors      →  Commit         (active mode) a signature on the survivor set
trip 5   UnmaskRequest  →  Reveal         one kind of share for each neighbour

`to_fields` gives only numbers, text, bytes and lists of them; `from_fields` takes nothing else.
"""

from dataclasses import dataclass, fields, replace
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from secure._hashing import digest
from secure.aggregation._keys import KEY_BYTES, SIGNATURE_BYTES, Identity
from secure.aggregation._policy import Policy
from secure.errors import IntegrityError

if TYPE_CHECKING:
    from _typeshed import DataclassInstance

VERSION = 2
NONCE_BYTES = 32
COMMITMENT_BYTES = 32
KINDS = ("train", "evaluate")


@dataclass(frozen=True)
class Setup:
    """Opens a session: which run and round, and on which terms."""

    run: str
    round: int
    kind: str
    nonce: bytes
    terms: Policy

    @property
    def session(self) -> bytes:
        """Hash that binds every later message to this run, round, session and terms."""
        terms = [[name, value] for name, value in sorted(self.terms.to_fields().items())]
        return digest("session", VERSION, self.run, self.round, self.kind, self.nonce, terms)

    def to_fields(self) -> dict[str, Any]:
        """Flatten, with the terms under their own names."""
        return {
            "version": VERSION,
            "run": self.run,
            "round": self.round,
            "kind": self.kind,
            "nonce": self.nonce,
        } | {f"terms.{name}": value for name, value in self.terms.to_fields().items()}

    @classmethod
    def from_fields(cls, flat: dict[str, Any]) -> "Setup":
        """Rebuild; a message of another version or shape is refused."""
        terms = {
            name.removeprefix("terms."): value
            for name, value in flat.items()
            if name.startswith("terms.")
        }
        head = {name: value for name, value in flat.items() if not name.startswith("terms.")}
        if head.pop("version", None) != VERSION:
            raise IntegrityError(f"the server does not speak version {VERSION} of the protocol")
        _check_names(cls, head, {"run", "round", "kind", "nonce"})
        for name, kind in (("run", str), ("round", int), ("kind", str)):
            _check(cls, name, head[name], kind)
        _check(cls, "nonce", head["nonce"], bytes)
        if head["kind"] not in KINDS or len(head["nonce"]) != NONCE_BYTES:
            raise IntegrityError("Setup has an unknown kind or a nonce of another length")
        return cls(**head, terms=Policy.from_fields(terms))


@dataclass(frozen=True)
class Bundle:
    """One member's keys of the session, signed by its identity.

    Attributes:
        member: Id in the roster.
        channel_key: X25519 key that shares are encrypted to.
        mask_key: X25519 key that pairwise masks come from; its secret is what is shared.
        commitment: Hash of the seed of the member's own mask.
        layout: Hash of what the member's vector holds; all must agree.
        question: Hash of what the member was asked: model and configuration; all must agree.
        signature: Ed25519 over all of this and the session.
    """

    member: int
    channel_key: bytes
    mask_key: bytes
    commitment: bytes
    layout: bytes
    question: bytes
    signature: bytes

    SIZE = 4 + 5 * KEY_BYTES + SIGNATURE_BYTES

    def signed_text(self, session: bytes) -> bytes:
        """Return what the signature covers."""
        return digest(
            "bundle",
            session,
            self.member,
            self.channel_key,
            self.mask_key,
            self.commitment,
            self.layout,
            self.question,
        )

    @classmethod
    def signed(
        cls,
        identity: Identity,
        session: bytes,
        member: int,
        channel_key: bytes,
        mask_key: bytes,
        commitment: bytes,
        layout: bytes,
        question: bytes,
    ) -> "Bundle":
        """Make a bundle and sign it."""
        bare = cls(member, channel_key, mask_key, commitment, layout, question, b"")
        return replace(bare, signature=identity.sign(bare.signed_text(session)))

    def to_bytes(self) -> bytes:
        """Return the bundle as 228 bytes."""
        head = self.member.to_bytes(4, "little") + self.channel_key + self.mask_key
        return head + self.commitment + self.layout + self.question + self.signature

    @classmethod
    def from_bytes(cls, data: bytes) -> "Bundle":
        """Rebuild from 228 bytes.

        Raises:
            IntegrityError: There are more or fewer bytes, or the member is out of range.
        """
        if len(data) != cls.SIZE:
            raise IntegrityError(f"a key bundle has {cls.SIZE} bytes, got {len(data)}")
        end = cls.SIZE - SIGNATURE_BYTES
        channel, mask, commitment, layout, question = (
            data[start : start + KEY_BYTES] for start in range(4, end, KEY_BYTES)
        )
        member = int.from_bytes(data[:4], "little")
        if not 0 < member < 1 << 31:
            raise IntegrityError(f"a member id is in [1, 2^31), got {member}")
        return cls(member, channel, mask, commitment, layout, question, data[end:])


@dataclass(frozen=True)
class Advert:
    """Trip 1, up: a bundle, and in clear what the vector holds (names and shapes, no values)."""

    session: bytes
    bundle: bytes
    layout: str


@dataclass(frozen=True)
class Cohort:
    """Trip 2, down: the bundles of all members that answered, by ascending id."""

    session: bytes
    bundles: tuple[bytes, ...]


@dataclass(frozen=True)
class Dealt:
    """Trip 2, up: for each neighbour, its two shares encrypted, and a commitment to each."""

    session: bytes
    sender: int
    recipients: tuple[int, ...]
    ciphertexts: tuple[bytes, ...]
    commitments: tuple[bytes, ...]


@dataclass(frozen=True)
class Inbox:
    """Trip 3, down: who dealt shares, and what the neighbours among them sent to this member."""

    session: bytes
    dealers: tuple[int, ...]
    senders: tuple[int, ...]
    ciphertexts: tuple[bytes, ...]
    commitments: tuple[bytes, ...]


@dataclass(frozen=True)
class Masked:
    """Trip 3, up: the masked words, and in active mode a signature on who they are masked with."""

    session: bytes
    sender: int
    receipt: bytes
    words: NDArray[np.uint64]


@dataclass(frozen=True)
class Survivors:
    """Trip 4, down: whose vectors arrived, and the receipts of this member's neighbours."""

    session: bytes
    members: tuple[int, ...]
    signers: tuple[int, ...]
    receipts: tuple[bytes, ...]


@dataclass(frozen=True)
class Commit:
    """Trip 4, up: a signature on the dealers and the survivors."""

    session: bytes
    sender: int
    signature: bytes


@dataclass(frozen=True)
class UnmaskRequest:
    """Trip 5 (4 in semi-honest mode), down: the survivors, with a quorum of signatures."""

    session: bytes
    members: tuple[int, ...]
    signers: tuple[int, ...]
    signatures: tuple[bytes, ...]


@dataclass(frozen=True)
class Reveal:
    """The last trip, up: for each owner one share, of its own mask or of its pairwise masks."""

    session: bytes
    sender: int
    owners: tuple[int, ...]
    shares: tuple[bytes, ...]


_M = TypeVar("_M", bound="DataclassInstance")
_KINDS: dict[str, tuple[type, type | None]] = {
    "bytes": (bytes, None),
    "int": (int, None),
    "str": (str, None),
    "tuple[int, ...]": (list, int),
    "tuple[bytes, ...]": (list, bytes),
}


def _kind(annotation: object) -> tuple[type, type | None] | None:
    text = annotation.__name__ if isinstance(annotation, type) else str(annotation)
    return _KINDS.get(str(annotation) if "[" in str(annotation) else text)


def to_fields(message: Any) -> dict[str, Any]:
    """Flatten a message, without its array of words, and without what is empty.

    Flower can't count the bytes of a record that holds an empty value.
    """
    flat = {}
    for field in fields(message):
        value = getattr(message, field.name)
        if _kind(field.type) is not None and value not in (b"", "", ()):
            flat[field.name] = list(value) if isinstance(value, tuple) else value
    return flat


def from_fields(cls: type[_M], flat: dict[str, Any], words: NDArray[np.uint64] | None = None) -> _M:
    """Rebuild a message from what came over the wire.

    Args:
        cls: The message expected.
        flat: Numbers, text, bytes and lists of them, by name.
        words: The array, for a `Masked`.

    Raises:
        IntegrityError: A name is missing or unknown, or a value has another type.
    """
    kinds = {field.name: _kind(field.type) for field in fields(cls)}
    empty = {name: kind[0]() for name, kind in kinds.items() if kind and kind[0] is not int}
    flat = empty | flat
    _check_names(cls, flat, {name for name, kind in kinds.items() if kind is not None})
    values: dict[str, Any] = {}
    for name, kind in kinds.items():
        if kind is None:
            if words is None or words.dtype != np.uint64 or words.ndim != 1:
                raise IntegrityError(f"{cls.__name__} lacks its one-dimensional uint64 array")
            values[name] = words
            continue
        outer, inner = kind
        _check(cls, name, flat[name], outer)
        values[name] = flat[name]
        if inner is not None:
            for each in flat[name]:
                _check(cls, name, each, inner)
            values[name] = tuple(flat[name])
    return cls(**values)


def _check_names(cls: type, flat: dict[str, Any], expected: set[str]) -> None:
    if set(flat) != expected:
        raise IntegrityError(
            f"{cls.__name__} has the fields {sorted(str(each)[:20] for each in flat)[:20]}, "
            f"expected {sorted(expected)}"
        )


def _check(cls: type, name: str, value: object, kind: type) -> None:
    # `type() is`, since True is an int and a subclass of bytes may lie about its length.
    if type(value) is not kind:
        raise IntegrityError(
            f"{cls.__name__}.{name} has type {type(value).__name__}, expected {kind.__name__}"
        )
