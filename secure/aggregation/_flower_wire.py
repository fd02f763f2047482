"""The protocol's messages as Flower's records, and their way through a grid."""

import time
from collections.abc import Iterator
from typing import Any

from secure.aggregation import _messages as wire
from secure.aggregation._client import StageError
from secure.errors import IntegrityError, MissingExtraError

try:
    from flwr.app import Array, ArrayRecord, ConfigRecord, Message, RecordDict
    from flwr.serverapp import Grid
except ImportError:
    raise MissingExtraError("flwr", "sim") from None

RECORD = "secagg"
WORDS = "secagg-words"
SCHEMA_KEY = "schema-hash"
_ANSWERS = {
    "advertise": wire.Advert,
    "share": wire.Dealt,
    "mask": wire.Masked,
    "commit": wire.Commit,
    "unmask": wire.Reveal,
}
_PULL_FIRST_S, _PULL_MOST_S = 0.02, 1.0


def to_records(trip: str, message: Any) -> RecordDict:
    """Return a protocol message as the records that carry it."""
    flat = message.to_fields() if isinstance(message, wire.Setup) else wire.to_fields(message)
    content = RecordDict({RECORD: ConfigRecord(flat | {"trip": trip})})
    if isinstance(message, wire.Masked):
        content[WORDS] = ArrayRecord({"words": Array(message.words)})
    return content


def size(message: Message) -> int:
    """Return the bytes of a message's content, or of its error's reason."""
    if message.has_error():
        return len(message.error.reason or "")
    return _content_bytes(message.content)


def _content_bytes(content: RecordDict) -> int:
    return sum(record.count_bytes() for record in content.values())


def upload_bytes(trip: str, message: Any) -> int:
    """Return the bytes of a protocol message as Flower carries it, with its names."""
    return _content_bytes(to_records(trip, message))


def from_records(trip: str, content: RecordDict) -> Any:
    """Take exactly one protocol message, and nothing that came along with it."""
    expected = {RECORD, WORDS} if trip == "mask" else {RECORD}
    record = content.config_records.get(RECORD)
    if set(content) != expected or record is None:
        raise IntegrityError(f"an answer to {trip!r} holds the records {sorted(content)}")
    flat = dict(record)
    if flat.pop("trip", None) != trip:
        raise StageError(f"an answer to another trip came during {trip!r}")
    words = None
    if trip == "mask":
        try:
            words = content.array_records[WORDS]["words"].numpy()
        except (KeyError, ValueError, TypeError):
            raise IntegrityError("a masked vector can't be read") from None
    return wire.from_fields(_ANSWERS[trip], flat, words)


def exchange(
    grid: Grid, messages: list[Message], timeout_s: float
) -> Iterator[tuple[int, Message]]:
    """Send messages and give each answer out as it arrives, with the node it came from."""
    # A grid that could not push gives None for a message, or no ids at all.
    pushed = zip(grid.push_messages(messages), messages, strict=False)
    waiting = {each: message.metadata.dst_node_id for each, message in pushed if each}
    deadline = time.monotonic() + timeout_s
    pause = _PULL_FIRST_S
    while waiting:
        arrived = False
        for reply in grid.pull_messages(list(waiting)):
            node = waiting.pop(reply.metadata.reply_to_message_id, None)
            if node is not None:
                arrived = True
                yield node, reply
        if not waiting or time.monotonic() > deadline:
            return
        if not arrived:
            time.sleep(pause)
            pause = min(2 * pause, _PULL_MOST_S)
