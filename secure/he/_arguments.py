"""What callers pass: numbers and arrays as they come, or one line that says what is wrong."""

from typing import Any

import numpy as np
from numpy.typing import NDArray

from secure.errors import ParameterError

# Larger weights or values have squares that float64 does not hold.
_LARGEST = 1e100


def whole(value: Any, what: str) -> int:
    """Return a whole number; anything else, a bool among it, is refused."""
    if isinstance(value, bool | np.bool_) or not isinstance(value, int | np.integer):
        raise ParameterError(f"{what} must be a whole number, got {type(value).__name__}")
    return int(value)


def real(value: Any, what: str) -> float:
    """Return a finite real number, from Python or numpy."""
    number = isinstance(value, int | float | np.integer | np.floating)
    if isinstance(value, bool) or not number or not np.isfinite(value):
        raise ParameterError(f"{what} must be a finite number, got {shown(value)}")
    return float(value)


def shown(value: Any) -> str:
    """Return a value in one short line."""
    return " ".join(repr(value).split())[:60]


def as_floats(values: Any, what: str) -> NDArray[np.float64]:
    """Return an array, a list or a torch tensor of any real dtype and device as float64."""
    if hasattr(values, "detach"):
        values = values.detach()
        if values.is_complex():
            raise ParameterError(f"{what} must be real numbers, got {values.dtype}")
        values = values.cpu().double().numpy()
    try:
        array = np.asarray(values)
        if array.dtype.kind not in "biuf":
            raise ParameterError(f"{what} must be real numbers, got dtype {array.dtype}")
        array = array.astype(np.float64)
    except (TypeError, ValueError, OverflowError) as error:
        if isinstance(error, ParameterError):
            raise
        raise ParameterError(f"{what} must be an array of real numbers") from None
    return array


def as_matrix(values: Any, axes: int, what: str) -> NDArray[np.float64]:
    """Return weights as float64, from an array or a torch tensor, or say what is wrong."""
    array = as_floats(values, what)
    if array.ndim != axes or 0 in array.shape:
        raise ParameterError(f"{what} needs {axes} axes, none empty; got shape {array.shape}")
    if not np.isfinite(array).all():
        raise ParameterError(f"{what} has a value that is not finite")
    if np.abs(array).max() > _LARGEST:
        raise ParameterError(f"{what} has a value beyond {_LARGEST:g}: scale it down")
    return array
