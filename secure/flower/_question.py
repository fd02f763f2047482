"""The question that a client was asked, as a hash: what it trains, with which configuration."""

import hashlib
from collections.abc import Mapping

from secure.errors import IntegrityError, MissingExtraError

try:
    from flwr.app import Array, RecordDict
except ImportError:
    raise MissingExtraError("flwr", "sim") from None

_PREFIX = b"fedvlm question 1"


def _add(hasher, value: object) -> None:
    """Hash a value with its type and length, so that no two different ones hash the same."""
    if isinstance(value, Array):
        _add(hasher, [value.dtype, list(value.shape), value.stype, value.data])
    elif isinstance(value, Mapping):
        # In their order, which an app may go by.
        _add(hasher, [part for name, each in value.items() for part in (name, each)])
    elif isinstance(value, list | tuple):
        hasher.update(b"l" + len(value).to_bytes(8, "little"))
        for each in value:
            _add(hasher, each)
    elif isinstance(value, bytes):
        hasher.update(b"y" + len(value).to_bytes(8, "little"))
        hasher.update(value)
    elif isinstance(value, bool | int | float | str):
        text = repr(value).encode("utf-8", "surrogatepass")
        hasher.update(type(value).__name__[:1].encode() + len(text).to_bytes(8, "little") + text)
    else:
        raise IntegrityError(f"a message holds a {type(value).__name__}, which has no hash")


def question(
    content: RecordDict,
    message_type: str,
    group_id: str,
    run_config: Mapping[str, object],
    without: str,
) -> bytes:
    """Hash all that an app gets from the server: arrays, configuration, and how it is addressed.

    Args:
        content: The message's content.
        message_type: The message's type, with its action.
        group_id: The message's group.
        run_config: The run's configuration, which comes from the server too.
        without: The protocol's own record, which differs by nature.

    Returns:
        32 bytes, equal for two clients if and only if they were asked the same.

    Raises:
        IntegrityError: A value has a type that Flower doesn't carry.
    """
    hasher = hashlib.sha256(_PREFIX)
    _add(hasher, [message_type, group_id])
    _add(hasher, [[name, run_config[name]] for name in sorted(run_config)])
    for name, record in content.items():
        if name != without:
            _add(hasher, [name, type(record).__name__])
            _add(hasher, record)
    return hasher.digest()
