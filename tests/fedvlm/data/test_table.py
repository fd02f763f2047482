"""D1, tables of captions: what was written is what is read, or one line names the row."""

import csv
import io
import json
import tempfile
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fedvlm.data.table import read_table
from fedvlm.errors import DataError


def _table(folder, content, name="captions.csv"):
    path = Path(folder) / name
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return path


def _refusal(path):
    with pytest.raises(DataError) as caught:
        read_table(path)
    message = str(caught.value)
    assert message.isprintable(), message
    assert len(message) < 500
    return message


def _outcome(content, name):
    """Return the rows, or the message of a refusal."""
    with tempfile.TemporaryDirectory() as folder:
        try:
            return read_table(_table(folder, content, name)), ""
        except DataError as error:
            return [], str(error)


def _captions(path):
    return [row.caption for row in read_table(path)]


@pytest.mark.parametrize("breaks", ["\n", "\r\n", "\r", "\x85", "\x0c", "\x0b", "\x1c", "\u2028"])
def test_d1_a_break_within_quotes_stays_what_it_is(tmp_path, breaks):
    path = _table(tmp_path, f'image,caption\na.png,"a dog{breaks}running"\nb.png,"x, y"\n')
    assert _captions(path) == [f"a dog{breaks}running", "x, y"]


@pytest.mark.parametrize("breaks", ["\x85", "\x0c", "\u2029"])
def test_d1_only_cr_and_lf_end_a_row(tmp_path, breaks):
    path = _table(tmp_path, f"image,caption\na.png,a dog{breaks}running\n")
    assert _captions(path) == [f"a dog{breaks}running"]
    line = json.dumps({"image": "a.png", "caption": f"a{breaks}b"}, ensure_ascii=False)
    path = _table(tmp_path, f"{line}\n{line}\r\n", "captions.jsonl")
    if breaks == "\x0c":  # a control character, which JSON escapes
        assert "\\f" in line
    assert _captions(path) == [f"a{breaks}b"] * 2


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ("image,caption\nb.png,x\na.png,a dog, running\n", r"row 2 (line 3) has 3 fields"),
        ("image,caption,domain\na.png,a dog, running\n", "row 1: column domain is ' running'"),
        ("image,caption,domain,topic\na.png,a dog, running\n", "row 1 (line 2) has 3 fields"),
        ("image,caption\na.png\n", "row 1 (line 2) has 1 fields"),
        ('image,caption\na.png,"a dog\nb.png,a cat\n', "quotes are wrong"),
        ('image,caption\na.png,"a dog\nb.png,"a cat"\n', "quotes are wrong"),
        ('image,caption\na.png,"a \\"big\\" dog"\n', "quotes are wrong"),
        ("image;caption\na.png;one; two\n", "separated by semicolons"),
    ],
)
def test_d1_a_comma_or_quote_that_would_cut_a_caption_is_refused(tmp_path, rows, message):
    assert message in _refusal(_table(tmp_path, rows))


def test_d1_a_table_with_spaces_after_every_comma_is_read(tmp_path):
    path = _table(tmp_path, "image, caption, domain\na.png, a dog, north\n")
    (row,) = read_table(path)
    assert (row.image, row.caption, row.labels["domain"]) == ("a.png", "a dog", "north")


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "utf-32"])
def test_d1_encodings_with_a_byte_order_mark(tmp_path, encoding):
    path = _table(tmp_path, "image,caption\na.png,grün 🐶\n".encode(encoding))
    assert _captions(path) == ["grün 🐶"]


def test_d1_utf_16_of_either_end(tmp_path):
    text = "image;caption\na.png;grün\n"
    for mark, encoding in ((b"\xff\xfe", "utf-16-le"), (b"\xfe\xff", "utf-16-be")):
        assert _captions(_table(tmp_path, mark + text.encode(encoding))) == ["grün"]


def test_d1_other_encodings_are_refused_with_the_fix(tmp_path):
    text = "image,caption\na.png,x\nb.png,grün\n"
    message = _refusal(_table(tmp_path, text.encode("latin-1")))
    assert "line 3 is not UTF-8 (byte 0xfc)" in message
    assert "iconv -f latin1" in message
    assert "zero bytes" in _refusal(_table(tmp_path, text.encode("utf-16-le")))
    broken = b"\xff\xfe" + text.encode("utf-16-le") + b"\x00\xd8\n\x00"
    assert "is not UTF-16-LE" in _refusal(_table(tmp_path, broken))


