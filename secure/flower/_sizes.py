"""How large Flower's messages are: a count that no reply, however odd, can make fail."""

from collections.abc import Mapping

from secure.errors import MissingExtraError

try:
    from flwr.app import Array, Message, RecordDict
except ImportError:
    raise MissingExtraError("flwr", "sim") from None

_NUMBER = 8


def _value_bytes(value: object) -> int:
    if isinstance(value, Array):
        return len(value.data)
    if isinstance(value, bool):
        return 1
    if isinstance(value, str | bytes):
        return len(value)
    if isinstance(value, list | tuple):
        return sum(map(_value_bytes, value))
    return _NUMBER


def content_bytes(content: RecordDict) -> int:
    """Return the bytes of a message's content: values and their names, as Flower counts them."""
    total = 0
    for record in content.values():
        if isinstance(record, Mapping):
            total += sum(len(name) + _value_bytes(value) for name, value in record.items())
    return total


def size(message: Message) -> int:
    """Return the bytes of a message's content, or of its error's reason."""
    if message.has_error():
        return len(message.error.reason or "")
    return content_bytes(message.content)
