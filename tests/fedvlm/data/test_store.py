"""Prepared images on disk: found by content, whole or not at all, below a bound, their owner's."""

import hashlib
import os
import stat
import threading

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fedvlm.data import store as stores
from fedvlm.data.store import ArrayStore, cache_limit, clear, describe
from fedvlm.errors import ConfigError, DataError


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("FEDVLM_CACHE", str(tmp_path))
    monkeypatch.setattr(stores, "IN_MEMORY", 0)
    monkeypatch.setattr(stores, "_PACK_BYTES", 1000)
    return tmp_path


def _content(number):
    return hashlib.sha256(str(number).encode()).digest()


def _array(number, size=100):
    return np.full(size, number % 251, dtype=np.uint8)


class Work:
    """Computes arrays and counts them."""

    def __init__(self, numbers):
        self.numbers, self.asked = numbers, []

    def __call__(self, places):
        self.asked += list(places)
        return (_array(self.numbers[place]) for place in places)


def _fill(numbers, key="key"):
    store, work = ArrayStore(key, (100,), np.uint8), Work(numbers)
    assert store.fill([_content(n) for n in numbers], work)
    return store, work


def test_each_content_is_computed_once_in_all_processes():
    store, work = _fill([1, 2, 1, 3])
    assert work.asked == [0, 1, 3]
    found = store.read([_content(n) for n in (3, 1, 2)])
    assert found[:, 0].tolist() == [3, 1, 2]
    again, work = _fill([3, 4, 1])  # another process's: only what is new
    assert work.asked == [1]
    assert again.read([_content(4)])[0, 0] == 4
    _, work = _fill([1], key="another model")
    assert work.asked == [0]


@settings(max_examples=25, deadline=None)
@given(st.lists(st.lists(st.integers(0, 40), max_size=30), min_size=1, max_size=4), st.data())
def test_whatever_is_asked_in_whatever_order(parts, data):
    clear()
    for part in parts:
        store, _ = _fill(part)
        order = data.draw(st.lists(st.sampled_from(part), max_size=9)) if part else []
        found = store.read([_content(n) for n in order])
        assert found[:, 7].tolist() == [n % 251 for n in order]


@pytest.mark.parametrize("keep", [0, 10, 511, 600, -1])
def test_a_file_that_was_cut_off_isn_t_read(keep):
    _fill(range(5))
    for path, _, _ in stores.stored():
        path.write_bytes(path.read_bytes()[:keep])
    store, work = _fill(range(5))
    assert work.asked == list(range(5))
    assert store.read([_content(4)])[0, 0] == 4


def test_what_was_interrupted_leaves_whole_packs_only(cache):
    def broken(places):
        for place in places:
            if place == 12:
                raise KeyboardInterrupt
            yield _array(place)

    store = ArrayStore("key", (100,), np.uint8)
    with pytest.raises(KeyboardInterrupt):
        store.fill([_content(n) for n in range(20)], broken)
    assert not [p for p in cache.rglob("*") if p.is_file() and p.suffix not in (".pack", ".lock")]
    store, work = _fill(range(20))
    assert 0 < len(work.asked) < 20
    assert store.read([_content(n) for n in range(20)])[:, 0].tolist() == list(range(20))


def test_what_was_used_longest_ago_goes_first(monkeypatch):
    _fill(range(10), key="old")
    for path, _, _ in stores.stored():
        os.utime(path, (1, 1))
    _fill(range(10), key="new")
    monkeypatch.setenv("FEDVLM_CACHE_LIMIT", str(sum(s for _, s, _ in stores.stored()) + 500))
    reading, _ = _fill(range(10), key="new")
    _fill(range(3), key="third")
    assert sum(size for _, size, _ in stores.stored()) <= cache_limit()
    assert _fill(range(10), key="new")[1].asked == []
    assert _fill([0], key="third")[1].asked == []
    assert reading.read([_content(9)])[0, 0] == 9


def test_what_never_fits_isn_t_kept_and_the_run_goes_on(monkeypatch, caplog):
    monkeypatch.setenv("FEDVLM_CACHE_LIMIT", "1kb")
    store = ArrayStore("key", (100,), np.uint8)
    assert not store.fill([_content(n) for n in range(20)], Work(range(20)))
    assert not stores.stored()
    assert "leaves no room" in caplog.text


def test_a_reader_outlives_the_deletion_of_its_file():
    store, _ = _fill(range(5))
    clear()
    assert store.read([_content(3)])[0, 0] == 3


def test_arrays_of_another_shape_are_refused():
    store = ArrayStore("key", (100,), np.uint8)
    with pytest.raises(DataError, match="expected an array of uint8"):
        store.fill([_content(0)], lambda _: iter([np.zeros(99, np.uint8)]))
    with pytest.raises(DataError, match="wasn't prepared"):
        store.read([_content(0)])


def test_only_its_owner_can_look():
    _fill([1])
    folder = next(path for path in stores.stores_dir().iterdir() if path.is_dir())
    assert stat.S_IMODE(folder.stat().st_mode) == 0o700


def test_threads_that_fill_at_once_end_with_one_copy():
    found = []
    threads = [
        threading.Thread(target=lambda: found.append(_fill(range(30))[1].asked)) for _ in range(4)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(map(len, found)) == [0, 0, 0, 30]


@pytest.mark.parametrize(("text", "size"), [("20GB", 20 * 10**9), ("1.5 mb", 1500000), ("7", 7)])
def test_sizes(monkeypatch, text, size):
    monkeypatch.setenv("FEDVLM_CACHE_LIMIT", text)
    assert cache_limit() == size
    assert describe()["limit_bytes"] == size


@pytest.mark.parametrize("text", ["", "much", "-1GB", "nan", "inf", "1e99", "GB", "5 apples"])
def test_no_sizes(monkeypatch, text):
    monkeypatch.setenv("FEDVLM_CACHE_LIMIT", text)
    with pytest.raises(ConfigError, match="FEDVLM_CACHE_LIMIT is a size such as 20GB"):
        cache_limit()
