"""Correlated randomness on disk: set-ups and parcels, each parcel for one inference and one use.

A parcel is a fixed header (what it is for), for the server the derived shares, and SHA-256 of all
that, so that damage is noticed before anything is computed with it. Opening one first makes a
tombstone beside it, exclusively and durably, and then removes the file: a second opening, of a copy
put back too, is refused. Whoever puts back an old state of the whole folder, tombstones and all,
takes that memory away: with both parties' folders restored, masks are used twice.
"""

import contextlib
import hashlib
import os
import struct
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import BinaryIO, Protocol

from torch import Tensor

from secure.errors import ParameterError
from secure.random import KEY_BYTES, SecureRandom
from secure.smpc import _material, _wire
from secure.smpc._material import CLIENT, SERVER, Material
from secure.smpc._open_parcels import ID_BYTES
from secure.smpc._query import Query, requirements
from secure.smpc.errors import MaterialError, PlanMismatchError, SetupChangedError
from secure.smpc.program import Program

_HEADER = struct.Struct("<4sBB2x32s16s16s32s32sQ")
_SETUP = struct.Struct("<4s32s16s32s")
_PARCEL_MAGIC, _SETUP_MAGIC = b"FVMP", b"FVMT"
_VERSION = 2
_SUM_BYTES = hashlib.sha256().digest_size


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
        """Encode: secret bytes, and their SHA-256."""
        data = _SETUP.pack(_SETUP_MAGIC, bytes.fromhex(self.program), self.identifier, self.key)
        return data + hashlib.sha256(data).digest()

    @classmethod
    def from_bytes(cls, data: bytes | bytearray) -> "Setup":
        """Decode.

        Raises:
            MaterialError: Not a set-up, or damaged.
        """
        if len(data) != SETUP_BYTES or bytes(data[:4]) != _SETUP_MAGIC:
            raise MaterialError("this is not a set-up of private inference")
        if hashlib.sha256(data[: _SETUP.size]).digest() != bytes(data[_SETUP.size :]):
            raise MaterialError("this set-up of private inference is damaged; deal it again")
        _, program, identifier, key = _SETUP.unpack(data[: _SETUP.size])
        return cls(program.hex(), identifier, key)


SETUP_BYTES = _SETUP.size + _SUM_BYTES


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


def write_secret(path: Path, chunks: Iterable[bytes]) -> None:
    """Write a file that only its owner reads, whole and durably or not at all.

    Raises:
        ParameterError: It can't be written.
    """
    partial = path.with_name(path.name + ".partial")
    try:
        path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        partial.unlink(missing_ok=True)
        descriptor = os.open(partial, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        with os.fdopen(descriptor, "wb") as file:
            for chunk in chunks:
                file.write(chunk)
            file.flush()
            os.fsync(file.fileno())
        partial.replace(path)
        _sync_folder(path.parent)
    except OSError as error:
        with contextlib.suppress(OSError):
            partial.unlink()
        raise ParameterError(f"can't write {path}: {error.strerror}") from error


def _sync_folder(path: Path) -> None:
    """Make the names in a folder durable, where the platform can (Windows can't)."""
    if not hasattr(os, "O_DIRECTORY"):
        return
    descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _summed(chunks: Iterable[bytes]) -> Iterator[bytes]:
    """Yield chunks, and then SHA-256 of them all."""
    digest = hashlib.sha256()
    for chunk in chunks:
        digest.update(chunk)
        yield chunk
    yield digest.digest()


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
        write_secret(folder / name / f"{parcel.hex()}.parcel", _summed(chain((head,), body)))
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
        try:
            with path.open("rb") as file:
                setup = Setup.from_bytes(file.read(SETUP_BYTES + 1))
        except OSError as error:
            raise MaterialError(f"can't read the set-up {path}: {error.strerror}") from error
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
            MaterialError: It was used before, isn't there, or is damaged.
            PlanMismatchError: It was dealt for another program or query.
            SetupChangedError: It was dealt for another set-up.
        """
        path = self._path / f"{parcel.hex()}.parcel"
        try:
            file = path.open("rb")
        except OSError:
            used = _tombstone(path).exists()
            why = "was used before" if used else "isn't in the folder"
            raise MaterialError(f"the parcel {parcel.hex()[:8]} {why}") from None
        try:
            summed = _Summed(file)
            head = _read_header(summed)
            if (head.role, head.parcel) != (self._role, parcel):
                raise MaterialError(f"the parcel {parcel.hex()[:8]} is another party's")
            if (head.program, head.query) != (program.digest, query_digest(query)):
                raise PlanMismatchError(
                    f"the parcel {parcel.hex()[:8]} was dealt for another program or query"
                )
            if head.setup != setup:
                raise SetupChangedError(
                    f"the parcel {parcel.hex()[:8]} was dealt for another set-up"
                )
            items = requirements(program, query).items
            if head.length != (sum(i.dealt_bytes for i in items) if self._role == SERVER else 0):
                raise MaterialError(f"the parcel {parcel.hex()[:8]} has another length than due")
            summed.expect(head.length)
            _bury(path)
        except BaseException:
            file.close()
            raise
        return Material(self._role, head.master, items, summed.read, file.close)

    def discard(self, parcel: bytes) -> None:
        """Bury a parcel whose session has failed: the other half may be spent."""
        with contextlib.suppress(MaterialError):
            _bury(self._path / f"{parcel.hex()}.parcel")


@dataclass(frozen=True, repr=False)
class _Header:
    """What a parcel is for."""

    role: int
    program: str
    setup: bytes
    parcel: bytes
    query: bytes
    master: bytes
    length: int


class _Summed:
    """Reads a parcel's file, and compares its sum when the last byte that is due has been read."""

    def __init__(self, file: BinaryIO) -> None:
        self._file, self._digest = file, hashlib.sha256()
        self._left: int | None = None

    def expect(self, length: int) -> None:
        """Say how much follows before the sum; for nothing it's compared at once."""
        self._left = length
        self._finish()

    def read(self, count: int) -> bytes:
        """Read so many bytes: fewer at the file's end.

        Raises:
            MaterialError: The disk fails, or the parcel is damaged.
        """
        try:
            data = self._file.read(count)
        except OSError as error:
            raise MaterialError(f"can't read a parcel: {error.strerror}") from error
        self._digest.update(data)
        if self._left is not None:
            self._left -= len(data)
            self._finish()
        return data

    def _finish(self) -> None:
        if self._left == 0 and self._file.read(_SUM_BYTES + 1) != self._digest.digest():
            raise MaterialError("the parcel is damaged; deal more")


def _read_header(file: "BinaryIO | _Summed") -> _Header:
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
    """Mark a parcel as used, exclusively and durably, then remove it.

    The tombstone's name is in its folder, so the folder is brought to the disk too.
    """
    try:
        descriptor = os.open(_tombstone(path), os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
        _sync_folder(path.parent)
        path.unlink(missing_ok=True)
    except FileExistsError:
        raise MaterialError(f"the parcel {path.stem[:8]} was used before") from None
    except OSError as error:
        raise MaterialError(
            f"can't mark the parcel {path.stem[:8]} as used: {error.strerror}"
        ) from error
