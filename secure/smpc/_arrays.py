"""NumPy files, read so that damage of any kind is one error that names the file."""

import math
import zipfile
from pathlib import Path
from typing import IO, Any

import numpy as np
from numpy.lib import format as npy
from numpy.typing import NDArray

from secure.errors import ParameterError

_READERS = {(1, 0): npy.read_array_header_1_0, (2, 0): npy.read_array_header_2_0}
_KINDS = "fiu"


def read_archive(path: Path) -> dict[str, NDArray[Any]]:
    """Read an `.npz` of numbers.

    Raises:
        ParameterError: It's missing, or not a whole archive of numbers.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            return {
                each.filename.removesuffix(".npy"): _member(archive, each)
                for each in archive.infolist()
            }
    except Exception as error:  # zip and NumPy raise a dozen kinds for damaged files
        raise _damaged(path, error) from error


def read_array(path: Path) -> NDArray[Any]:
    """Read an `.npy` of numbers.

    Raises:
        ParameterError: It's missing, or not a whole array of numbers.
    """
    try:
        with path.open("rb") as file:
            return _array(file, path.stat().st_size)
    except Exception as error:
        raise _damaged(path, error) from error


def _member(archive: zipfile.ZipFile, member: zipfile.ZipInfo) -> NDArray[Any]:
    if member.compress_type != zipfile.ZIP_STORED:
        raise ValueError("compressed, which `save` never does")
    with archive.open(member) as file:
        return _array(file, member.file_size)


def _array(file: "IO[bytes]", size: int) -> NDArray[Any]:
    """Read one array; its header may not ask for more than the file holds."""
    shape, fortran, dtype = _READERS[npy.read_magic(file)](file)
    count = math.prod(shape)
    if dtype.kind not in _KINDS or not 0 <= count * dtype.itemsize <= size:
        raise ValueError("not an array of numbers as long as its file")
    data = file.read(count * dtype.itemsize + 1)
    if len(data) != count * dtype.itemsize:
        raise ValueError("an array of another length than its header's")
    array = np.frombuffer(bytearray(data), dtype).reshape(shape, order="F" if fortran else "C")
    if dtype.kind == "f" and not np.isfinite(array).all():
        raise ValueError("a number that is not finite")
    return array.astype(dtype.newbyteorder("="), copy=False)


def _damaged(path: Path, error: Exception) -> ParameterError:
    why = "is missing" if isinstance(error, FileNotFoundError) else "is damaged or unreadable"
    return ParameterError(
        f"there is no {path.name} of a compiled model at {path}: it {why} "
        f"({type(error).__name__}); compile the model again"
    )
