"""A folder of one's own: images and a table of captions."""

import re
from collections.abc import Sequence
from pathlib import Path
from unicodedata import normalize

import numpy as np
from numpy.typing import NDArray

from fedvlm.data.arrow import read_arrow, saved_form
from fedvlm.data.blobs import FileSource, LazyBlobs, Source, examined
from fedvlm.data.dataset import ImageTextData
from fedvlm.data.table import Record, Row, checked_rows, read_table, shown
from fedvlm.errors import DataError

_STEMS = ("captions", "metadata")
_SUFFIXES = (".csv", ".tsv", ".jsonl", ".json")
_IMAGES = (
    ".png", ".jpg", ".jpeg", ".webp", ".avif", ".gif", ".bmp", ".tif", ".tiff", ".ppm", ".pgm",
    ".jp2",
)  # fmt: skip


def _table_of(folder: Path) -> Path | None:
    """Return the folder's only table; None where it has none."""
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
        return None
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


def _by_table(folder: Path, table: Path) -> tuple[Source, list[Row], NDArray[np.int64]]:
    """Read a table of captions beside images; a file that several rows name is one image."""
    rows = read_table(table)
    places: dict[Path, int] = {}
    numbers = [places.setdefault(_image_path(folder, table, row), len(places)) for row in rows]
    return FileSource(tuple(places)), rows, np.array(numbers, dtype=np.int64)


def _by_class(folder: Path) -> tuple[Source, list[Row], NDArray[np.int64]]:
    """Read images that lie in a folder a class: the class's name is caption and topic.

    One more level above (train, test) is taken as it is: parts are made by this library.

    Raises:
        DataError: There is no such folder with images in it.
    """
    files = [
        path
        for path in sorted(folder.rglob("*"))
        if path.suffix.lower() in _IMAGES
        and path.parent != folder
        and path.is_file()
        # Hidden folders and files are a system's own.
        and not any(part.startswith(".") for part in path.relative_to(folder).parts)
    ]
    if len({path.parent.name for path in files}) < 2:  # `images/` alone is no class
        raise DataError(
            f"{folder}: no captions.csv or captions.jsonl in this folder (.tsv, .json and "
            "metadata.* are read too; so are folders of images by class, Parquet, Arrow, tar, and "
            "what datasets saves)"
        )
    records = []
    for path in files:
        name = re.sub(r"[_\s]+", " ", path.parent.name).strip()
        where = str(path.relative_to(folder))
        records.append(Record(shown(where), {"image": where, "caption": name, "topic": name}))
    return FileSource(tuple(files)), checked_rows(folder, records), np.arange(len(files))


def load_folder(folder: str | Path) -> ImageTextData:
    """Load image–caption pairs from a folder.

    The images stay where they are; each is read and decoded once here, and again when it is asked
    for. What it shows is kept in the cache folder, so that a large folder is decoded here once.

    Besides, folders in Hugging Face's forms are taken as they are: what `datasets` saves, Parquet,
    Arrow and WebDataset's tars (all by the package `datasets`), and images in a folder a class.

    Else the folder holds one table: `captions.csv`, `.tsv`, `.jsonl` or `.json` (Hugging Face's
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
    form = saved_form(folder) if table is None else None
    if table is not None:
        source, rows, numbers = _by_table(folder, table)
    elif form is not None:
        source, rows, numbers = read_arrow(folder, form)
    else:
        source, rows, numbers = _by_class(folder)
    first = dict(zip(reversed(numbers.tolist()), reversed(rows), strict=True))

    def refusal(number: int, reason: str) -> DataError:
        row = first[number]
        return DataError(
            f"{table or folder}: {row.where}: image {shown(row.image)} can't be read: {reason}"
        )

    digests, shows = examined(source, refusal)
    contents = tuple(shows[number] for number in numbers)
    captions = tuple(row.caption for row in rows)
    domains, domain_names = _codes([row.labels["domain"] for row in rows])
    topics, topic_names = _codes([row.labels["topic"] for row in rows])
    return ImageTextData(
        name=folder.resolve().name,
        encoded=LazyBlobs(source, numbers, digests),
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
