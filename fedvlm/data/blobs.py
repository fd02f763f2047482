"""Encoded images that stay where they are, read when asked for and checked against their hash."""

import hashlib
import logging
import os
import sqlite3
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import numpy as np
import PIL
from numpy.typing import NDArray

from fedvlm.data.images import content_of, decode_image
from fedvlm.errors import DataError
from fedvlm.files import cache_dir

log = logging.getLogger("fedvlm")
_FEW = 512  # images that are decoded in a second or two: not worth a file
_RULES = 1  # of `decode_image`; raise it when they change: contents are then computed anew


class Source(Protocol):
    """Encoded images by number, on disk."""

    def __len__(self) -> int:
        """Return how many there are."""
        ...

    def read(self, number: int) -> bytes:
        """Return one as it was encoded.

        Raises:
            OSError: It can't be read.
            DataError: It isn't there; the message says why.
        """
        ...


@dataclass(frozen=True)
class FileSource:
    """Images in files of their own."""

    paths: tuple[Path, ...]

    def __len__(self) -> int:
        return len(self.paths)

    def read(self, number: int) -> bytes:
        """Return a file's content."""
        return self.paths[number].read_bytes()


class LazyBlobs(Sequence[bytes]):
    """The encoded images of a data set, N of them, read when they are asked for.

    Args:
        source: Where they are.
        numbers: Shape (N,): which image of the source a pair has.
        digests: SHA-256 of each image of the source, in its order.

    Guarantees:
        What is returned has the hash that it had when the data were loaded: splits, groups and
        fingerprints are of what is trained on.
    """

    def __init__(
        self, source: Source, numbers: NDArray[np.int64], digests: Sequence[bytes]
    ) -> None:
        self._source, self._numbers, self._digests = source, numbers, digests

    def __len__(self) -> int:
        return len(self._numbers)

    def digest(self, index: int) -> bytes:
        """Return the SHA-256 of an image without reading it."""
        return self._digests[self._numbers[index]]

    def __getitem__(self, index: int) -> bytes:  # pyright: ignore[reportIncompatibleMethodOverride]
        if not -len(self) <= index < len(self):
            raise IndexError(index)
        number = int(self._numbers[index])
        try:
            blob = self._source.read(number)
        except OSError as error:
            reason = error.strerror or type(error).__name__
            raise DataError(f"image {index} can't be read any more: {reason}") from error
        if hashlib.sha256(blob).digest() != self._digests[number]:
            raise DataError(
                f"image {index} has changed since the data were loaded; start again, so that the "
                "parts are made of what is there now"
            )
        return blob


def blob_digests(encoded: Sequence[bytes]) -> list[bytes]:
    """Return the SHA-256 of each encoded image; without reading those that are known."""
    if isinstance(encoded, LazyBlobs):
        return [encoded.digest(index) for index in range(len(encoded))]
    return [hashlib.sha256(blob).digest() for blob in encoded]


class _Known:
    """What images showed when they were decoded before, by the hash of their files.

    One small database in the cache folder: an entry is written whole or not at all. Where it can't
    be used, images are decoded again.
    """

    def __init__(self, wanted: bool) -> None:
        self._path = cache_dir() / "contents.sqlite"
        self._table = f"rules_{_RULES}_pillow_{PIL.__version__}".replace(".", "_")
        self._held: dict[bytes, bytes] = {}
        self._new: dict[bytes, bytes] = {}
        self._wanted = wanted
        if not (wanted and self._path.is_file()):
            return
        try:
            with closing(sqlite3.connect(self._path, timeout=30)) as database:
                rows = database.execute(f"SELECT file, content FROM {self._table}")  # noqa: S608
                self._held = {f: c for f, c in rows if len(f) == 32 and len(c) == 32}
        except sqlite3.Error:
            log.debug("no contents are known from before", exc_info=True)

    def get(self, digest: bytes) -> bytes | None:
        """Return what a file shows, or None where it isn't known."""
        return self._held.get(digest)

    def add(self, digest: bytes, content: bytes) -> None:
        """Note what a file shows."""
        self._new[digest] = content

    def save(self) -> None:
        """Keep what is new."""
        if not (self._wanted and self._new):
            return
        try:
            self._path.parent.mkdir(parents=True, exist_ok=True)
            with closing(sqlite3.connect(self._path, timeout=30)) as database, database:
                database.execute(
                    f"CREATE TABLE IF NOT EXISTS {self._table} "
                    "(file BLOB PRIMARY KEY, content BLOB NOT NULL) WITHOUT ROWID"
                )
                database.executemany(
                    f"INSERT OR REPLACE INTO {self._table} VALUES (?, ?)",  # noqa: S608
                    list(self._new.items()),
                )
        except (sqlite3.Error, OSError):
            log.debug("what the images show isn't kept", exc_info=True)


def examined(
    source: Source, refusal: Callable[[int, str], DataError]
) -> tuple[list[bytes], list[bytes]]:
    """Read and decode every image of a source once; those whose file was decoded before, not again.

    Args:
        source: Encoded images.
        refusal: Makes the error for an image that can't be read, from its number and the reason.

    Returns:
        The SHA-256 of each file, and of what it shows (`content_of`).

    Raises:
        DataError: `refusal`'s, for the first image that can't be read.
    """
    known = _Known(len(source) >= _FEW)

    def look(number: int) -> tuple[bytes, bytes] | str:
        try:
            blob = source.read(number)
            digest = hashlib.sha256(blob).digest()
            content = known.get(digest) or content_of(decode_image(blob))
        except OSError as error:
            return error.strerror or type(error).__name__
        except DataError as error:
            return str(error)
        return digest, content

    digests, contents = [], []
    # Pillow decodes without the interpreter's lock.
    with ThreadPoolExecutor(max_workers=os.cpu_count() or 1) as pool:
        try:
            for number, found in enumerate(pool.map(look, range(len(source)))):
                if isinstance(found, str):
                    raise refusal(number, found)
                digests.append(found[0])
                contents.append(found[1])
                known.add(*found)
        except DataError:
            pool.shutdown(cancel_futures=True)
            raise
    known.save()
    return digests, contents
