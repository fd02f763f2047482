"""A folder of one's own: what is wrong is named with its row."""

import json
import os
import sys
import tempfile
from pathlib import Path
from unicodedata import normalize

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fedvlm import cli
from fedvlm.data import load_folder
from fedvlm.errors import DataError


def _drawn(colour="red", shape="circle", style="filled"):
    from tests.fedvlm.conftest import draw

    return draw(colour, shape, style)


def _folder(tmp_path, rows, images=("a.png",)):
    (tmp_path / "images").mkdir(exist_ok=True)
    colours = ("red", "green", "blue", "orange", "purple", "black")
    for name, colour in zip(images, colours, strict=False):
        (tmp_path / "images" / name).write_bytes(_drawn(colour))
    (tmp_path / "captions.jsonl").write_text("\n".join(json.dumps(row) for row in rows))
    return tmp_path


def test_shapes(shapes):
    assert len(shapes) == 54
    assert len(set(shapes.concepts.tolist())) == 18
    assert shapes.domain_names == ("filled", "outline", "small")
    assert shapes.arrays(shapes.concepts[:2], 16).shape == (2, 16, 16, 3)


def test_jsonl_and_hugging_face_names(tmp_path):
    data = load_folder(_folder(tmp_path, [{"file_name": "a.png", "text": "one", "age": 3}]))
    assert data.captions == ("one",)
    assert data.domain_names == ("all",)
    assert data.more == {"age": ("3",)}


@pytest.mark.parametrize(("table", "disk"), [("NFC", "NFD"), ("NFD", "NFC")])
def test_d1_names_with_umlauts_in_a_macs_form(tmp_path, table, disk):
    row = {"image": normalize(table, "größe.png"), "caption": "one"}
    assert load_folder(_folder(tmp_path, [row], (normalize(disk, "größe.png"),))).captions == (
        "one",
    )


def test_d1_of_two_names_that_look_alike_the_one_that_stands_there_counts(tmp_path):
    names = tuple(normalize(form, "ä.png") for form in ("NFC", "NFD"))
    data = load_folder(
        _folder(tmp_path, [{"image": name, "caption": "x"} for name in names], names)
    )
    assert tuple(data.encoded) == (_drawn("red"), _drawn("green"))


@pytest.mark.parametrize("line", ["sep=;", '"sep=;"', "SEP=;", "sep=,"])
def test_d1_the_line_that_names_excels_separator(tmp_path, line):
    _folder(tmp_path, [])
    (tmp_path / "captions.jsonl").unlink()
    table = tmp_path / "captions.csv"
    table.write_text(f"\ufeff{line}\r\nimage;caption\r\na.png;one, two\r\n", encoding="utf-8")
    assert load_folder(tmp_path).captions == ("one, two",)
    table.write_text(f"{line}\nimage;caption\na.png;one;two\n")
    with pytest.raises(DataError, match=r"row 1 \(line 3\) has 3 fields"):
        load_folder(tmp_path)


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ([{"image": "a.png"}], r"row 1 \(a.png\) has no caption"),
        ([{"image": "a.png", "caption": "  "}], "has no caption"),
        ([{"caption": "x"}], "row 1 names no image"),
        ([{"image": "b.png", "caption": "x"}], "row 1: image b.png is not in"),
        ([{"image": "x" * 5000, "caption": "x"}], "row 1: image x{60}… is not in"),
        ([{"image": "a\n.png", "caption": "x"}], r"row 1: image 'a\\n.png' is not in"),
        ([], "no rows"),
    ],
)
def test_broken_rows(tmp_path, rows, message):
    with pytest.raises(DataError, match=message):
        load_folder(_folder(tmp_path, rows))


def test_no_table(tmp_path):
    with pytest.raises(DataError, match=r"no captions.csv or captions.jsonl"):
        load_folder(tmp_path)
    with pytest.raises(DataError, match=r"no captions.csv .* no such folder"):
        load_folder(tmp_path / "missing")
    (tmp_path / "file").touch()
    with pytest.raises(DataError, match="is a file; data is the folder"):
        load_folder(tmp_path / "file")


def test_two_tables_are_one_too_many(tmp_path):
    folder = _folder(tmp_path, [{"image": "a.png", "caption": "x"}])
    (folder / "metadata.csv").write_text("image,caption\na.png,y\n")
    with pytest.raises(DataError, match=r"holds captions.jsonl and metadata.csv: keep one"):
        load_folder(folder)


def test_d1_the_home_folder(tmp_path, monkeypatch):
    _folder(tmp_path, [{"image": "a.png", "caption": "x"}])
    monkeypatch.setenv("HOME", str(tmp_path.parent))
    assert load_folder(f"~/{tmp_path.name}").captions == ("x",)


def test_names_as_windows_writes_them(tmp_path):
    folder = _folder(tmp_path, [{"image": "images\\a.png", "caption": "x"}])
    (folder / "captions.jsonl").rename(folder / "Captions.JSONL")
    assert load_folder(folder).captions == ("x",)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "broken: image file is truncated"),
        (b"", "the file is empty"),
        (b"\0" * 128 + b"DICM", "a DICOM file"),
        (b"<svg></svg>", "an SVG drawing"),
    ],
)
def test_d2_an_image_that_cannot_be_read_is_named_with_its_row(tmp_path, content, message):
    folder = _folder(tmp_path, [{"image": n, "caption": n} for n in "ab"], images="ab")
    path = folder / "images" / "b"
    path.write_bytes(path.read_bytes()[:60] if content is None else content)
    with pytest.raises(DataError, match=f"row 2: image b can't be read: {message}"):
        load_folder(folder)


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read everything")
def test_a_file_that_may_not_be_read_is_named(tmp_path):
    folder = _folder(tmp_path, [{"image": "a.png", "caption": "x"}])
    (folder / "images" / "a.png").chmod(0)
    with pytest.raises(DataError, match="row 1: image a.png can't be read: Permission denied"):
        load_folder(folder)


