"""The embedded set: what it holds, and that its cache is offline, instant and self-mending."""

import time

import numpy as np
import pytest

from fedvlm.data import _drawings, emoji, make_splits
from fedvlm.data.emoji import archive_path, load_emoji
from fedvlm.seeds import ExperimentSeed

pytestmark = pytest.mark.xdist_group("embedded")


@pytest.fixture(scope="module")
def data():
    return load_emoji()


def test_what_it_holds(data):
    assert data.domain_names == (
        "noto", "noto-v1", "twemoji", "emojione", "fluent-flat", "openmoji",
    )  # fmt: skip
    assert len(data) == 8712
    assert len(np.unique(data.concepts)) == 1644
    assert np.bincount(data.domains).min() > 1000
    assert len(data.topic_names) == 8
    assert "cat with tears of joy" in data.captions


def test_about_half_is_public_and_concepts_are_not_torn(data):
    public = {c: data.public[data.concepts == c] for c in np.unique(data.concepts)}
    assert all(flags.all() or not flags.any() for flags in public.values())
    assert 0.45 < np.mean([flags[0] for flags in public.values()]) < 0.55


@pytest.mark.parametrize(
    ("seed", "settings", "fingerprint"),
    [
        (0, {}, "dd1f979ef4d50d57e3ec6ed5"),
        (0, {"membership": "half"}, "44ce1f91c8a62b41e2ac5031"),
        (0, {"partition": "dirichlet"}, "da077d0c7432bc3a9930d4c1"),
        (0, {"partition": "iid", "clients": 5}, "f69bfc14f83a6357efbdddab"),
        (1, {"partition": "quantity"}, "c0e5d37d88dedb592831f7e2"),
        (2, {}, "a49a8d6c2f735377cf91838c"),
    ],
)
def test_its_splits_are_those_of_the_published_results(data, seed, settings, fingerprint):
    assert data.fingerprint == "6cfc0bcf0107e919e4cab4f7d0203c8bc6b0bbcab018caf3d1e5b2b52cbef49b"
    assert make_splits(data, ExperimentSeed(seed), **settings).fingerprint[:24] == fingerprint
    assert len(np.unique(data.groups)) == len(data)


def test_images_are_drawn_and_differ_within_a_style(data):
    rows = np.flatnonzero(data.domains == 2)[:300]
    images = data.arrays(rows, emoji.IMAGE_SIZE)
    assert images.shape == (300, 96, 96, 3)
    flat = images.reshape(300, -1)
    assert (flat.max(axis=1) > flat.min(axis=1)).all()
    assert len(np.unique(flat, axis=0)) == 300


def test_a_second_load_is_offline_and_fast(data, monkeypatch):
    monkeypatch.setenv("PATH", "")
    monkeypatch.setattr(emoji, "fetch", lambda package: pytest.fail("downloads again"))
    start = time.perf_counter()
    again = load_emoji()
    assert time.perf_counter() - start < 5
    assert again.fingerprint == data.fingerprint


def test_a_torn_archive_is_made_anew(data, monkeypatch, tmp_path):
    monkeypatch.setenv("FEDVLM_CACHE", str(tmp_path))
    whole = data
    built = []

    read = emoji._read
    archive_path().write_bytes(b"PK torn")
    monkeypatch.setattr(emoji, "_read", lambda path: whole if built else read(path))
    monkeypatch.setattr(emoji, "_build", lambda path, progress: built.append(path))
    assert load_emoji() is whole
    assert built == [archive_path()]


@pytest.mark.parametrize(
    ("code", "expected"), [("2764-fe0f", "2764"), ("1F3F4-200D-2620-FE0F", "1F3F4-200D-2620")]
)
def test_variation_selectors_are_dropped(code, expected):
    assert _drawings.normalise(code) == expected


def test_aliases_are_followed_and_cycles_end():
    icons = {
        "icons": {"a": {"body": "<path/>"}},
        "aliases": {"b": {"parent": "a"}, "c": {"parent": "d"}, "d": {"parent": "c"}},
        "width": 8,
        "height": 8,
    }
    assert 'viewBox="0 0 8 8"' in str(_drawings.svg_of(icons, "b"))
    assert _drawings.svg_of(icons, "c") is None
    assert _drawings.svg_of(icons, "e") is None
