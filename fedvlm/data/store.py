"""What was computed of images once, kept on disk: an array an image, found by its content.

A store is for one model and processor; its packs are files that are written whole or not at all.
All stores together stay below a bound: the packs that were used longest ago go first. Only their
owner can read them: an image's features say much of it.
"""

import contextlib
import hashlib
import json
import logging
import os
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import DTypeLike, NDArray

from fedvlm.errors import ConfigError, DataError
from fedvlm.files import cache_dir, one_at_a_time, whole_file

log = logging.getLogger("fedvlm")

LIMIT = "FEDVLM_CACHE_LIMIT"
_LIMIT = "20GB"
_UNITS = {"": 1, "kb": 10**3, "mb": 10**6, "gb": 10**9, "tb": 10**12}
_MAGIC = b"fedvlm pack 1\n"
_HEAD = 512  # bytes of magic and description, padded
_DIGEST = 32
_PACK_BYTES = 256_000_000  # a pack's most: what is lost where the making is cut off
IN_MEMORY = 32_000_000
"""Bytes up to which a data set's arrays are held in memory, and no file is made."""

_seeking = threading.Lock()

Compute = Callable[[Sequence[int]], Iterator[NDArray]]


def cache_limit() -> int:
    """Return the most bytes that all stores may take: `$FEDVLM_CACHE_LIMIT`, or 20 GB.

    Raises:
        ConfigError: The variable is no size.
    """
    text = os.environ.get(LIMIT, _LIMIT).strip().casefold()
    number = text.rstrip("kmgtb ")
    try:
        size = float(number) * _UNITS[text[len(number) :].strip()]
        if not 0 <= size < 2**62:
            raise ValueError
    except (ValueError, KeyError):
        raise ConfigError(f"{LIMIT} is a size such as 20GB; got {text!r}") from None
    return int(size)


def stores_dir() -> Path:
    """Return the folder of all stores."""
    return cache_dir() / "inputs"


@dataclass(frozen=True)
class Pack:
    """One file of a store.

    Attributes:
        path: The file.
        digests: What its arrays are of, M contents of 32 bytes each.
        start: Where the arrays begin.
        row_bytes: Bytes of an array.
    """

    path: Path
    digests: tuple[bytes, ...]
    start: int
    row_bytes: int


def _read_pack(path: Path, shape: tuple[int, ...], dtype: np.dtype) -> Pack | None:
    """Return a pack; None where the file isn't whole or is for other arrays."""
    row_bytes = int(np.prod(shape)) * dtype.itemsize
    try:
        with path.open("rb") as file:
            head = file.read(_HEAD)
            told = json.loads(head.removeprefix(_MAGIC).rstrip(b"\0"))
            count = told["count"]
            start = _HEAD + _DIGEST * count
            whole = head.startswith(_MAGIC) and path.stat().st_size == start + row_bytes * count
            if not whole or told["shape"] != list(shape) or told["dtype"] != dtype.str:
                return None
            keys = file.read(_DIGEST * count)
    except (OSError, ValueError, KeyError, TypeError):
        return None
    digests = tuple(keys[i : i + _DIGEST] for i in range(0, len(keys), _DIGEST))
    return Pack(path, digests, start, row_bytes)


def _read_at(handle: int, into: memoryview, offset: int) -> int:
    """Fill a buffer from a file at an offset, without moving its position; returns the bytes."""
    if hasattr(os, "preadv"):
        return os.preadv(handle, [into], offset)
    with _seeking:  # Windows has no such call
        os.lseek(handle, offset, os.SEEK_SET)
        found = os.read(handle, len(into))
    into[: len(found)] = found
    return len(found)


def stored() -> list[tuple[Path, int, float]]:
    """Return every pack of every store: path, bytes, and when it was used last."""
    found = []
    for path in stores_dir().glob("*/*.pack"):
        with contextlib.suppress(OSError):
            state = path.stat()
            found.append((path, state.st_size, state.st_mtime))
    return found


def _make_room(wanted: int, spared: set[Path]) -> bool:
    """Delete what was used longest ago until `wanted` more bytes fit; False where they can't."""
    packs = sorted(stored(), key=lambda pack: pack[2])
    there, limit = sum(size for _, size, _ in packs), cache_limit()
    gone = [pack for pack in packs if pack[0] not in spared]
    if there - sum(size for _, size, _ in gone) + wanted > limit:
        return False
    for path, size, _ in gone:
        if there + wanted <= limit:
            break
        with contextlib.suppress(OSError):
            path.unlink()
            there -= size
    return there + wanted <= limit


