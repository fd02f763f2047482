"""A folder of one's own: images and a table of captions."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from unicodedata import normalize

import numpy as np
from numpy.typing import NDArray

from fedvlm.data.dataset import ImageTextData
from fedvlm.data.images import content_of, decode_image
from fedvlm.data.table import Row, read_table, shown
from fedvlm.errors import DataError

_STEMS = ("captions", "metadata")
_SUFFIXES = (".csv", ".tsv", ".jsonl", ".json")


@dataclass(frozen=True)
class _Picture:
    """An image file and what it shows."""

    encoded: bytes
    content: bytes


def _table_of(folder: Path) -> Path:
    """Return the folder's only table."""
    try:
        files = sorted(path for path in folder.iterdir() if path.is_file())
    except FileNotFoundError as error:
        raise DataError(
            f"{folder}: no captions.csv or captions.jsonl, as there is no such folder; data is "
            "'emoji' or the path of a folder"
        ) from error
    except NotADirectoryError as error:
        raise DataError(f"{folder} is a file; data is the folder that holds it") from error
    except OSError as error:
        raise DataError(f"can't read {folder}: {error.strerror}") from error
    tables = [
        path for path in files if path.stem.lower() in _STEMS and path.suffix.lower() in _SUFFIXES
    ]
    if not tables:
        raise DataError(
            f"{folder}: no captions.csv or captions.jsonl in this folder (.tsv, .json and "
            "metadata.* are read too)"
        )
    if len(tables) > 1:
        names = " and ".join(path.name for path in tables)
        raise DataError(f"{folder} holds {names}: keep one table, so that it is clear which counts")
    return tables[0]


def _image_path(folder: Path, table: Path, row: Row) -> Path:
    # Tables that were written on Windows name their images with backslashes.
    # A Mac writes "ö" as two characters, others as one; the name as it stands comes first.
    slashed = row.image.replace("\\", "/")
    forms = (normalize("NFC", slashed), normalize("NFD", slashed))
    for name in (row.image, slashed, *forms):
        for path in (folder / name, folder / "images" / name):
            try:
                if path.is_file():
                    return path
            except (OSError, ValueError):  # a name that no file can have
                continue
    raise DataError(f"{table}: {row.where}: image {shown(row.image)} is not in {folder} or images/")


def _picture(path: Path, table: Path, row: Row) -> _Picture:
    """Read an image and decode it once: an unreadable one is named now, not in round three."""
    try:
        encoded = path.read_bytes()
        return _Picture(encoded, content_of(decode_image(encoded)))
    except OSError as error:
        reason = error.strerror or type(error).__name__
    except DataError as error:
        reason = str(error)
    raise DataError(
        f"{table}: {row.where}: image {shown(row.image)} can't be read: {reason}"
    ) from None


def _codes(values: Sequence[str]) -> tuple[NDArray[np.int64], tuple[str, ...]]:
    names = tuple(sorted(set(values)))
    number = {name: index for index, name in enumerate(names)}
    return np.array([number[value] for value in values], dtype=np.int64), names


def _concepts(captions: Sequence[str], contents: Sequence[bytes]) -> NDArray[np.int64]:
    """Number what pairs show: equal for one caption, and for captions of one image alone.

    The second is for sets with several captions an image, which are all right for it. Captions
    that stand at several images are left apart, or two classes that share one mislabelled image
    would become one.
    """
    shows: dict[str, set[bytes]] = {}
    for caption, content in zip(captions, contents, strict=True):
        shows.setdefault(caption, set()).add(content)
    # The first caption in the alphabet stands for all that an image has for its own.
    stands: dict[bytes, str] = {}
    for caption in sorted(shows):
        if len(shows[caption]) == 1:
            (content,) = shows[caption]
            stands.setdefault(content, caption)
    alone = [
        stands[content] if len(shows[caption]) == 1 else caption
        for caption, content in zip(captions, contents, strict=True)
    ]
    return _codes(alone)[0]


def load_folder(folder: str | Path) -> ImageTextData:
    """Load image–caption pairs from a folder.

    The folder holds one table: `captions.csv`, `.tsv`, `.jsonl` or `.json` (Hugging Face's
    `metadata.*` is read too; see `read_table`) with the columns `image` and `caption`, and
    optionally `domain` and `topic`; images are named relative to the folder or to its `images/`,
    and read as `decode_image` says. Pairs with the same caption count as the same concept, and so
    do captions that stand at the same image alone. Other columns are kept in `more`.

    Args:
        folder: Path of the folder; `~` is the user's home.

    Returns:
        Every pair of the table, in its order.

    Raises:
        DataError: No table or two, no rows, an image missing or unreadable, or a caption missing;
            the message is one line and names the row.
    """
    try:
        folder = Path(folder).expanduser()
    except RuntimeError as error:
        raise DataError(f"{folder}: no home folder is known; write the whole path") from error
    table = _table_of(folder)
    rows = read_table(table)
    read: dict[Path, _Picture] = {}  # a file that several rows name is read once
    pictures = []
    for row in rows:
        path = _image_path(folder, table, row)
        if path not in read:
            read[path] = _picture(path, table, row)
        pictures.append(read[path])
    captions = tuple(row.caption for row in rows)
    domains, domain_names = _codes([row.labels["domain"] for row in rows])
    topics, topic_names = _codes([row.labels["topic"] for row in rows])
    contents = tuple(picture.content for picture in pictures)
    return ImageTextData(
        name=folder.resolve().name,
        encoded=tuple(picture.encoded for picture in pictures),
        captions=captions,
        concepts=_concepts(captions, contents),
        domains=domains,
        topics=topics,
        public=np.zeros(len(rows), dtype=bool),
        domain_names=domain_names,
        topic_names=topic_names,
        contents=contents,
        more={key: tuple(row.more[key] for row in rows) for key in rows[0].more},
    )
