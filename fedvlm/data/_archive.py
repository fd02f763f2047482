"""A cached archive: read where it is whole, and made anew where it is missing or broken."""

import json
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

from fedvlm.files import one_at_a_time

T = TypeVar("T")


def read_or_build(path: Path, read: Callable[[Path], T], build: Callable[[], None]) -> T:
    """Read an archive, or make it first; one process at a time does either.

    Args:
        path: Where it is cached.
        read: Reads it; raises what a torn zip file or a torn JSON index raises.
        build: Writes it, whole or not at all.
    """
    with one_at_a_time(path):
        if path.exists():
            try:
                return read(path)
            except (zipfile.BadZipFile, KeyError, json.JSONDecodeError, OSError, EOFError):
                path.unlink(missing_ok=True)  # a broken archive is made anew
        build()
    return read(path)
