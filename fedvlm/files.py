"""Files written whole or not at all, and the user's cache folder."""

import hashlib
import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from filelock import FileLock

from fedvlm.errors import DataError


def cache_dir() -> Path:
    """Return the cache folder: `$FEDVLM_CACHE`, or `fedvlm` in the user's own cache folder."""
    chosen = os.environ.get("FEDVLM_CACHE")
    if chosen:
        return Path(chosen)
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "fedvlm"


@contextmanager
def whole_file(path: Path) -> Iterator[Path]:
    """Yield a temporary path beside `path`; it takes the name only if the block succeeds.

    Args:
        path: Where the file shall be; its folder is made.

    Raises:
        DataError: The folder can't be written or the disk is full; nothing is left behind.
    """
    temporary: Path | None = None
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, name = tempfile.mkstemp(prefix=f".{path.name}.", dir=path.parent)
        os.close(handle)
        temporary = Path(name)
        yield temporary
        temporary.chmod(0o644)
        temporary.replace(path)
    except OSError as error:
        reason = error.strerror or type(error).__name__
        raise DataError(
            f"can't write {path}: {reason}; free some space or choose another folder "
            "(FEDVLM_CACHE for the cache, --out for results)"
        ) from error
    finally:
        if temporary is not None:
            temporary.unlink(missing_ok=True)


@contextmanager
def one_at_a_time(path: Path) -> Iterator[None]:
    """Let one process at a time make `path`; the others wait, and then find it made.

    Raises:
        DataError: The lock file can't be written.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        lock = FileLock(path.with_name(f".{path.name}.lock"))
        lock.acquire()
    except OSError as error:
        raise DataError(f"can't write beside {path}: {error.strerror}") from error
    try:
        yield
    finally:
        lock.release()


def write_text(path: Path, text: str) -> None:
    """Write `text` to `path`, whole or not at all."""
    with whole_file(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def sha256(path: Path) -> str:
    """Return the SHA-256 of a file, in hex."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def write_durably(path: Path, text: str) -> None:
    """Write a file that only its owner may read; when this returns it is on the disk.

    Args:
        path: Where the file shall be; its folder is made, for the owner alone.
        text: What it shall hold.

    Raises:
        DataError: The folder can't be written; the file is as it was before.
    """
    partial = path.with_name(f".{path.name}.partial")
    try:
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        descriptor = os.open(partial, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
        with os.fdopen(descriptor, "w", encoding="utf-8") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        os.replace(partial, path)
        _sync(path.parent)
    except OSError as error:
        raise DataError(f"can't write {path}: {error.strerror or type(error).__name__}") from error


def _sync(folder: Path) -> None:
    """Force a folder's entries to the disk, so that a rename outlives a power cut."""
    if os.name == "nt":  # has no such call
        return
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
