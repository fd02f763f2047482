"""Data sets in Hugging Face's forms: saved folders, Parquet, Arrow, and WebDataset's tars.

They are read by the package `datasets`, which maps them into memory; an image is taken out of them
when it is asked for. Nothing is fetched: every file is the folder's own.
"""

import logging
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fedvlm.data.table import CAPTION_KEYS, Record, Row, checked_rows, shown
from fedvlm.errors import DataError
from fedvlm.files import cache_dir

_SAVED = ("dataset_dict.json", "state.json")
_FORMS = {".parquet": "parquet", ".arrow": "arrow", ".tar": "webdataset"}
_CAPTIONS = (*CAPTION_KEYS, "captions", "sentence", "sentences", "txt", "title")
_CLASSES = ("label", "labels", "cls", "class", "fine_label")
_RESERVED = ("__key__", "__url__")


@dataclass(frozen=True)
class ArrowSource:
    """Images in the rows of a table that is mapped into memory.

    Attributes:
        table: A `datasets.Dataset` whose image column isn't decoded.
        column: The image column.
        folder: What relative paths are relative to.
    """

    table: Any
    column: str
    folder: Path

    def __len__(self) -> int:
        return len(self.table)

    def read(self, number: int) -> bytes:
        """Return one row's image as it was encoded."""
        value = self.table[number][self.column]
        if isinstance(value, bytes):
            return value
        if not isinstance(value, Mapping) or not (value.get("bytes") or value.get("path")):
            raise DataError("the row holds no image")
        if value.get("bytes"):
            return value["bytes"]
        named = str(value["path"])
        if "://" in named:
            raise DataError(
                f"the row names {shown(named)}, and nothing is fetched; embed the image"
            )
        path = Path(named)
        return (path if path.is_absolute() else self.folder / path).read_bytes()


def saved_form(folder: Path) -> str | None:
    """Return which of Hugging Face's forms a folder has: saved, parquet, arrow, webdataset."""
    if any((folder / name).is_file() for name in _SAVED):
        return "saved"
    return next((form for suffix, form in _FORMS.items() if _files(folder, suffix)), None)


def _files(folder: Path, suffix: str) -> list[str]:
    """Return a form's files in the folder or its `data/`, as the hub lays them out."""
    for place in (folder, folder / "data"):
        found = sorted(str(p) for p in place.glob(f"*{suffix}") if p.is_file())
        if found:
            return found
    return []


def _package() -> Any:
    try:
        import datasets
    except ImportError as error:
        raise DataError(
            "this folder is read by the package datasets, which isn't installed; install it with: "
            'pip install "fedvlm[data]"'
        ) from error
    return datasets


def _loaded(folder: Path, form: str) -> Any:
    """Return a folder's rows as one `datasets.Dataset`, the splits one behind the other."""
    datasets = _package()
    bars, level = datasets.are_progress_bars_disabled(), datasets.logging.get_verbosity()
    datasets.disable_progress_bars()
    datasets.logging.set_verbosity(logging.CRITICAL)  # what it met is in the one line below
    try:
        if form == "saved":
            found = datasets.load_from_disk(str(folder), keep_in_memory=False)
        else:
            suffix = next(key for key, value in _FORMS.items() if value == form)
            found = datasets.load_dataset(
                form,
                data_files={"train": _files(folder, suffix)},
                split="train",
                cache_dir=str(cache_dir() / "datasets"),
            )
        if isinstance(found, Mapping):
            found = datasets.concatenate_datasets(list(found.values()))
    except Exception as error:  # pyarrow, json, tarfile and datasets each raise their own
        lines = [
            line.strip() for line in str(error.__cause__ or error).splitlines() if line.strip()
        ]
        reason = lines[0] if lines else type(error).__name__
        raise DataError(f"{folder}: datasets can't read it ({form}): {reason[:200]}") from error
    finally:
        datasets.logging.set_verbosity(level)
        if not bars:
            datasets.enable_progress_bars()
    if not len(found):
        raise DataError(f"{folder}: the data set has no rows")
    return found


def _named(columns: Sequence[str], keys: Sequence[str]) -> str | None:
    """Return the first column of one of the names, however it is capitalised."""
    known = {column.casefold(): column for column in columns}
    return next((known[key] for key in keys if key in known), None)


def _image_column(folder: Path, table: Any) -> str:
    datasets = _package()
    images = [n for n, kind in table.features.items() if isinstance(kind, datasets.Image)]
    if len(images) == 1:
        return images[0]
    chosen = _named(images or list(table.features), ("image", "img", "jpg", "png", "jpeg", "webp"))
    if chosen is None:
        what = f"several image columns ({', '.join(images)})" if images else "no image column"
        raise DataError(
            f"{folder}: {what}; name the one that is meant 'image'; its columns are "
            f"{shown(list(table.features))}"
        )
    return chosen


def _spoken(name: str) -> str:
    """Return a class's name as a caption: "African_elephant" is "African elephant"."""
    return re.sub(r"[_\s]+", " ", name).strip()


def read_arrow(folder: Path, form: str) -> tuple[ArrowSource, list[Row], NDArray[np.int64]]:
    """Read a data set in one of Hugging Face's forms.

    Args:
        folder: Its folder.
        form: What `saved_form` says.

    Returns:
        The images, the pairs, and which image a pair has: shape (N,). A row with a list of
        captions is as many pairs of one image; without captions, a class's name is the caption.

    Raises:
        DataError: It can't be read, or a row has no image or caption.
    """
    datasets = _package()
    table = _loaded(folder, form)
    image = _image_column(folder, table)
    others = [name for name in table.features if name != image and name not in _RESERVED]
    plain = table.select_columns(others).to_dict() if others else {}
    for name in list(plain):  # WebDataset's .json beside an image: its keys are columns
        if isinstance(plain[name][0], Mapping) and name == "json":
            rows = plain.pop(name)
            for key in dict.fromkeys(key for row in rows if row for key in row):
                plain.setdefault(key, [(row or {}).get(key) for row in rows])
    caption, label = _named(list(plain), _CAPTIONS), _named(list(plain), _CLASSES)
    if caption is None and label is None:
        raise DataError(
            f"{folder}: no column of captions (caption, text, …) and none of classes (label); its "
            f"columns are {shown(list(table.features))}"
        )
    kind: Any = table.features.get(label) if label else None
    names = kind.names if isinstance(kind, datasets.ClassLabel) else None
    records, numbers = [], []
    for number in range(len(table)):
        values = {key.casefold(): column[number] for key, column in plain.items()}
        if label is not None and names is not None:
            code = plain[label][number]
            known = type(code) is int and 0 <= code < len(names)
            values[label.casefold()] = _spoken(names[code]) if known else None
        found = values.pop((caption or label or "").casefold(), None)
        several = found if isinstance(found, list) and found else [found]
        if caption is None and not isinstance(several[0], str | None):
            several = [str(several[0])]
        for one in several:
            told = {"image": f"row {number + 1}", "caption": one}
            if caption is None:
                told.setdefault("topic", one)
            rest = {k: v for k, v in values.items() if k not in ("image", "caption")}
            records.append(Record(f"row {number + 1}", {**rest, **told}))
            numbers.append(number)
    bare = table.select_columns([image])
    if isinstance(table.features[image], datasets.Image):
        bare = bare.cast_column(image, datasets.Image(decode=False))
    source = ArrowSource(bare, image, folder)
    return source, checked_rows(folder, records), np.array(numbers, dtype=np.int64)
