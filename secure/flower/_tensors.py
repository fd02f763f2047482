"""Named arrays to one vector and back."""

import math
from collections.abc import Mapping

import numpy as np
from numpy.typing import NDArray

from secure.errors import IntegrityError, ParameterError
from secure.flower._layout import Layout

Arrays = dict[str, NDArray]
Shapes = tuple[tuple[str, tuple[int, ...], str], ...]


def is_float(array: NDArray) -> bool:
    """Tell whether an array is learned; whole numbers are counters, of batches say.

    Raises:
        ParameterError: The array holds neither floats nor whole numbers.
    """
    if array.dtype.kind not in "fiub":
        raise ParameterError(f"arrays of {array.dtype} can't be summed; use float32")
    return array.dtype.kind == "f"


def _wide(array: NDArray) -> NDArray:
    """Return an array as float32 or wider; whole numbers as float64, exact up to 2^53."""
    kind = np.promote_types(array.dtype, np.float32) if is_float(array) else np.float64
    return array.astype(kind, copy=False)


def shapes_of(arrays: Mapping[str, NDArray]) -> Shapes:
    """Return name, shape and dtype of the differences to some arrays, in their order."""
    return tuple(
        (name, each.shape, str(np.promote_types(each.dtype, np.float32)))
        for name, each in arrays.items()
        if is_float(each)
    )


def difference(after: Mapping[str, NDArray], before: Mapping[str, NDArray]) -> Arrays:
    """Return `after - before`, without the arrays of whole numbers, in the order of `before`.

    Arrays are matched by name.

    Raises:
        ParameterError: The arrays have other names or shapes.
    """
    if set(after) != set(before):
        raise ParameterError("the reply's arrays have other names than the received ones")
    updates = {}
    for name, old in before.items():
        new = after[name]
        if new.shape != old.shape:
            raise ParameterError(f"array {name!r} has shape {new.shape}, expected {old.shape}")
        if is_float(old):
            updates[name] = _wide(new) - _wide(old)
    return updates


def by_name(arrays: Mapping[str, NDArray]) -> Arrays:
    """Return arrays in the order of their names, so that all clients lay them out alike."""
    return {name: arrays[name] for name in sorted(arrays)}


def flatten(arrays: Mapping[str, NDArray]) -> tuple[NDArray[np.floating], Shapes]:
    """Lay arrays end to end.

    Returns:
        The vector, float32 or wider, shape `(length,)`; and name, shape and dtype of each array.
    """
    shapes = tuple((name, array.shape, str(array.dtype)) for name, array in arrays.items())
    parts = [_wide(array).reshape(-1) for array in arrays.values()]
    return (np.concatenate(parts) if parts else np.empty(0, dtype=np.float32)), shapes


def restore(mean: NDArray[np.float64], layout: Layout, before: Arrays | None) -> Arrays:
    """Turn the mean vector into arrays.

    Args:
        mean: Shape `(layout.length,)`.
        layout: Name, shape and dtype of each array.
        before: Arrays that the mean is added to; those of whole numbers stay as they are. None
            gives the mean itself, in float64 where the clients sent whole numbers.

    Raises:
        IntegrityError: The layout is not that of `before`.
    """
    parts: Arrays = {}
    start = 0
    for name, shape, dtype in layout.arrays:
        size = math.prod(shape)
        part = mean[start : start + size].reshape(shape)
        parts[name] = part.astype(dtype) if dtype.startswith("float") else part
        start += size
    if before is None:
        return parts
    expected = {name: array.shape for name, array in before.items() if is_float(array)}
    if {name: part.shape for name, part in parts.items()} != expected:
        raise IntegrityError("the clients' updates have other arrays than the server's model")
    return {
        name: np.asarray(array + parts[name], dtype=array.dtype) if name in parts else array
        for name, array in before.items()
    }
