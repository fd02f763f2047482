"""The protocol's messages as Flower's records."""

from typing import Any

from secure.aggregation import _messages as wire
from secure.errors import MissingExtraError
from secure.flower._arrays import read_array, read_record
from secure.flower._refusals import StageError
from secure.flower._sizes import content_bytes

try:
    from flwr.app import Array, ArrayRecord, ConfigRecord, RecordDict
except ImportError:
    raise MissingExtraError("flwr", "sim") from None

RECORD = "secagg"
WORDS = "secagg-words"
SCHEMA_KEY = "schema-hash"
CLOSE = "close"
_ANSWERS = {
    "advertise": wire.Advert,
    "share": wire.Dealt,
    "mask": wire.Masked,
    "commit": wire.Commit,
    "unmask": wire.Reveal,
}


def to_records(trip: str, message: Any) -> RecordDict:
    """Return a protocol message as the records that carry it."""
    flat = message.to_fields() if isinstance(message, wire.Setup) else wire.to_fields(message)
    content = RecordDict({RECORD: ConfigRecord(flat | {"trip": trip})})
    if isinstance(message, wire.Masked):
        content[WORDS] = ArrayRecord({"words": Array(message.words)})
    return content


def closing(session: bytes) -> RecordDict:
    """Return the message that ends a session, and the answer to it."""
    return RecordDict({RECORD: ConfigRecord({"trip": CLOSE, "session": session})})


def upload_bytes(trip: str, message: Any) -> int:
    """Return the bytes of a protocol message as Flower carries it, with its names."""
    return content_bytes(to_records(trip, message))


def from_records(trip: str, content: RecordDict) -> Any:
    """Take exactly one protocol message, and nothing that came along with it.

    Raises:
        IntegrityError: The records are no answer to the trip.
    """
    flat = read_record(content, RECORD, (WORDS,) if trip == "mask" else ())
    if flat.pop("trip", None) != trip:
        raise StageError(f"an answer to another trip came during {trip!r}")
    words = None
    if trip == "mask":
        record = content.array_records.get(WORDS) or {}
        words = read_array(record.get("words"), "a masked vector", "u", axes=1)
    return wire.from_fields(_ANSWERS[trip], flat, words)
