"""Files are whole or absent, and a full disk is one clear line."""

import errno

import pytest

from fedvlm.errors import DataError
from fedvlm.files import cache_dir, whole_file, write_text


def test_a_failed_write_leaves_nothing(tmp_path):
    target = tmp_path / "a" / "result.json"
    with pytest.raises(KeyError), whole_file(target) as temporary:
        temporary.write_text("half")
        raise KeyError
    assert list((tmp_path / "a").iterdir()) == []


def test_a_failed_write_keeps_what_was_there(tmp_path):
    target = tmp_path / "result.json"
    write_text(target, "old")
    with pytest.raises(KeyError), whole_file(target) as temporary:
        temporary.write_text("half of the new")
        raise KeyError
    assert target.read_text() == "old"


def test_a_full_disk_is_a_data_error(tmp_path):
    target = tmp_path / "big"

    def full():
        with whole_file(target):
            raise OSError(errno.ENOSPC, "No space left on device")

    with pytest.raises(DataError, match="No space left on device.*FEDVLM_CACHE"):
        full()
    assert list(tmp_path.iterdir()) == []


def test_the_cache_can_be_moved(monkeypatch, tmp_path):
    monkeypatch.setenv("FEDVLM_CACHE", str(tmp_path))
    assert cache_dir() == tmp_path
    monkeypatch.delenv("FEDVLM_CACHE")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    assert cache_dir() == tmp_path / "xdg" / "fedvlm"
