"""The files of a new project, and how they are written."""

import re
from pathlib import Path

from fedvlm.config import Config, config_from
from fedvlm.config.flower import PLACES, to_run_config
from fedvlm.deploy.bundle import toml_value
from fedvlm.errors import ConfigError
from fedvlm.files import write_text
from fedvlm.scaffold import pictures

SETTINGS = {
    "clients": 3,
    "partition": "iid",
    "rounds": 3,
    "local_epochs": 2,
    "batch_size": 16,
    "rank": 8,
}
"""What a new project's `config.toml` says beside its data."""
_CONFIG = """\
# What `fedvlm simulate config.toml` runs; `fedvlm simulate --settings` lists every setting.
[data]
source = {source}
clients = {clients}
partition = "{partition}"

[adapter]
kind = "lora"
rank = {rank}

[training]
rounds = {rounds}
local_epochs = {local_epochs}
batch_size = {batch_size}

[protection]
protect = "plain"  # "secagg" shows the server the sum alone
"""
_PROJECT = """\
[project]
name = "{name}"
version = "0.1.0"
description = "A federation by fedvlm"
dependencies = ["fedvlm[sim]"]

[tool.flwr.app]
publisher = "{package}"
fab-include = ["{package}/*.py"]

[tool.flwr.app.components]
serverapp = "{package}.server_app:app"
clientapp = "{package}.client_app:app"

# Flower lets a run override only what stands here. The data's folder is named from the root, since
# Flower runs the apps elsewhere.
[tool.flwr.app.config]
"""
_APPS = {
    "server": '''\
"""The server. `app` is a Flower ServerApp: what it does is in `fedvlm.federation.run`."""

from fedvlm.federation.server_app import app

__all__ = ["app"]
''',
    "client": '''\
"""A client. `app` is a Flower ClientApp: a node's mods and floor are in `fedvlm.federation`."""

from fedvlm.federation.client_app import app

__all__ = ["app"]
''',
}
_README = """\
# {name}

A federation of vision-language adapters over three simulated clients, on pictures that
`prepare_data.py` drew. It runs as it is:

```sh
fedvlm simulate config.toml --out runs/first
fedvlm report runs/first
```

The same on Flower's own engine, each client a node of its own:

```sh
export FLWR_TELEMETRY_ENABLED=0 FLWR_DISABLE_RUNTIME_DEPENDENCY_INSTALLATION=1
flwr run . --stream --federation-config 'num-supernodes=3 client-resources-num-cpus=1' \\
    --run-config "out='$PWD/runs/flower'"
```

## Make it yours

- `prepare_data.py` writes `data/captions.jsonl` and `data/images/`: let `pairs()` yield your own
  pictures and captions, and run it again.
- `config.toml` has the settings of `fedvlm simulate`: protect sums, add DP, take your own model.
- `pyproject.toml` has the same for `flwr run`, and `data.source`, to be changed where the folder
  moves.
- `{package}/client_app.py` and `{package}/server_app.py` are Flower's entries: wrap them, or put
  mods of your own in front.

What each protection buys and costs on your data: `fedvlm compare config.toml --quick`.
"""


def _package(folder: Path) -> str:
    """Return a name for the package, from the folder's."""
    name = re.sub(r"[^a-z0-9]+", "_", folder.name.lower()).strip("_")
    return name if re.match(r"[a-z]", name) else f"federation_{name}".strip("_")


def project_config(folder: Path) -> Config:
    """Return the configuration of a new project in a folder."""
    return config_from({"data": {"source": str(folder.absolute() / "data")}} | SETTINGS)


def project_files(folder: Path) -> dict[str, str]:
    """Return the files of a new project by path, all but its pictures."""
    package = _package(folder.absolute())
    config = project_config(folder)
    names = {"package": package, "name": package.replace("_", "-")}
    settings = PLACES | to_run_config(config)
    run = "".join(f"{key} = {toml_value(value)}\n" for key, value in settings.items())
    files = {
        "config.toml": _CONFIG.format(source=toml_value(config.data.source), **SETTINGS),
        "pyproject.toml": _PROJECT.format(**names) + run,
        "README.md": _README.format(**names),
        "prepare_data.py": Path(pictures.__file__).read_text(encoding="utf-8"),
        ".gitignore": "data/\nruns/\n",
        f"{package}/__init__.py": '"""A federation by fedvlm."""\n',
    }
    return files | {f"{package}/{side}_app.py": text for side, text in _APPS.items()}


def init_project(folder: Path) -> list[Path]:
    """Make a project in a folder; nothing that is there is written over.

    Returns:
        The files, and the folder of pictures.

    Raises:
        ConfigError: A file of the project is there already.
        DataError: The folder can't be written.
    """
    files = project_files(folder)
    there = [name for name in (*files, "data") if (folder / name).exists()]
    if there or (folder.exists() and not folder.is_dir()):
        what = ", ".join(there) if there else "a file"
        raise ConfigError(f"{folder} has {what} already; choose another folder")
    for name, text in files.items():
        write_text(folder / name, text)
    pictures.write(folder / "data")
    return [*(folder / name for name in files), folder / "data"]