class ArrayStore:
    """Arrays of one shape by content, on disk or, where they are few, in memory.

    Args:
        key: What decides an array beside the content: model, processor, versions.
        shape: Of an array.
        dtype: Of an array.

    Guarantees:
        An array that is returned was computed, whole, for the content that is asked for. A file
        that was cut off or belongs to other arrays isn't read.
    """

    def __init__(self, key: str, shape: tuple[int, ...], dtype: DTypeLike) -> None:
        self.shape, self.dtype = shape, np.dtype(dtype)
        told = f"{key}\0{shape}\0{self.dtype.str}"
        self._folder = stores_dir() / hashlib.sha256(told.encode()).hexdigest()[:32]
        self._held: dict[bytes, NDArray] = {}
        self._packs: dict[Path, tuple[Pack, int]] = {}
        self._where: dict[bytes, tuple[Path, int]] = {}

    @property
    def row_bytes(self) -> int:
        """Bytes of an array."""
        return int(np.prod(self.shape)) * self.dtype.itemsize

    def __del__(self) -> None:
        for _, handle in self._packs.values():
            with contextlib.suppress(OSError):
                os.close(handle)

    def _look(self) -> None:
        """Open the packs that are there; they stay readable when another process deletes them."""
        for path in self._folder.glob("*.pack"):
            if path in self._packs:
                continue
            pack = _read_pack(path, self.shape, self.dtype)
            if pack is None:
                continue
            with contextlib.suppress(OSError):
                handle = os.open(path, os.O_RDONLY)
                os.utime(path)
                self._packs[path] = (pack, handle)
                self._where |= {digest: (path, row) for row, digest in enumerate(pack.digests)}

    def fill(self, contents: Sequence[bytes], compute: Compute) -> bool:
        """Compute the arrays that aren't known yet.

        Args:
            contents: What arrays will be asked of, 32 bytes each; may repeat.
            compute: Yields the arrays of some of `contents`, given their places, in order.

        Returns:
            Whether all can be asked for now; False where the bound on stores leaves no room.

        Raises:
            DataError: The cache folder can't be written, or an image can't be read.
        """
        wanted = dict(zip(reversed(contents), reversed(range(len(contents))), strict=True))
        if len(wanted) * self.row_bytes <= IN_MEMORY:
            missing = [place for digest, place in wanted.items() if digest not in self._held]
            for place, array in zip(missing, compute(missing), strict=True):
                self._held[contents[place]] = self._checked(array)
            return True
        self._folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        with one_at_a_time(self._folder / "packs"):  # by another process, perhaps, just now
            self._look()
            missing = sorted(place for digest, place in wanted.items() if digest not in self._where)
            each = self.row_bytes + _DIGEST
            needed = len(missing) * each + _HEAD * (1 + len(missing) * each // _PACK_BYTES)
            if missing and not _make_room(needed, set(self._packs)):
                log.warning(
                    "%d images take %.1f GB prepared, and the cache's bound (%s=%.1f GB) leaves no "
                    "room: they are prepared anew each time",
                    len(missing),
                    len(missing) * each / 1e9,
                    LIMIT,
                    cache_limit() / 1e9,
                )
                return False
            arrays = compute(missing)
            step = max(1, _PACK_BYTES // each)
            for start in range(0, len(missing), step):
                part = missing[start : start + step]
                self._write([contents[place] for place in part], arrays)
            self._look()
        return all(digest in self._where for digest in wanted)

    def _checked(self, array: NDArray) -> NDArray:
        if array.shape != self.shape or array.dtype != self.dtype:
            raise DataError(
                f"expected an array of {self.dtype} {self.shape}, got {array.dtype} {array.shape}"
            )
        return np.ascontiguousarray(array)

    def _write(self, digests: list[bytes], arrays: Iterator[NDArray]) -> None:
        told = {"count": len(digests), "shape": list(self.shape), "dtype": self.dtype.str}
        name = hashlib.sha256(b"".join(digests)).hexdigest()[:32]
        path = self._folder / f"{name}.pack"
        with whole_file(path) as temporary, temporary.open("wb") as file:
            file.write((_MAGIC + json.dumps(told).encode()).ljust(_HEAD, b"\0"))
            file.write(b"".join(digests))
            for _ in digests:
                file.write(self._checked(next(arrays)).data)
            file.flush()
            os.fsync(file.fileno())

    def has(self, contents: Sequence[bytes]) -> bool:
        """Say whether all arrays are there."""
        return all(digest in self._held or digest in self._where for digest in contents)

    def read(self, contents: Sequence[bytes]) -> NDArray:
        """Return the arrays of contents that `fill` was called with: shape `(n, *shape)`.

        Read by place and not mapped: what is read doesn't stay in this process's memory.

        Raises:
            DataError: One isn't there, or its file can't be read any more.
        """
        out = np.empty((len(contents), *self.shape), dtype=self.dtype)
        rows = out.reshape(len(contents), int(np.prod(self.shape))).view(np.uint8)
        for row, digest in enumerate(contents):
            if digest in self._held:
                out[row] = self._held[digest]
                continue
            if digest not in self._where:
                raise DataError("an image was asked for that wasn't prepared")
            path, place = self._where[digest]
            pack, handle = self._packs[path]
            offset = pack.start + place * pack.row_bytes
            if _read_at(handle, rows[row].data, offset) != pack.row_bytes:
                raise DataError(f"{path} was cut off while it was in use; start again")
        return out


def describe() -> dict[str, float | int | str]:
    """Return where prepared images are kept, how many files and bytes, and the bound."""
    packs = stored()
    last = max((used for _, _, used in packs), default=0.0)
    return {
        "folder": str(stores_dir()),
        "files": len(packs),
        "bytes": sum(size for _, size, _ in packs),
        "limit_bytes": cache_limit(),
        "last_used": time.strftime("%Y-%m-%d", time.localtime(last)) if packs else "",
    }


def clear() -> int:
    """Delete every pack; returns the bytes that were freed."""
    freed = 0
    for path, size, _ in stored():
        with contextlib.suppress(OSError):
            path.unlink()
            freed += size
    return freed
