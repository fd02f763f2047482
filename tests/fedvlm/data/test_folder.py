"""A folder of one's own: what is wrong is named with its row."""

import json

import pytest

from fedvlm.data import load_folder
from fedvlm.errors import DataError


def _folder(tmp_path, rows, images=("a.png",)):
    from tests.fedvlm.conftest import draw

    (tmp_path / "images").mkdir()
    for name in images:
        (tmp_path / "images" / name).write_bytes(draw("red", "circle", "filled"))
    (tmp_path / "captions.jsonl").write_text("\n".join(json.dumps(row) for row in rows))
    return tmp_path


def test_shapes(shapes):
    assert len(shapes) == 54
    assert len(set(shapes.concepts.tolist())) == 18
    assert shapes.domain_names == ("filled", "outline", "small")
    assert shapes.arrays(shapes.concepts[:2], 16).shape == (2, 16, 16, 3)


def test_jsonl_and_hugging_face_names(tmp_path):
    data = load_folder(_folder(tmp_path, [{"file_name": "a.png", "text": "one"}]))
    assert data.captions == ("one",)
    assert data.domain_names == ("all",)


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ([{"image": "a.png"}], r"row 1 \(a.png\) has no caption"),
        ([{"image": "a.png", "caption": "  "}], "has no caption"),
        ([{"caption": "x"}], "row 1 names no image"),
        ([{"image": "b.png", "caption": "x"}], "row 1: image b.png is not in"),
        ([], "no rows"),
    ],
)
def test_broken_rows(tmp_path, rows, message):
    with pytest.raises(DataError, match=message):
        load_folder(_folder(tmp_path, rows))


def test_no_table(tmp_path):
    with pytest.raises(DataError, match=r"no captions.csv or captions.jsonl"):
        load_folder(tmp_path)


def test_a_corrupt_image_is_found_at_load(tmp_path):
    folder = _folder(tmp_path, [{"image": "a.png", "caption": "torn"}])
    path = folder / "images" / "a.png"
    path.write_bytes(path.read_bytes()[:60])
    with pytest.raises(DataError, match="image 0 .'torn'. can't be read"):
        load_folder(folder)


def test_a_broken_line_is_numbered(tmp_path):
    folder = _folder(tmp_path, [])
    (folder / "captions.jsonl").write_text("\n{not json}\n")
    with pytest.raises(DataError, match="line 2 is not JSON"):
        load_folder(folder)


def test_the_fingerprint_sees_every_change(shapes, shapes_folder, tmp_path):
    import shutil

    assert load_folder(shapes_folder).fingerprint == shapes.fingerprint
    copy = tmp_path / shapes_folder.name
    shutil.copytree(shapes_folder, copy)
    table = copy / "captions.csv"
    table.write_text(table.read_text().replace("a red bar", "a red rod"))
    assert load_folder(copy).fingerprint != shapes.fingerprint
