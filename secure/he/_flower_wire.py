"""What client and server of an encrypted sum say to each other in Flower's records."""

import numpy as np

from secure.errors import IntegrityError, MissingExtraError
from secure.flower._arrays import read_array, read_record

try:
    from flwr.app import Array, ArrayRecord, ConfigRecord, RecordDict
except ImportError:
    raise MissingExtraError("flwr", "sim") from None

RECORD = "he"
PAYLOAD = "he-payload"
ENCRYPT, DECRYPT = "encrypt", "decrypt"
_ARRAY = "bytes"
_MAX_NUMBER = 1 << 31


def to_content(
    trip: str,
    number: int,
    payload: bytes = b"",
    layout: str = "",
    question: bytes = b"",
    summands: int = 0,
) -> RecordDict:
    """Make a message's content."""
    record = ConfigRecord({"trip": trip, "round": number})
    if summands:
        record["summands"] = summands
    if layout:
        record["layout"] = layout
    if question:
        record["question"] = question
    content = RecordDict({RECORD: record})
    if payload:
        array = np.frombuffer(payload, dtype=np.uint8)
        content[PAYLOAD] = ArrayRecord({_ARRAY: Array(array)})
    return content


def payload_of(content: RecordDict) -> bytes:
    """Take the bytes out of a message's content.

    Raises:
        IntegrityError: There are none that can be read.
    """
    record = content.array_records.get(PAYLOAD) or {}
    array = read_array(record.get(_ARRAY), "a payload", "u", axes=1)
    if array.dtype != np.uint8:
        raise IntegrityError("a payload is a row of bytes")
    return array.tobytes()


def trip_of(content: RecordDict) -> tuple[str, int]:
    """Return trip and round that a server's message names.

    Raises:
        IntegrityError: It names none.
    """
    record = content.config_records.get(RECORD) or {}
    trip, number = record.get("trip"), record.get("round")
    if trip not in (ENCRYPT, DECRYPT) or type(number) is not int or not 0 < number < _MAX_NUMBER:
        raise IntegrityError("the server's message names no trip and round of the protocol")
    return str(trip), number


def record_of(content: RecordDict, trip: str, number: int) -> dict[str, object]:
    """Take exactly one protocol message, and nothing that came along with it.

    Raises:
        IntegrityError: It is another one.
    """
    record = read_record(content, RECORD, (PAYLOAD,))
    if record.get("trip") != trip or record.get("round") != number:
        raise IntegrityError(f"an answer to another trip or round came during {trip!r}")
    return record
