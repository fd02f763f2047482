"""Hugging Face's forms of data: the same pairs as the folder's, split alike, lazily read."""

import io
import json
import tarfile

import numpy as np
import pytest
from PIL import Image

from fedvlm.data import load_folder, make_splits
from fedvlm.data.blobs import LazyBlobs
from fedvlm.errors import DataError
from fedvlm.seeds import ExperimentSeed

datasets = pytest.importorskip("datasets")


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("FEDVLM_CACHE", str(tmp_path / "cache"))


def _table(shapes):
    """The shapes as columns, images as encoded bytes."""
    return {
        "image": [{"bytes": blob, "path": None} for blob in shapes.encoded],
        "caption": list(shapes.captions),
        "domain": [shapes.domain_names[d] for d in shapes.domains],
        "topic": [shapes.topic_names[t] for t in shapes.topics],
    }


def _dataset(columns):
    features = datasets.Features(
        {k: datasets.Image() if k == "image" else datasets.Value("string") for k in columns}
    )
    return datasets.Dataset.from_dict(columns, features=features)


def _tar(path, shapes, suffix="txt"):
    with tarfile.open(path, "w") as tar:
        for number, blob in enumerate(shapes.encoded):
            text = shapes.captions[number]
            told = {"caption": text, "domain": shapes.domain_names[shapes.domains[number]]}
            content = text.encode() if suffix == "txt" else json.dumps(told).encode()
            for name, part in ((f"{number:04}.png", blob), (f"{number:04}.{suffix}", content)):
                info = tarfile.TarInfo(name)
                info.size = len(part)
                tar.addfile(info, io.BytesIO(part))


def _write(form, folder, shapes):
    folder.mkdir(exist_ok=True)
    data = _dataset(_table(shapes))
    if form == "saved":
        data.save_to_disk(str(folder))
    elif form == "splits":
        parts = {"train": data.select(range(40)), "test": data.select(range(40, 54))}
        datasets.DatasetDict(parts).save_to_disk(str(folder))
    elif form == "parquet":
        (folder / "data").mkdir()
        data.select(range(30)).to_parquet(str(folder / "data" / "part-0.parquet"))
        data.select(range(30, 54)).to_parquet(str(folder / "data" / "part-1.parquet"))
    else:
        _tar(folder / "shard-0.tar", shapes, form)


@pytest.mark.parametrize("form", ["saved", "splits", "parquet", "txt", "json"])
def test_every_form_holds_the_folder_s_pairs(form, tmp_path, shapes):
    folder = tmp_path / "data"
    _write(form, folder, shapes)
    found = load_folder(folder)
    assert found.captions == shapes.captions
    assert found.contents == shapes.contents
    assert list(found.encoded) == list(shapes.encoded)
    assert isinstance(found.encoded, LazyBlobs)
    if form in ("saved", "splits", "parquet"):
        assert found.fingerprint == shapes.fingerprint
        ours, theirs = (
            make_splits(x, ExperimentSeed(0), clients=3, partition="iid") for x in (found, shapes)
        )
        assert ours.fingerprint == theirs.fingerprint
    assert np.array_equal(np.asarray(found.image(7)), np.asarray(shapes.image(7)))


def test_several_captions_of_an_image_are_pairs_of_one_group(tmp_path, shapes):
    columns = _table(shapes)
    columns["captions"] = [[text, f"{text} again"] for text in columns.pop("caption")]
    features = datasets.Features(
        {k: datasets.Value("string") for k in columns}
        | {"image": datasets.Image(), "captions": datasets.List(datasets.Value("string"))}
    )
    datasets.Dataset.from_dict(columns, features=features).save_to_disk(str(tmp_path / "data"))
    found = load_folder(tmp_path / "data")
    assert len(found) == 108
    assert found.groups[::2].tolist() == found.groups[1::2].tolist() == list(range(54))
    assert found.concepts[0] != found.concepts[1]  # these captions stand at several images


def test_classes_are_captions_and_topics(tmp_path, shapes):
    features = datasets.Features(
        {"image": datasets.Image(), "label": datasets.ClassLabel(names=["big_cat", "dog"])}
    )
    columns = {"image": _table(shapes)["image"], "label": [n % 2 for n in range(54)]}
    datasets.Dataset.from_dict(columns, features=features).save_to_disk(str(tmp_path / "data"))
    found = load_folder(tmp_path / "data")
    assert found.captions[:2] == ("big cat", "dog")
    assert found.topic_names == ("big cat", "dog")


