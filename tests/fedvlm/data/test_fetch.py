"""Downloads: verified, mended, and clear when there is no network. npm is played by a script."""

import hashlib
import io
import os
import stat
import tarfile

import pytest

from fedvlm.data import fetch as module
from fedvlm.data._packages import Package
from fedvlm.data.fetch import fetch, read_json, read_member
from fedvlm.errors import DataError


def _tarball(text: bytes) -> bytes:
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w:gz") as archive:
        info = tarfile.TarInfo("package/data.json")
        info.size = len(text)
        archive.addfile(info, io.BytesIO(text))
    return out.getvalue()


GOOD = _tarball(b'{"a": 1}')
PACKAGE = Package("@x/y", "1.0.0", hashlib.sha256(GOOD).hexdigest(), "MIT", "me", "here")


@pytest.fixture
def registry(tmp_path, monkeypatch):
    """Put a script named npm first on PATH; the test writes what it serves."""
    monkeypatch.setenv("FEDVLM_CACHE", str(tmp_path / "cache"))
    served, script = tmp_path / "served.tgz", tmp_path / "npm"
    calls = tmp_path / "calls"
    script.write_text(
        f'#!/bin/sh\necho call >> "{calls}"\n'
        f'test -f "{served}" || {{ echo "npm error network" >&2; exit 1; }}\n'
        f'cp "{served}" "$4/{PACKAGE.tarball}"\n'
    )
    script.chmod(script.stat().st_mode | stat.S_IEXEC)
    monkeypatch.setenv("PATH", f"{tmp_path}{os.pathsep}{os.environ['PATH']}")
    served.write_bytes(GOOD)

    class Registry:
        def serve(self, content):
            if content is None:
                served.unlink()
            else:
                served.write_bytes(content)

        @property
        def calls(self):
            return len(calls.read_text().splitlines()) if calls.exists() else 0

    return Registry()


def test_a_second_fetch_is_offline(registry):
    path = fetch(PACKAGE)
    assert read_json(path, "package/data.json") == {"a": 1}
    registry.serve(None)
    assert fetch(PACKAGE) == path
    assert registry.calls == 1


def test_a_partial_download_in_the_cache_is_mended(registry):
    path = fetch(PACKAGE)
    path.write_bytes(GOOD[:50])
    assert fetch(PACKAGE).read_bytes() == GOOD
    assert registry.calls == 2


def test_another_file_is_refused_and_not_kept(registry):
    registry.serve(_tarball(b'{"a": 2}'))
    with pytest.raises(DataError, match="another file; nothing was kept"):
        fetch(PACKAGE)
    assert not (module.cache_dir() / "packages" / PACKAGE.tarball).exists()


def test_no_network_is_one_clear_line(registry):
    registry.serve(None)
    with pytest.raises(
        DataError, match=r"could not download @x/y@1.0.0 \(npm error network\)"
    ) as e:
        fetch(PACKAGE)
    assert "\n" not in str(e.value)


def test_no_npm(monkeypatch, tmp_path):
    monkeypatch.setattr(module.shutil, "which", lambda name: None)
    monkeypatch.setattr(module.sys, "executable", str(tmp_path / "python"))
    with pytest.raises(DataError, match=r"pip install \"fedvlm\[embedded\]\""):
        module.npm_command()


def test_a_missing_member(registry):
    with pytest.raises(DataError, match="has no readable package/none.json"):
        read_member(fetch(PACKAGE), "package/none.json")
