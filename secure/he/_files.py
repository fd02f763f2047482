"""Files that a command is given: read, or refused in one line; found unwritable before the work."""

import os
import zipfile
from pathlib import Path
from typing import Any

import numpy as np

from secure.errors import ParameterError


def load_array(path: Path) -> Any:
    """Read an `.npy`, memory-mapped, or an `.npz`: no pickle, and no allocation by a header.

    Raises:
        ParameterError: The file is not there, or holds no plain arrays.
    """
    try:
        with path.open("rb") as file:
            mapped = file.read(6) == b"\x93NUMPY"
        # What a header announces is checked against the file's length, not allocated.
        return np.load(path, allow_pickle=False, mmap_mode="r" if mapped else None)
    except OSError as error:
        raise ParameterError(f"{path} can't be read: {error.strerror or error}") from error
    except (
        ValueError,
        EOFError,
        SyntaxError,
        TypeError,
        OverflowError,
        zipfile.BadZipFile,
    ) as error:
        raise ParameterError(
            f"{path} is no .npy or .npz file of plain arrays: {str(error)[:120]}"
        ) from None


def member(archive: Any, name: str, path: Path, most_bytes: int) -> Any:
    """Read one array of an `.npz`, at most so many bytes long once unpacked.

    Raises:
        ParameterError: It is damaged, larger, or no plain array.
    """
    try:
        size = archive.zip.getinfo(f"{name}.npy").file_size
        if size > most_bytes:
            raise ParameterError(
                f"{path}: {name} has {size} bytes, and at most {most_bytes} are read"
            )
        return archive[name]
    except ParameterError:
        raise
    except Exception as error:  # zlib, zip and header readers raise a dozen kinds
        raise ParameterError(f"{path}: {name} can't be read: {str(error)[:120]}") from None


def require_writable(path: Path) -> None:
    """Refuse a place that can't be written to, before anything is computed for it.

    Raises:
        ParameterError: The folder is missing, or the file can't be written.
    """
    if path.is_dir():
        raise ParameterError(f"{path} is a folder: name a file")
    if not path.parent.is_dir():
        raise ParameterError(f"{path.parent} is no folder: make it first")
    if not os.access(path if path.exists() else path.parent, os.W_OK):
        raise ParameterError(f"{path} can't be written to: check its permissions")
