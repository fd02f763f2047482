"""Correlated randomness on disk: set-ups and parcels, each parcel for one inference and one use.

A parcel is a fixed header (what it is for) and, for the server, the derived shares. Opening one
first makes a tombstone beside it, exclusively, and then removes the file: a second opening, of a
copy put back too, is refused.
"""

import contextlib
import hashlib
import os
import struct
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO, Protocol

from torch import Tensor

from secure.errors import ParameterError
from secure.random import KEY_BYTES, SecureRandom
from secure.smpc import _material, _wire
from secure.smpc._material import CLIENT, SERVER, Material
from secure.smpc._query import Query, requirements
from secure.smpc.errors import MaterialError, PlanMismatchError
from secure.smpc.program import Program

ID_BYTES = 16
_HEADER = struct.Struct("<4sBB2x32s16s16s32s32sQ")
_SETUP = struct.Struct("<4s32s16s32s")
_PARCEL_MAGIC, _SETUP_MAGIC = b"FVMP", b"FVMS"
_VERSION = 1


def query_digest(query: Query) -> bytes:
    """Return SHA-256 of a query."""
    return hashlib.sha256(_wire.pack_json(query.to_wire())).digest()


@dataclass(frozen=True, repr=False)
class Setup:
    """The lasting weight masks of a program: known to the server and the dealer, not the client.

    Attributes:
        program: Digest of the program.
        identifier: 16 random bytes that name this set-up.
        key: 32 secret bytes from which every weight's mask is expanded.
    """

    program: str
    identifier: bytes
    key: bytes

    @classmethod
    def draw(cls, program: Program, random: SecureRandom) -> "Setup":
        """Draw a set-up for a program."""
        return cls(program.digest, random.token(ID_BYTES), random.token(KEY_BYTES))

    def masks(self, program: Program) -> dict[str, Tensor]:
        """Expand the weight masks."""
        program.require(self.program)
        return _material.weight_masks(
            self.key, {name: info.shape for name, info in program.weights.items()}
        )

    def to_bytes(self) -> bytes:
        """Encode: secret bytes."""
        return _SETUP.pack(_SETUP_MAGIC, bytes.fromhex(self.program), self.identifier, self.key)

    @classmethod
    def from_bytes(cls, data: bytes | bytearray) -> "Setup":
        """Decode.

        Raises:
            MaterialError: Not a set-up.
        """
        if len(data) != _SETUP.size:
            raise MaterialError("this is not a set-up of private inference")
        magic, program, identifier, key = _SETUP.unpack(data)
        if magic != _SETUP_MAGIC:
            raise MaterialError("this is not a set-up of private inference")
        return cls(program.hex(), identifier, key)


SETUP_BYTES = _SETUP.size


class Source(Protocol):
    """Where a party gets its material: a folder of parcels, or the dealer's process."""

    def setup(self, program: Program) -> Setup:
        """Return the program's set-up (server only)."""
        ...

    def choose(self, program: Program, query: Query) -> bytes:
        """Return the identifier of an unused parcel (client only)."""
        ...

    def claim(self, program: Program, query: Query, setup: bytes, parcel: bytes) -> Material:
        """Take this party's half of a parcel; a second claim is refused."""
        ...

    def discard(self, parcel: bytes) -> None:
        """Never offer a parcel again: the session that it was chosen for has failed."""
        ...