@pytest.mark.parametrize("delimiter", [",", ";", "\t", "|"])
def test_d1_delimiters_and_variants_of_the_header(tmp_path, delimiter):
    for header in (("Image", "Caption"), (" File Name ", "TEXT"), ("image_name", " comment")):
        content = delimiter.join(header) + "\n" + delimiter.join(("a.png", "one: 1.5")) + "\n"
        (row,) = read_table(_table(tmp_path, content))
        assert (row.image, row.caption) == ("a.png", "one: 1.5")


@pytest.mark.parametrize("name", ["captions.csv", "captions.tsv"])
@pytest.mark.parametrize("first", ["a.png,a dog", "picture,words", "image", "a.png\ta dog"])
def test_d1_a_missing_header_is_shown(tmp_path, first, name):
    message = _refusal(_table(tmp_path, f"{first}\nb.png,a cat\n", name))
    assert "the first line must name the columns" in message
    assert first in message or repr(first) in message


def test_d1_a_column_that_comes_twice_is_refused(tmp_path):
    assert "'caption' twice" in _refusal(_table(tmp_path, "image,caption,Caption\na,b,c\n"))
    row = '{"image": "a.png", "caption": "x", "Caption": "y"}'
    assert "row 1 names a column twice" in _refusal(_table(tmp_path, row, "captions.jsonl"))
    row = '{"image": "a.png", "caption": "x", "caption": "y"}'
    assert "a key comes twice" in _refusal(_table(tmp_path, row, "captions.jsonl"))


def test_d1_one_column_is_the_caption_of_every_row(tmp_path):
    # A row without a caption doesn't borrow the text of another column.
    rows = '{"image": "a.png", "caption": "x"}\n{"image": "b.png", "caption": "", "text": "OCR"}\n'
    assert "row 2 (b.png) has no caption" in _refusal(_table(tmp_path, rows, "captions.jsonl"))


def test_d1_an_array_of_objects_is_rows(tmp_path):
    rows = [{"image": "a.png", "caption": "one", "topic": 3}, {"image": "b.png", "caption": "two"}]
    for name in ("captions.json", "captions.jsonl"):
        for indent in (None, 2):
            found = read_table(_table(tmp_path, json.dumps(rows, indent=indent), name))
            assert [row.caption for row in found] == ["one", "two"]
            assert [row.labels["topic"] for row in found] == ["3", "all"]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ('["a.png", "b"]', "row 1 must be an object"),
        ('["a.png"]\n["b.png"]', "is not JSON"),
        ('"a.png"\n', "row 1 must be an object with 'image' and 'caption'; it is a text"),
        ('{"images": [], "annotations": []}', "row 1 names no image"),
        ("[]", "no rows"),
        ("[" * 100_000, "is not JSON"),
        ('{"image": "a.png",\n "caption": "x"}', "line 1 is not JSON"),
        ("", "no rows"),
    ],
)
def test_d1_other_shapes_of_json(tmp_path, content, message):
    assert message in _refusal(_table(tmp_path, content, "captions.json"))


@pytest.mark.parametrize(
    ("value", "message"),
    [
        ("NaN", "caption must be a text; it is not a number"),
        ("1e999", "it is not a number"),
        ('["a", "b"]', "it is a list"),
        ('{"en": "a"}', "it is an object"),
        ("7", "it is a number"),
        ("true", "it is true or false"),
        ("null", "has no caption"),
        ('" "', "has no caption"),
        (r'"\ud83d dog"', "half of a character (U+D83D)"),
        (r'"a\u0000b"', "a control character (U+0000)"),
        (r'"\u001b[2J"', "a control character (U+001B)"),
        ("1" * 5000, "is not JSON that can be read"),
    ],
)
def test_d1_what_is_no_caption_is_refused_by_row(tmp_path, value, message):
    row = '{"image": "a.png", "caption": %s}'
    rows = "\n".join(row % one for one in ('"x"', value))
    found = _refusal(_table(tmp_path, rows, "captions.jsonl"))
    assert message in found
    assert "row 2" in found or "line 2" in found


