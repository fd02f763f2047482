"""What crosses the network in clear, and how it is read: strictly, and without an interpreter.

A reply comes from somebody whom nobody vouches for. Flower hands on arrays in NumPy's file format,
whose reader evaluates a header, unpickles, and allocates what the header asks for. Here the header
must be the one that is expected, to the letter, so that nothing is left to interpret.
"""

import math
import struct

import numpy as np
from flwr.app import Array, ArrayRecord, Message, MetricRecord, RecordDict
from numpy.typing import NDArray

VECTOR = "adapter"
"""Name of the one array that a message carries."""
EXAMPLES = "num-examples"
MOST_EXAMPLES = 1 << 31
_MAGIC = b"\x93NUMPY\x01\x00"
_MOST_METRIC = 1e12
_MOST_VALUE = 1e9  # beyond it squares, which server optimisers take, leave float32


def one_reply(
    vector: NDArray[np.floating], metrics: dict[str, int | float] | None = None
) -> Message:
    """Return a reply that carries an adapter, for a strategy that is to see nothing else."""
    content = RecordDict(
        {
            "arrays": ArrayRecord({VECTOR: Array(vector)}),
            "metrics": MetricRecord({**(metrics or {EXAMPLES: 1})}),
        }
    )
    return Message(content, dst_node_id=0, message_type="train")


def read_vector(array: object, size: int) -> NDArray[np.float32] | None:
    """Read a vector of one length and type from what somebody sent.

    Args:
        array: Flower's `Array`, or whatever came in its place.
        size: P, the length that is expected.

    Returns:
        Shape (P,), float32, each of a magnitude up to 1e9; None for anything else. Never an
        exception, and never more memory than a few times the vector's.
    """
    if not isinstance(array, Array) or not isinstance(array.data, bytes):
        return None
    data = array.data
    start = len(_MAGIC) + 2
    if len(data) < start or not data.startswith(_MAGIC):
        return None
    (length,) = struct.unpack("<H", data[len(_MAGIC) : start])
    header = f"{{'descr': '<f4', 'fortran_order': False, 'shape': ({size},), }}".encode()
    if data[start : start + length].rstrip(b" \n") != header:
        return None
    if len(data) != start + length + 4 * size:
        return None
    vector = np.frombuffer(data, dtype="<f4", offset=start + length).astype(np.float32)
    # Written so that a NaN is refused.
    return vector if size == 0 or np.abs(vector).max() <= _MOST_VALUE else None


def read_reply(
    message: Message, size: int, metrics: tuple[str, ...] = (EXAMPLES,)
) -> tuple[NDArray[np.float32], dict[str, int | float]] | None:
    """Read a client's answer to `train`: its adapter and its metrics.

    Args:
        message: What came.
        size: Parameters P of the adapter.
        metrics: What it must tell; what else it tells is not looked at.

    Returns:
        Vector of shape (P,) and the metrics, of which `num-examples` is in (0, 2^31]; None where
        that isn't what came.
    """
    if message.has_error():
        return None
    try:
        arrays, told = message.content.get("arrays"), message.content.get("metrics")
        if not isinstance(arrays, ArrayRecord) or not isinstance(told, MetricRecord):
            return None
        vector = read_vector(arrays.get(VECTOR), size)
        numbers = {name: _number(told.get(name)) for name in metrics}
    except Exception:  # Flower's records make their contents when they are read
        return None
    found = {name: number for name, number in numbers.items() if number is not None}
    if vector is None or len(found) < len(metrics):
        return None
    return (vector, found) if 0 < found.get(EXAMPLES, 1) <= MOST_EXAMPLES else None


def read_metrics(message: Message, metrics: tuple[str, ...]) -> dict[str, int | float] | None:
    """Read a client's answer that holds metrics alone.

    Args:
        message: What came.
        metrics: What it must tell; what else it tells is not looked at.

    Returns:
        Finite numbers by name; None where that isn't what came. Never an exception.
    """
    if message.has_error():
        return None
    try:
        told = message.content.get("metrics")
        numbers = {n: _number(told.get(n)) for n in metrics if isinstance(told, MetricRecord)}
    except Exception:  # Flower's records make their contents when they are read
        return None
    found = {name: number for name, number in numbers.items() if number is not None}
    return found if len(found) == len(metrics) else None


def _number(value: object) -> int | float | None:
    """Return a metric that is one finite number of a magnitude that means something."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        return None
    return value if abs(value) <= _MOST_METRIC and math.isfinite(value) else None