def write_secret(path: Path, chunks: Sequence[bytes] | object) -> None:
    """Write a file that only its owner reads, whole or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    partial = path.with_name(path.name + ".partial")
    with contextlib.suppress(FileNotFoundError):
        partial.unlink()
    descriptor = os.open(partial, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    with os.fdopen(descriptor, "wb") as file:
        for chunk in chunks:  # type: ignore[union-attr]
            file.write(chunk)
        file.flush()
        os.fsync(file.fileno())
    partial.replace(path)


def write_parcel(
    folder: Path, program: Program, query: Query, setup: Setup, random: SecureRandom
) -> bytes:
    """Deal one inference into `folder/server` and `folder/client`, and return its identifier.

    Args:
        folder: The two sub-folders are for the two parties, each over a private way.
        program: The program.
        query: What the inference will ask.
        setup: The program's set-up.
        random: The dealer's source of secrets.
    """
    items = requirements(program, query).items
    parcel = random.token(ID_BYTES)
    masters = (random.token(KEY_BYTES), random.token(KEY_BYTES))
    length = sum(item.dealt_bytes for item in items)
    for role, name, size in ((SERVER, "server", length), (CLIENT, "client", 0)):
        head = _HEADER.pack(
            _PARCEL_MAGIC,
            _VERSION,
            role,
            bytes.fromhex(program.digest),
            setup.identifier,
            parcel,
            query_digest(query),
            masters[role],
            size,
        )
        body = _material.deal(items, masters, setup.masks(program)) if role == SERVER else ()
        write_secret(folder / name / f"{parcel.hex()}.parcel", (c for c in (head, *body)))
    return parcel


class Folder:
    """A party's folder of parcels.

    Args:
        path: Holds `<identifier>.parcel` files, and `<program>.setup` on the server.
        role: 0 for the server, 1 for the client.

    Guarantees:
        A parcel is opened once, across processes and restarts: its tombstone is made first, with
        exclusive creation, and stays.
    """

    def __init__(self, path: Path, role: int) -> None:
        if not path.is_dir():
            raise ParameterError("the folder of parcels doesn't exist")
        self._path, self._role = path, role

    def setup(self, program: Program) -> Setup:
        """Read the program's set-up."""
        path = self._path / f"{program.digest[:16]}.setup"
        if not path.is_file():
            raise MaterialError("the folder has no set-up for this program; ask the dealer")
        setup = Setup.from_bytes(path.read_bytes())
        program.require(setup.program)
        return setup

    def choose(self, program: Program, query: Query) -> bytes:
        """Return an unused parcel for a program and query.

        Raises:
            MaterialError: None is left.
        """
        for path in sorted(self._path.glob("*.parcel")):
            try:
                with path.open("rb") as file:
                    head = _read_header(file)
            except (OSError, MaterialError):
                continue
            fits = (head.program, head.query) == (program.digest, query_digest(query))
            if fits and head.role == self._role and not _tombstone(path).exists():
                return head.parcel
        raise MaterialError("no unused parcel for this program and query is left; deal more")

    def claim(self, program: Program, query: Query, setup: bytes, parcel: bytes) -> Material:
        """Open a parcel, once and for all.

        Raises:
            MaterialError: It was used before, or isn't there.
            PlanMismatchError: It was dealt for another program, query or set-up.
        """
        path = self._path / f"{parcel.hex()}.parcel"
        try:
            file = path.open("rb")
        except OSError:
            used = _tombstone(path).exists()
            why = "was used before" if used else "isn't in the folder"
            raise MaterialError(f"the parcel {parcel.hex()[:8]} {why}") from None
        try:
            head = _read_header(file)
            if (head.role, head.parcel) != (self._role, parcel):
                raise MaterialError(f"the parcel {parcel.hex()[:8]} is another party's")
            if (head.program, head.query, head.setup) != (
                program.digest,
                query_digest(query),
                setup,
            ):
                raise PlanMismatchError(
                    f"the parcel {parcel.hex()[:8]} was dealt for another program, query or set-up"
                )
            items = requirements(program, query).items
            if head.length != (sum(i.dealt_bytes for i in items) if self._role == SERVER else 0):
                raise MaterialError(f"the parcel {parcel.hex()[:8]} has another length than due")
            _bury(path)
        except BaseException:
            file.close()
            raise
        return Material(self._role, head.master, items, file.read, file.close)

    def discard(self, parcel: bytes) -> None:
        """Bury a parcel whose session has failed: the other half may be spent."""
        with contextlib.suppress(MaterialError):
            _bury(self._path / f"{parcel.hex()}.parcel")


@dataclass(frozen=True, repr=False)
class _Header:
    role: int
    program: str
    setup: bytes
    parcel: bytes
    query: bytes
    master: bytes
    length: int


def _read_header(file: BinaryIO) -> _Header:
    data = file.read(_HEADER.size)
    if len(data) != _HEADER.size:
        raise MaterialError("this is not a parcel of private inference")
    magic, version, role, program, setup, parcel, query, master, length = _HEADER.unpack(data)
    if magic != _PARCEL_MAGIC or version != _VERSION:
        raise MaterialError("this is not a parcel of private inference")
    return _Header(role, program.hex(), setup, parcel, query, master, length)


def _tombstone(path: Path) -> Path:
    return path.with_suffix(".used")


def _bury(path: Path) -> None:
    """Mark a parcel as used, exclusively and durably, then remove it."""
    try:
        descriptor = os.open(_tombstone(path), os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    except FileExistsError:
        raise MaterialError(f"the parcel {path.stem[:8]} was used before") from None
    os.fsync(descriptor)
    os.close(descriptor)
    with contextlib.suppress(FileNotFoundError):
        path.unlink()