def test_a_folder_of_classes_needs_no_package(tmp_path, shapes, monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "datasets", None)
    for number, blob in enumerate(shapes.encoded):
        place = tmp_path / "data" / ("train" if number % 3 else "test")
        place = place / shapes.captions[number].replace(" ", "_")
        place.mkdir(parents=True, exist_ok=True)
        (place / f"{number}.png").write_bytes(blob)
    (tmp_path / "data" / ".thumbs" / "x").mkdir(parents=True)
    (tmp_path / "data" / ".thumbs" / "x" / "0.png").write_bytes(shapes.encoded[0])
    found = load_folder(tmp_path / "data")
    assert sorted(found.captions) == sorted(shapes.captions)
    assert sorted(found.contents) == sorted(shapes.contents)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda c: c.update(caption=["", *c["caption"][1:]]), "row 1 .* has no caption"),
        (lambda c: c.update(caption=["a\0b", *c["caption"][1:]]), "control character"),
        (lambda c: c.update(image=[None, *c["image"][1:]]), "holds no image"),
        (
            lambda c: c.update(image=[*c["image"][:5], {"bytes": b"x", "path": None}] * 9),
            "row 6: image row 6 can't be read: not an image",
        ),
        (lambda c: c.pop("caption"), "no column of captions"),
    ],
)
def test_what_can_t_be_meant_is_named(tmp_path, shapes, change, words):
    columns = _table(shapes)
    change(columns)
    _dataset(columns).save_to_disk(str(tmp_path / "data"))
    with pytest.raises(DataError, match=words) as error:
        load_folder(tmp_path / "data")
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("path", "words"), [("http://x/y.png", "nothing is fetched"), ("none.png", "No such file")]
)
def test_images_that_are_named_and_not_held(tmp_path, shapes, path, words):
    columns = _table(shapes)
    columns["image"][2] = {"bytes": None, "path": path}
    (tmp_path / "data").mkdir()
    # As a struct: as images, `datasets` would look for the files while it saves.
    datasets.Dataset.from_dict(columns).to_parquet(str(tmp_path / "data" / "a.parquet"))
    with pytest.raises(DataError, match=f"row 3.*{words}"):
        load_folder(tmp_path / "data")


@pytest.mark.parametrize("name", ["part.parquet", "shard.tar", "part.arrow"])
def test_files_that_are_torn(tmp_path, name):
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / name).write_bytes(b"PAR1 torn")
    with pytest.raises(DataError, match="can't read it") as error:
        load_folder(tmp_path / "data")
    assert "\n" not in str(error.value)


def test_without_the_package(tmp_path, shapes, monkeypatch):
    _write("parquet", tmp_path / "data", shapes)
    monkeypatch.setitem(__import__("sys").modules, "datasets", None)
    with pytest.raises(DataError, match=r'pip install "fedvlm\[data\]"'):
        load_folder(tmp_path / "data")


def test_a_picture_that_was_decoded_before_is_not_decoded_again(tmp_path, monkeypatch):
    """Of a large folder, what images show is known by their files' hashes; broken ones aren't."""
    from fedvlm.data import blobs

    monkeypatch.setattr(blobs, "_FEW", 4)
    for label in ("one", "two"):
        (tmp_path / "data" / label).mkdir(parents=True)
        for number in range(4):
            image = Image.new("RGB", (8, 8), (number * 9, len(label), 0))
            image.save(tmp_path / "data" / label / f"{number}-{label}.png")
    first = load_folder(tmp_path / "data")
    asked = []
    decode = blobs.decode_image
    monkeypatch.setattr(blobs, "decode_image", lambda blob: asked.append(blob) or decode(blob))
    second = load_folder(tmp_path / "data")
    assert not asked
    assert second.fingerprint == first.fingerprint
    Image.new("RGB", (8, 8), "white").save(tmp_path / "data" / "one" / "0-one.png")
    third = load_folder(tmp_path / "data")
    assert len(asked) == 1
    assert third.fingerprint != first.fingerprint
    (tmp_path / "cache" / "contents.sqlite").write_bytes(b"not a database")
    assert load_folder(tmp_path / "data").fingerprint == third.fingerprint


def test_a_file_that_changes_during_a_run_is_noticed(tmp_path):
    for label in ("one", "two"):
        (tmp_path / label).mkdir()
        Image.new("RGB", (8, 8), (len(label), ord(label[0]), 0)).save(tmp_path / label / "a.png")
    data = load_folder(tmp_path)
    Image.new("RGB", (8, 8), "white").save(tmp_path / "one" / "a.png")
    with pytest.raises(DataError, match="changed since"):
        data.image(0)
    (tmp_path / "two" / "a.png").unlink()
    with pytest.raises(DataError, match="can't be read any more"):
        data.image(1)
