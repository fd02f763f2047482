"""A folder of one's own: images and a table of captions."""

import csv
import json
from pathlib import Path

import numpy as np

from fedvlm.data.dataset import ImageTextData
from fedvlm.errors import DataError

_TABLES = ("captions.csv", "captions.jsonl", "metadata.csv", "metadata.jsonl")
_IMAGE_KEYS = ("image", "file_name", "file", "path")
_CAPTION_KEYS = ("caption", "text")


def _rows(table: Path) -> list[dict[str, str]]:
    text = table.read_text(encoding="utf-8-sig")
    if table.suffix == ".csv":
        return list(csv.DictReader(text.splitlines()))
    rows = []
    for number, line in enumerate(text.splitlines(), 1):
        if not line.strip():
            continue
        try:
            rows.append(json.loads(line))
        except json.JSONDecodeError as error:
            raise DataError(f"{table}: line {number} is not JSON: {error.msg}") from error
    return rows


def _value(row: dict[str, str], keys: tuple[str, ...]) -> str:
    return next((str(row[key]).strip() for key in keys if row.get(key)), "")


def _codes(values: list[str]) -> tuple[np.ndarray, tuple[str, ...]]:
    names = tuple(sorted(set(values)))
    number = {name: index for index, name in enumerate(names)}
    return np.array([number[value] for value in values]), names


def load_folder(folder: str | Path) -> ImageTextData:
    """Load image–caption pairs from a folder.

    The folder holds `captions.csv` or `captions.jsonl` (Hugging Face's `metadata.*` is read too)
    with the columns `image` and `caption`, and optionally `domain` and `topic`; images are
    named relative to the folder or to its `images/`. Pairs with the same caption count as the
    same concept.

    Args:
        folder: Path of the folder.

    Returns:
        Every pair of the table.

    Raises:
        DataError: No table, no rows, an image missing or unreadable, or a caption missing; the
            message names the row.
    """
    folder = Path(folder)
    table = next((folder / name for name in _TABLES if (folder / name).is_file()), None)
    if table is None:
        raise DataError(f"{folder}: no {' or '.join(_TABLES[:2])} in this folder")
    rows = _rows(table)
    if not rows:
        raise DataError(f"{table}: the table has no rows")
    encoded, captions = [], []
    for number, row in enumerate(rows, 1):
        name, caption = _value(row, _IMAGE_KEYS), _value(row, _CAPTION_KEYS)
        if not name:
            raise DataError(f"{table}: row {number} names no image (column 'image')")
        if not caption:
            raise DataError(f"{table}: row {number} ({name}) has no caption")
        path = next((p for p in (folder / name, folder / "images" / name) if p.is_file()), None)
        if path is None:
            raise DataError(f"{table}: row {number}: image {name} is not in {folder} or images/")
        encoded.append(path.read_bytes())
        captions.append(caption)
    concepts, _ = _codes(captions)
    domains, domain_names = _codes([str(row.get("domain") or "all") for row in rows])
    topics, topic_names = _codes([str(row.get("topic") or "all") for row in rows])
    data = ImageTextData(
        name=folder.resolve().name,
        encoded=encoded,
        captions=tuple(captions),
        concepts=concepts,
        domains=domains,
        topics=topics,
        public=np.zeros(len(rows), dtype=bool),
        domain_names=domain_names,
        topic_names=topic_names,
    )
    for index in range(len(data)):  # an unreadable image is named now, not in round three
        data.image(index)
    return data
