"""What the server of a deployment keeps to itself: a file in the run's folder.

Flower gives its run config to every node. What is not for nodes, such as the path of the server's
own data, is therefore not in it, and the ServerApp reads it here.
"""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from fedvlm.config import Config, for_server, from_run_config
from fedvlm.config.flower import is_for_nodes, server_part
from fedvlm.errors import ConfigError
from fedvlm.files import write_text

FILE = "server-config.json"


def write_server_part(config: Config, folder: Path) -> None:
    """Write down what no node is told."""
    write_text(folder / FILE, json.dumps(for_server(config), indent=1) + "\n")


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
