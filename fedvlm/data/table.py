"""A table of captions as text files have it: CSV, TSV, JSON Lines or a JSON array.

A table is read as it stands or refused; nothing is guessed that could cut a caption short. The
message of a refusal is one line that names the row.
"""

import codecs
import csv
import io
import json
import math
import re
import threading
import unicodedata
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fedvlm.errors import DataError

IMAGE_KEYS = ("image", "file_name", "filename", "file", "path", "image_path", "image_name")
CAPTION_KEYS = ("caption", "text", "comment")
LABEL_KEYS = ("domain", "topic")

_DELIMITERS = (",", ";", "\t", "|")
_NAMES = {",": "comma", ";": "semicolon", "\t": "tab", "|": "bar"}
# What spreadsheets write or need as a first line of its own; the header decides all the same.
_SEPARATOR_LINE = re.compile(r'\A"?sep=."?(?=[\r\n])', re.IGNORECASE)
_BOMS = (  # UTF-32's little end starts like UTF-16's: it must come first
    (codecs.BOM_UTF8, "utf-8"),
    (codecs.BOM_UTF32_LE, "utf-32-le"),
    (codecs.BOM_UTF32_BE, "utf-32-be"),
    (codecs.BOM_UTF16_LE, "utf-16-le"),
    (codecs.BOM_UTF16_BE, "utf-16-be"),
)
_SHOWN = 60
_field_limit = threading.Lock()  # csv keeps one limit for the whole process


@dataclass(frozen=True)
class Row:
    """One pair of a table, as it was written.

    Attributes:
        where: The row in words, for messages: "row 3".
        image: Name of the image file, not empty.
        caption: The caption, not empty; line breaks in it are kept.
        labels: `domain` and `topic`, "all" where the table doesn't say.
        more: Every other column by its name in small letters, as text.
    """

    where: str
    image: str
    caption: str
    labels: Mapping[str, str]
    more: Mapping[str, str]


@dataclass(frozen=True)
class Record:
    """A row before it is checked: values by normalised column name."""

    where: str
    values: Mapping[str, Any]


def shown(value: Any) -> str:
    """Return a value as one short line for a message: nothing in it can break the line."""
    text = value if isinstance(value, str) and value.isprintable() else repr(value)
    return text if len(text) <= _SHOWN else f"{text[:_SHOWN]}…"


def _text(table: Path) -> str:
    """Decode a table, by its byte order mark or as UTF-8.

    Raises:
        DataError: It can't be read, or is neither.
    """
    try:
        raw = table.read_bytes()
    except OSError as error:
        raise DataError(f"can't read {table}: {error.strerror}") from error
    encoding, start = next(((e, len(b)) for b, e in _BOMS if raw.startswith(b)), ("utf-8", 0))
    raw = raw[start:]
    if encoding == "utf-8" and b"\0" in raw:
        raise DataError(
            f"{table}: holds zero bytes, as UTF-16 without a byte order mark does; save the table "
            "as UTF-8"
        )
    try:
        return raw.decode(encoding)
    except UnicodeDecodeError as error:
        line = raw[: error.start].decode(encoding, "replace").count("\n") + 1
        fix = f"; if it is Latin-1: iconv -f latin1 -t utf-8 {shown(table.name)}"
        raise DataError(
            f"{table}: line {line} is not {encoding.upper()} (byte 0x{raw[error.start]:02x}); save "
            f"the table as UTF-8{fix if encoding == 'utf-8' else ''}"
        ) from error


def _key(name: Any) -> str:
    """Normalise a column's name: "File Name" and "file-name" are file_name."""
    return re.sub(r"[\s\-]+", "_", str(name).strip()).casefold()


def _chosen(keys: tuple[str, ...], columns: Mapping[str, Any] | set[str]) -> str | None:
    return next((key for key in keys if key in columns), None)


def _cells(text: str, delimiter: str) -> Iterator[tuple[int, list[str]]]:
    """Yield (line, cells) of each row that isn't blank; quotes must be right."""
    with _field_limit:
        before = csv.field_size_limit(2**31 - 1)
        try:
            # Line breaks are the reader's: it keeps those within quotes, and only CR and LF end
            # a row (str.splitlines would end it at a form feed too).
            reader = csv.reader(io.StringIO(text, newline=""), delimiter=delimiter, strict=True)
            rows = [(reader.line_num, cells) for cells in reader]
        finally:
            csv.field_size_limit(before)
    for line, cells in rows:
        if any(cell.strip() for cell in cells):
            yield line, cells


