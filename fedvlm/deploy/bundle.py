"""The app that travels: two modules of a line, and the settings that a run may name.

A SuperNode runs whatever app its SuperLink brings; a floor inside that app would bind nobody. So a
node makes the one app that it runs from its own installation, and takes no other: by hash.
"""

import hashlib
import json
from functools import lru_cache
from pathlib import Path
from typing import Any

from fedvlm.config import Config, for_nodes
from fedvlm.config.flower import PLACES
from fedvlm.files import write_text

_PACKAGE = "fedvlm_app"
_PROJECT = """\
[project]
name = "fedvlm-app"
version = "{version}"
description = "A federation by fedvlm; the library itself is installed on each machine"
license = "Apache-2.0"
dependencies = []

[tool.flwr.app]
publisher = "fedvlm"
fab-include = ["{package}/*.py"]

[tool.flwr.app.components]
serverapp = "{package}.server_app:app"
clientapp = "{package}.client_app:app"

[tool.flwr.app.config]
"""
_MODULE = '''\
"""Flower's entry to the {side}."""

from fedvlm.federation.{side}_app import app

__all__ = ["app"]
'''


def toml_value(value: Any) -> str:
    """Return a setting as TOML."""
    if isinstance(value, float):
        return repr(value)
    return json.dumps(value)  # a TOML basic string is a JSON one, for what settings hold


def app_files() -> dict[str, bytes]:
    """Return the app's files by their paths; the same for the same version of this library."""
    from fedvlm import __version__

    settings = PLACES | for_nodes(Config())
    # Flower's own pattern of a version is narrower than Python's.
    release = ".".join([*__version__.split("+")[0].split("."), "0", "0"][:3])
    text = _PROJECT.format(version=release, package=_PACKAGE)
    text += "".join(f"{key} = {toml_value(value)}\n" for key, value in settings.items())
    files = {"pyproject.toml": text, f"{_PACKAGE}/__init__.py": '"""A federation by fedvlm."""\n'}
    files |= {f"{_PACKAGE}/{s}_app.py": _MODULE.format(side=s) for s in ("server", "client")}
    return {name: text.encode() for name, text in files.items()}


@lru_cache(maxsize=1)
def app_hash() -> str:
    """Return the SHA-256, in hex, of the bundle that Flower makes of the app."""
    from flwr.cli.build import build_fab_from_files

    return hashlib.sha256(build_fab_from_files(app_files())[0]).hexdigest()


def write_app(folder: Path) -> None:
    """Write the app into a folder, for `flwr run`."""
    for name, data in app_files().items():
        write_text(folder / name, data.decode())
