"""What the server of a deployment keeps to itself: a file in the run's folder.

Flower gives its run config to every node. What is not for nodes, such as the path of the server's
own data, is therefore not in it, and the ServerApp reads it here.
"""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fedvlm.config import Config, for_server, from_run_config
from fedvlm.config.flower import is_for_nodes, server_part
from fedvlm.errors import ConfigError
from fedvlm.files import write_text

if TYPE_CHECKING:
    from secure.aggregation import Roster

FILE = "server-config.json"
ROSTER = "roster.json"


def write_server_part(config: Config, folder: Path, roster: Path | None = None) -> None:
    """Write down what no node is told, and beside it a copy of the server's roster."""
    write_text(folder / FILE, json.dumps(for_server(config), indent=1) + "\n")
    if roster is not None:
        write_text(folder / ROSTER, roster.read_text(encoding="utf-8"))


def servers_roster(config: Config, folder: Path | None) -> "Roster | None":
    """Return the clients' public keys, where the run has secure aggregation and they are there.

    Raises:
        ConfigError: The file is no roster.
    """
    if not config.protection.protect.startswith("secagg") or folder is None:
        return None
    if not (folder / ROSTER).is_file():
        return None
    from secure.aggregation import Roster
    from secure.errors import SecureError

    try:
        return Roster.load(folder / ROSTER)
    except SecureError as error:
        raise ConfigError(f"{folder / ROSTER} is no roster: {error}") from error


def servers_config(run_config: Mapping[str, Any], folder: Path | None) -> Config:
    """Return the whole configuration, as the ServerApp runs it.

    Args:
        run_config: Flower's: all of it in a simulation, what nodes are told in a deployment.
        folder: The run's folder.

    Raises:
        ConfigError: The run config is a deployment's, and the server's part isn't in the folder.
    """
    if not is_for_nodes(run_config):
        return from_run_config(run_config)
    if folder is None or not (folder / FILE).is_file():
        raise ConfigError(
            f"the run config is a deployment's, and its folder has no {FILE}; start the run by "
            "fedvlm deploy run"
        )
    path = folder / FILE
    try:
        kept = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ConfigError(f"{path} can't be read: {type(error).__name__}") from error
    if not isinstance(kept, dict):
        raise ConfigError(f"{path} is no part of a configuration")
    return from_run_config(run_config, server_part(kept))