def _header(table: Path, text: str) -> tuple[str, list[str]]:
    """Return delimiter and first row: the delimiter under which both columns are there."""
    line = next((line for line in re.split(r"[\r\n]+", text) if line.strip()), "")
    if not line:
        raise DataError(f"{table}: the table has no rows")
    for delimiter in ("\t",) if table.suffix.lower() == ".tsv" else _DELIMITERS:
        try:
            cells = next((cells for _, cells in _cells(line, delimiter)), [])
        except csv.Error:
            continue
        keys = {_key(cell) for cell in cells}
        if _chosen(IMAGE_KEYS, keys) and _chosen(CAPTION_KEYS, keys):
            return delimiter, cells
    raise DataError(
        f"{table}: the first line must name the columns, among them 'image' and 'caption'; it is: "
        f"{shown(line)}"
    )


def _read_separated(table: Path, text: str) -> Iterator[Record]:
    text = _SEPARATOR_LINE.sub("", text)  # its line break stays, so that lines keep their numbers
    delimiter, header = _header(table, text)
    keys = [_key(cell) for cell in header]
    double = next((key for key in keys if key and keys.count(key) > 1), None)
    if double:
        raise DataError(f"{table}: the first line names column {shown(double)!r} twice")
    caption = keys.index(_chosen(CAPTION_KEYS, set(keys)) or "")
    number = line = 0
    try:
        for line, cells in _cells(text, delimiter):
            if number == 0:  # the header itself
                number = 1
                continue
            where = f"row {number}"
            number += 1
            if len(cells) != len(header):
                raise DataError(
                    f"{table}: {where} (line {line}) has {len(cells)} fields where the first line "
                    f"names {len(header)}, separated by {_NAMES[delimiter]}s; put a caption that "
                    f"holds one in double quotes: {shown(delimiter.join(cells))}"
                )
            _refuse_cut_caption(table, where, header, cells, caption)
            yield Record(where, dict(zip(keys, cells, strict=True)))
    except csv.Error as error:
        raise DataError(
            f"{table}: quotes are wrong somewhere in or after row {max(number, 1)} ({error}); a "
            'field that holds a quote is put in quotes, and the quote doubled: "a ""big"" dog"'
        ) from error


def _refuse_cut_caption(
    table: Path, where: str, header: list[str], cells: list[str], caption: int
) -> None:
    """Refuse a row whose caption looks cut at its own comma, the rest in the next column.

    `a.png,a dog, running` has as many fields as `image,caption,domain` asks for. The space tells.
    """
    if cells[caption][:1].isspace() or caption + 1 >= len(cells):
        return
    following, name = cells[caption + 1], header[caption + 1]
    if following[:1] == " " and following.strip() and name[:1] != " ":
        raise DataError(
            f"{table}: {where}: column {shown(name)} is {shown(following)!r}, with a space before "
            "it; if it is part of the caption, put the caption in double quotes, else remove the "
            "space"
        )


