"""A page that follows from code or results: printed, or written whole."""

from pathlib import Path

from fedvlm.files import write_text


def deliver(page: str, path: Path | None) -> None:
    """Write a page to a file, or print it where none is named."""
    if path is None:
        print(page, end="")
    else:
        write_text(path, page)