def test_a_broken_line_is_numbered(tmp_path):
    folder = _folder(tmp_path, [])
    (folder / "captions.jsonl").write_text("\n{not json}\n")
    with pytest.raises(DataError, match="line 2 is not JSON"):
        load_folder(folder)


def test_several_captions_of_one_image_are_one_concept(tmp_path):
    # But for a caption that stands at two images: it would join what isn't the same.
    told = [("a", "one"), ("a", "two"), ("b", "three"), ("b", "both"), ("a", "both"), ("c", "four")]
    rows = [{"image": name, "caption": caption} for name, caption in told]
    concepts = load_folder(_folder(tmp_path, rows, images="abc")).concepts.tolist()
    assert concepts[0] == concepts[1]
    assert concepts[3] == concepts[4]
    assert len(set(concepts)) == 4


def test_d3_one_mislabelled_copy_does_not_make_two_classes_one(tmp_path):
    told = [("a", "normal"), ("b", "normal"), ("b", "ill"), ("c", "ill")]
    data = load_folder(
        _folder(tmp_path, [{"image": n, "caption": c} for n, c in told], images="abc")
    )
    assert data.concepts.tolist() == [1, 1, 0, 0]
    assert data.groups.tolist() == [0, 1, 1, 2]


def test_d3_groups_see_copies_under_other_names_and_formats(tmp_path):
    from PIL import Image

    folder = _folder(tmp_path, [{"image": n, "caption": n} for n in "abcd"], images="abcd")
    images = folder / "images"
    Image.open(images / "a").save(images / "b", "TIFF")
    (images / "c").write_bytes((images / "a").read_bytes())
    assert load_folder(folder).groups.tolist() == [0, 0, 0, 1]


def test_the_fingerprint_sees_every_change(shapes, shapes_folder, tmp_path):
    import shutil

    assert load_folder(shapes_folder).fingerprint == shapes.fingerprint
    copy = tmp_path / shapes_folder.name
    shutil.copytree(shapes_folder, copy)
    table = copy / "captions.csv"
    table.write_text(table.read_text().replace("a red bar", "a red rod"))
    assert load_folder(copy).fingerprint != shapes.fingerprint


def test_d2_the_fingerprint_sees_how_images_were_decoded(shapes):
    from dataclasses import replace

    contents = (b"another tone curve", *shapes.contents[1:])
    assert replace(shapes, contents=contents).fingerprint != shapes.fingerprint


_word = st.one_of(st.text(max_size=8), st.sampled_from(["a", "b", "c", "images", "..", "/", "~"]))
_rows = st.lists(
    st.dictionaries(st.sampled_from(["image", "caption", "domain"]), _word, max_size=3), max_size=4
)


@settings(max_examples=100, deadline=None)
@given(_rows, st.binary(max_size=40))
def test_any_folder_is_loaded_or_refused_in_one_line(rows, junk):
    with tempfile.TemporaryDirectory() as name:
        folder = _folder(Path(name), rows, images="ab")
        (folder / "images" / "c").write_bytes(junk)
        message = ""
        try:
            data = load_folder(folder)
        except DataError as error:
            message = str(error)
            assert message
        else:
            assert len(data) == len(rows)
            assert len(data.fingerprint) == 64
        assert message.isprintable()


@pytest.mark.parametrize(
    "table",
    [
        b"image,caption\na.png,one, two\n",
        b"\xff\xfe\x00",
        b"",
        b"picture\n",
        "image,caption\na.png,grün".encode("latin-1"),
        b'image,caption\na.png,"one\n',
        b"image,caption\nb.png,one\n",
        b"image,caption\na.png,one\n",
    ],
)
def test_d1_the_command_line_ends_with_one_line_and_code_2(tmp_path, monkeypatch, capsys, table):
    # The last table is right, and its data too small for a split: that is refused alike.
    folder = _folder(tmp_path, [])
    (folder / "captions.jsonl").unlink()
    (folder / "captions.csv").write_bytes(table)
    monkeypatch.setattr(sys, "argv", ["fedvlm", "simulate", "--set", f"data={folder}"])
    with pytest.raises(SystemExit) as caught:
        cli.main()
    assert caught.value.code == 2
    said = capsys.readouterr()
    assert said.out == ""
    assert len(said.err.splitlines()) == 1
    assert said.err.startswith("error: ")


def test_d12_memory_grows_with_the_text(shapes):
    import tracemalloc
    from dataclasses import replace

    captions = ("a long one " * 20_000, *(f"caption {n}" for n in range(53)))
    data = replace(shapes, captions=captions)
    tracemalloc.start()
    distinct, caption_of = data.distinct_captions
    used = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert used < 100_000  # 48 MB where each caption takes the room of the longest
    assert [distinct[i] for i in caption_of] == list(captions)
    assert caption_of.dtype == np.int64
