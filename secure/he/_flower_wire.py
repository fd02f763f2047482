"""What client and server of an encrypted sum say to each other in Flower's records."""

import numpy as np

from secure.errors import IntegrityError, MissingExtraError

try:
    from flwr.app import Array, ArrayRecord, ConfigRecord, RecordDict
except ImportError:
    raise MissingExtraError("flwr", "sim") from None

RECORD = "he"
PAYLOAD = "he-payload"
ENCRYPT, DECRYPT = "encrypt", "decrypt"
_ARRAY = "bytes"


def to_content(trip: str, number: int, payload: bytes = b"", layout: str = "") -> RecordDict:
    """Make a message's content."""
    record = ConfigRecord({"trip": trip, "round": number})
    if layout:
        record["layout"] = layout
    content = RecordDict({RECORD: record})
    if payload:
        array = np.frombuffer(payload, dtype=np.uint8)
        content[PAYLOAD] = ArrayRecord({_ARRAY: Array(array)})
    return content


def payload_of(content: RecordDict) -> bytes:
    """Take the bytes out of a message's content."""
    try:
        array = content.array_records[PAYLOAD][_ARRAY].numpy()
    except (KeyError, ValueError, TypeError):
        raise IntegrityError("the message holds no payload that can be read") from None
    if array.dtype != np.uint8 or array.ndim != 1:
        raise IntegrityError("a payload is a row of bytes")
    return array.tobytes()


def record_of(content: RecordDict, trip: str, number: int) -> ConfigRecord:
    """Take exactly one protocol message, and nothing that came along with it."""
    record = content.config_records.get(RECORD)
    if set(content) != {RECORD, PAYLOAD} or record is None:
        raise IntegrityError(f"an answer to {trip!r} holds the records {sorted(content)}")
    if record.get("trip") != trip or record.get("round") != number:
        raise IntegrityError(f"an answer to another trip or round came during {trip!r}")
    return record