def test_d1_a_label_that_is_no_text_is_refused(tmp_path):
    for value in ("NaN", "[1]", "{}"):
        row = f'{{"image": "a.png", "caption": "x", "domain": {value}}}'
        assert "domain must be a text" in _refusal(_table(tmp_path, row, "captions.jsonl"))


def test_d1_a_field_may_be_long(tmp_path):
    long = "word " * 60_000
    limit = csv.field_size_limit()
    assert _captions(_table(tmp_path, f"image,caption\na.png,{long}\n")) == [long.strip()]
    assert csv.field_size_limit() == limit  # the process's own is put back


def test_other_columns_are_kept(tmp_path):
    path = _table(tmp_path, "image,caption,Age Group,\na.png,x,over 60,\n")
    assert read_table(path)[0].more == {"age_group": "over 60"}
    row = json.dumps({"image": "a.png", "caption": "x", "tags": ["a"], "age": 3})
    path = _table(tmp_path, row, "captions.jsonl")
    assert read_table(path)[0].more == {"tags": '["a"]', "age": "3"}


_text = st.text(st.characters(exclude_categories=("Cs", "Cc")), min_size=1).filter(str.strip)
_caption = (
    st.lists(
        st.one_of(_text, st.sampled_from([",", ";", "\n", "\r\n", '"', "\x85", "\x0c", "\t", "|"])),
        min_size=1,
    )
    .map("".join)
    .filter(str.strip)
)


@settings(max_examples=150, deadline=None)
@given(
    st.lists(st.tuples(_text, _caption, _text), min_size=1, max_size=5),
    st.sampled_from([",", ";", "\t", "|"]),
    st.sampled_from(["utf-8", "utf-8-sig", "utf-16"]),
    st.sampled_from(["\n", "\r\n"]),
)
def test_d1_what_a_csv_writer_wrote_is_read(rows, delimiter, encoding, end):
    out = io.StringIO(newline="")
    writer = csv.writer(out, delimiter=delimiter, lineterminator=end, quoting=csv.QUOTE_ALL)
    writer.writerows([("image", "caption", "domain"), *rows])
    found, message = _outcome(out.getvalue().encode(encoding), "captions.csv")
    if message:  # a domain written with a space in front of it
        assert "with a space before it" in message
        assert any(domain.startswith(" ") for _, _, domain in rows)
        return
    assert [(r.image, r.caption, r.labels["domain"]) for r in found] == [
        (image.strip(), caption.strip(), domain.strip()) for image, caption, domain in rows
    ]


_json = st.recursive(
    st.one_of(st.none(), st.booleans(), st.floats(), st.integers(), st.text()),
    lambda inner: st.one_of(st.lists(inner), st.dictionaries(st.text(), inner)),
    max_leaves=8,
)
_keys = st.sampled_from(["image", "caption", "Caption ", "domain", "topic", "extra", ""])
_objects = st.lists(
    st.one_of(_json, st.dictionaries(_keys, st.one_of(_json, _text), max_size=5)), max_size=4
)


@settings(max_examples=250, deadline=None)
@given(
    st.one_of(
        st.binary(max_size=200),
        st.text(max_size=200).map(lambda text: text.encode("utf-8", "surrogatepass")),
        st.text(alphabet='image,caption;\n"\t| x', max_size=80).map(
            lambda text: b"image,caption\n" + text.encode()
        ),
        _objects.map(lambda rows: json.dumps(rows).encode()),
        _objects.map(lambda rows: "\n".join(json.dumps(row) for row in rows).encode()),
    ),
    st.sampled_from(["captions.csv", "captions.tsv", "captions.json", "captions.jsonl"]),
)
def test_d1_anything_is_read_or_refused_in_one_line(content, name):
    rows, message = _outcome(content, name)
    assert bool(rows) != bool(message)
    assert message.isprintable()
    for row in rows:
        assert row.image == row.image.strip() != ""
        assert row.caption == row.caption.strip() != ""
        row.caption.encode()  # no half characters
