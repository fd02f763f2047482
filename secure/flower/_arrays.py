"""Arrays off the wire, read so that no bytes can do more than be refused."""

from collections.abc import Collection
from io import BytesIO

import numpy as np
from numpy.typing import NDArray

from secure.errors import IntegrityError, MissingExtraError

try:
    from flwr.app import Array, RecordDict
except ImportError:
    raise MissingExtraError("flwr", "sim") from None

_STYPE = "numpy.ndarray"
_HEADS = {
    (1, 0): np.lib.format.read_array_header_1_0,
    (2, 0): np.lib.format.read_array_header_2_0,
}
_MAX_HEAD = 4096


def read_array(array: object, what: str, kinds: str = "fiub", axes: int | None = None) -> NDArray:
    """Read an array of numbers, of the size that its bytes have and no other.

    Args:
        array: Flower's array, as it came.
        what: Its name, for the error.
        kinds: NumPy's kinds of dtype that are taken.
        axes: Number of axes, where it must be a certain one.

    Returns:
        The array, a read-only view of the message's own bytes: nothing is allocated for it.

    Raises:
        IntegrityError: The bytes are no such array. An archive, a pickle, a header that announces
            more than follows, or trailing bytes are none.
    """
    if not isinstance(array, Array) or array.stype != _STYPE or not isinstance(array.data, bytes):
        raise IntegrityError(f"{what} is no array of NumPy's")
    stream = BytesIO(array.data)
    try:
        head = _HEADS[np.lib.format.read_magic(stream)]
        shape, by_columns, dtype = head(stream, max_header_size=_MAX_HEAD)
    # The header is Python's text: what its parser may raise for hostile text is no fixed list.
    except Exception as error:
        raise IntegrityError(f"{what} can't be read ({type(error).__name__})") from None
    if dtype.hasobject or dtype.kind not in kinds or (axes is not None and len(shape) != axes):
        raise IntegrityError(f"{what} holds {dtype} in {len(shape)} axes, which is not due here")
    count = 1
    for each in shape:
        count *= int(each)
    start = stream.tell()
    if any(each < 0 for each in shape) or count * dtype.itemsize != len(array.data) - start:
        raise IntegrityError(f"{what} announces {shape}, which is not what follows")
    flat = np.frombuffer(array.data, dtype=dtype, offset=start, count=count)
    return flat.reshape(shape, order="F" if by_columns else "C").astype(
        dtype.newbyteorder("="), copy=False
    )


def only_arrays(content: RecordDict, whose: str) -> dict[str, NDArray]:
    """Return the arrays of a content that holds one ArrayRecord.

    Raises:
        IntegrityError: It holds another number of them, or one that can't be read.
    """
    records = list(content.array_records.values())
    if len(records) != 1:
        raise IntegrityError(f"{whose} holds one ArrayRecord, got {len(records)}")
    return {name: read_array(each, f"array {name!r}") for name, each in records[0].items()}


def read_record(content: RecordDict, record: str, names: Collection[str]) -> dict[str, object]:
    """Return a ConfigRecord that came alone but for the records of `names`.

    Raises:
        IntegrityError: Other records came along, or it is missing.
    """
    flat = content.config_records.get(record)
    if set(content) != {record, *names} or flat is None:
        raise IntegrityError(f"a message of the protocol has {len(content)} records that don't fit")
    return dict(flat)