def _distinct(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """Make a JSON object of its members, none of which may come twice."""
    found = dict(pairs)
    if len(found) != len(pairs):
        raise ValueError("a key comes twice in one object")
    return found


def _parse(table: Path, text: str, what: str) -> Any:
    try:
        return json.loads(text, object_pairs_hook=_distinct)
    except json.JSONDecodeError as error:
        at = "" if what.startswith("line") else f" (line {error.lineno})"
        raise DataError(f"{table}: {what} is not JSON: {error.msg}{at}") from error
    except (ValueError, RecursionError) as error:
        reason = "too deep" if isinstance(error, RecursionError) else str(error)
        raise DataError(f"{table}: {what} is not JSON that can be read: {reason}") from error


def _read_json(table: Path, text: str) -> Iterator[Record]:
    """Read one array of objects, or an object a line."""
    if text.lstrip().startswith("["):
        objects = _parse(table, text, "the file")
    else:
        # Only CR and LF end a line here too: a JSON string may hold any other break.
        lines = enumerate(re.split(r"\r\n|\r|\n", text), 1)
        objects = [_parse(table, line, f"line {n}") for n, line in lines if line.strip()]
    for number, one in enumerate(objects, 1):
        if not isinstance(one, dict):
            raise DataError(
                f"{table}: row {number} must be an object with 'image' and 'caption'; it is "
                f"{_kind(one)}: {shown(one)}"
            )
        values = {_key(name): value for name, value in one.items()}
        if len(values) != len(one):
            raise DataError(f"{table}: row {number} names a column twice: {shown(list(one))}")
        yield Record(f"row {number}", values)


def _kind(value: Any) -> str:
    """Name a JSON value's kind."""
    if isinstance(value, float) and not math.isfinite(value):
        return "not a number"
    kinds = ((bool, "true or false"), (str, "a text"), (int | float, "a number"), (list, "a list"))
    return next((name for kind, name in kinds if isinstance(value, kind)), "an object")


def _refuse_unwritable(table: Path, where: str, what: str, text: str) -> None:
    """Refuse text that no file or terminal can hold: half characters and control characters."""
    for character in text:
        kind = unicodedata.category(character)
        if kind == "Cs" or (kind == "Cc" and not character.isspace()):
            name = "half of a character" if kind == "Cs" else "a control character"
            raise DataError(
                f"{table}: {where}: {what} holds {name} (U+{ord(character):04X}); remove it"
            )


def _required(table: Path, record: Record, key: str, what: str) -> str:
    value = record.values.get(key)
    if not isinstance(value, str | None):
        raise DataError(
            f"{table}: {record.where}: {what} must be a text; it is {_kind(value)}: {shown(value)}"
        )
    text = (value or "").strip()
    _refuse_unwritable(table, record.where, what, text)
    return text


def _label(table: Path, record: Record, key: str) -> str:
    value = record.values.get(key)
    if isinstance(value, list | dict) or (isinstance(value, float) and not math.isfinite(value)):
        raise DataError(
            f"{table}: {record.where}: {key} must be a text or a number; it is {_kind(value)}: "
            f"{shown(value)}"
        )
    text = "" if value is None else str(value).strip()
    _refuse_unwritable(table, record.where, key, text)
    return text or "all"


def _plain(value: Any) -> str:
    if isinstance(value, str):
        return value
    return "" if value is None else json.dumps(value)


def read_table(table: Path) -> list[Row]:
    """Read a table of captions.

    CSV is separated by commas, semicolons, bars or tabs (`.tsv`: tabs), its first line names the
    columns, and quoting is strict. JSON is an array of objects, or an object a line. Names of
    columns may have capitals and spaces; `IMAGE_KEYS`, `CAPTION_KEYS` are taken in their order.

    Args:
        table: A file ending in .csv, .tsv, .json or .jsonl, in UTF-8, or in UTF-16 or UTF-32 with
            a byte order mark.

    Returns:
        The rows in the file's order, at least one; blank rows are left out.

    Raises:
        DataError: The file can't be read or decoded; a row has other fields than the first line
            names, no image, no caption, or a value that is no text. One line, naming the row.
    """
    text = _text(table)
    separated = table.suffix.lower() in (".csv", ".tsv")
    return checked_rows(table, list((_read_separated if separated else _read_json)(table, text)))


def checked_rows(table: Path, records: Sequence[Record]) -> list[Row]:
    """Check rows, wherever they were read from.

    Args:
        table: What messages name.
        records: Values by normalised column name, as they were written.

    Returns:
        The rows in their order, at least one.

    Raises:
        DataError: As `read_table`.
    """
    if not records:
        raise DataError(f"{table}: the table has no rows")
    columns = {key: None for record in records for key in record.values}
    image = _chosen(IMAGE_KEYS, columns) or IMAGE_KEYS[0]
    caption = _chosen(CAPTION_KEYS, columns) or CAPTION_KEYS[0]
    others = [key for key in columns if key and key not in (image, caption, *LABEL_KEYS)]
    rows = []
    for record in records:
        name = _required(table, record, image, "image")
        its = f"; its columns are {shown(list(record.values))}"
        if not name:
            raise DataError(f"{table}: {record.where} names no image (column '{image}'){its}")
        words = _required(table, record, caption, "caption")
        if not words:
            raise DataError(
                f"{table}: {record.where} ({shown(name)}) has no caption (column '{caption}')"
                f"{'' if caption in record.values else its}"
            )
        labels = {key: _label(table, record, key) for key in LABEL_KEYS}
        more = {key: _plain(record.values.get(key)) for key in others}
        rows.append(Row(record.where, name, words, labels, more))
    return rows
