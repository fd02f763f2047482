"""What may be handed to an audit: scores, coins, clusters and claims in the forms people have."""

import json
from collections.abc import Mapping, Sequence
from numbers import Real
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fedvlm.errors import ConfigError
from fedvlm.leakage.units import Claim, Unit

_CLAIM = (
    "a claim is a Claim, a pair (epsilon, delta), a mapping with epsilon and delta (and unit), or "
    "either of the two as JSON"
)


def as_vector(values: Any, name: str) -> NDArray[np.float64]:
    """Return numbers as a float64 vector.

    Args:
        values: Shape (n,): an array, a sequence of numbers, or a torch tensor on any device, of any
            floating type, with or without a gradient.
        name: What they are, for messages.

    Raises:
        ConfigError: They are no vector of real numbers, or some are missing, NaN or infinite.
    """
    try:
        if hasattr(values, "detach"):  # a tensor: NumPy takes none with a gradient, or in bfloat16
            values = values.detach().cpu().double().numpy()
        elif isinstance(values, Sequence) and any(hasattr(one, "detach") for one in values):
            values = [one.detach().item() if hasattr(one, "detach") else one for one in values]
        if np.ma.isMaskedArray(values) and np.ma.is_masked(values):
            raise ConfigError(f"{name} hold masked entries; leave those examples out")
        array = np.asarray(values)
        if array.dtype.kind not in "biuf" and array.dtype.kind != "O":
            raise TypeError(str(array.dtype))
        array = array.astype(np.float64)
    except ConfigError:
        raise
    except (TypeError, ValueError, RuntimeError, OverflowError) as error:
        raise ConfigError(
            f"{name} must be a vector of real numbers; got {type(values).__name__}"
        ) from error
    if array.ndim != 1:
        raise ConfigError(f"{name} must be a vector, one number an example; got {array.shape}")
    if not np.isfinite(array).all():
        raise ConfigError(f"{int((~np.isfinite(array)).sum())} {name} are not finite")
    return array


def finite(name: str, *arrays: NDArray) -> None:
    """Refuse what is not finite: a comparison with NaN is false, on whichever side that helps.

    Raises:
        ConfigError: A value is NaN or infinite.
    """
    for array in arrays:
        bad = int((~np.isfinite(array)).sum())
        if bad:
            raise ConfigError(f"{bad} {name} are not finite")


def as_coins(values: Any, count: int) -> NDArray[np.bool_]:
    """Return who was in, as shape (count,), bool.

    Raises:
        ConfigError: The shape is another, a value is neither 0 nor 1, or all are alike.
    """
    try:
        inside = as_vector(values, "membership")
    except ConfigError as error:
        raise ConfigError(f"membership must hold booleans (or 0 and 1): {error}") from error
    if inside.shape != (count,):
        raise ConfigError(
            "scores and membership must be two vectors of one length; got shapes "
            f"{(count,)} and {inside.shape}"
        )
    if not np.isin(inside, (0, 1)).all():
        raise ConfigError("membership must hold booleans (or 0 and 1)")
    inside = inside.astype(bool)
    if inside.all() or not inside.any():
        raise ConfigError("an audit needs members and non-members; got one kind only")
    return inside


def as_clusters(values: Any, count: int) -> NDArray[np.int64]:
    """Return clusters as numbers from 0 without gaps: shape (count,), int64.

    Args:
        values: Shape (count,): whole numbers or names.
        count: Number of scores.

    Raises:
        ConfigError: The shape is another, or some score has no cluster (NaN, None).
    """
    if hasattr(values, "detach"):
        values = values.detach().cpu().numpy()
    # NumPy would make doubles of whole numbers on both sides of 2^63.
    whole = isinstance(values, Sequence) and not isinstance(values, str | bytes)
    array = np.asarray(values, dtype=object if whole else None)
    if array.shape != (count,):
        raise ConfigError(f"clusters must have shape {(count,)}, got {array.shape}")
    if array.dtype.kind == "O":
        known = [isinstance(one, str | int | np.integer) for one in array]
        if not all(known):
            raise ConfigError("clusters must be whole numbers or names; some are neither")
        array = np.array([str(one) for one in array])
    if array.dtype.kind == "f":
        if not (np.isfinite(array) & (array == np.round(array))).all():
            raise ConfigError("clusters must be whole numbers or names; some are NaN or fractions")
        if np.abs(array).max(initial=0) >= 2**53:
            raise ConfigError("clusters lost digits in floating point; hand them over as integers")
    elif array.dtype.kind not in "biuUS":
        raise ConfigError(f"clusters must be whole numbers or names; got {array.dtype}")
    return np.unique(array, return_inverse=True)[1].reshape(-1).astype(np.int64)


def _number(value: Any) -> float:
    if isinstance(value, bool) or not isinstance(value, Real | np.number):
        raise ConfigError(f"{_CLAIM}; got {value!r} for a number")
    return float(value)


def as_claim(value: Any, unit: Unit) -> Claim | None:
    """Return a claim in whatever form it came.

    Args:
        value: None, a `Claim`, a pair, a mapping, or JSON of the last two.
        unit: The audit's, for a claim that names none.

    Raises:
        ConfigError: It is none of these, a number is out of range, or its unit is another.
    """
    if value is None:
        return None
    if isinstance(value, str | bytes):
        try:
            value = json.loads(value)
        except ValueError as error:
            raise ConfigError(f"{_CLAIM}; got a text that is no JSON") from error
    if isinstance(value, Mapping):
        known = {"epsilon", "delta", "unit", "profile"}
        if not {"epsilon", "delta"} <= value.keys() or value.keys() - known:
            raise ConfigError(f"{_CLAIM}; got a mapping with {', '.join(map(str, value))}")
        try:
            own = Unit(value.get("unit", unit))
        except ValueError as error:
            raise ConfigError(f"unit must be sample or client; got {value['unit']!r}") from error
        pairs = tuple(_pair(one) for one in value.get("profile", ()))
        value = Claim(_number(value["epsilon"]), _number(value["delta"]), own, pairs)
    elif not isinstance(value, Claim):
        value = Claim(*_pair(value), unit=unit)
    if value.unit != unit:
        raise ConfigError(
            f"a claim at {value.unit} level can't be tested by an audit at {unit} level"
        )
    return value


def _pair(value: Any) -> tuple[float, float]:
    if hasattr(value, "tolist"):  # NumPy's and torch's
        value = value.tolist()
    if not isinstance(value, Sequence) or isinstance(value, str | bytes) or len(value) != 2:
        raise ConfigError(f"{_CLAIM}; got {value!r}")
    return _number(value[0]), _number(value[1])
