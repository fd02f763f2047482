"""A list of captions that somebody keeps: read from a file of one's own."""

from pathlib import Path

from fedvlm.errors import ConfigError

MOST_CAPTIONS = 10_000
_MOST_BYTES = 1 << 22


def read_captions(path: Path) -> frozenset[str]:
    """Read captions from a text file, one a line; empty lines are none.

    Args:
        path: The file, UTF-8, at most 4 MiB.

    Raises:
        ConfigError: It can't be read, or holds no caption or more than 10,000.
    """
    try:
        with path.open("rb") as file:
            raw = file.read(_MOST_BYTES + 1)
        text = raw.decode("utf-8")
    except OSError as error:
        raise ConfigError(f"can't read the list of captions {path}: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise ConfigError(f"{path} is no list of captions: it isn't UTF-8") from error
    found = frozenset(line.strip() for line in text.splitlines() if line.strip())
    if not found or len(found) > MOST_CAPTIONS or len(raw) > _MOST_BYTES:
        raise ConfigError(
            f"{path} holds {len(found)} captions in {len(raw)} bytes or more; a list holds from 1 "
            f"to {MOST_CAPTIONS:,} in {_MOST_BYTES:,} bytes, one a line"
        )
    return found
