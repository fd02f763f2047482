"""A configuration as Flower's run config, and what of it goes to whom.

Flower gives its run config to the ServerApp and to every ClientApp alike. In a simulation that is
one machine. In a deployment the run config holds what nodes are told (`for_nodes`), and the rest
waits for the ServerApp in a file of the run's folder (`for_server`).
"""

from collections.abc import Mapping
from typing import Any

from fedvlm.config._section import AUTO, Entry
from fedvlm.config.reading import FLAT, config_from, settings_in
from fedvlm.config.whole import SECTIONS, SETTINGS, Config
from fedvlm.errors import ConfigError

PLACES = {"out": "", "identities": "", "resume": False}
"""Keys of the run config that say where and how it runs, and decide no result; their defaults."""
PUBLIC = {
    "data.source": (("emoji",), "none"),
    "model.name": (("embedded", "embedded-vqa"), "own"),
}
"""What nodes are told of data and model: a public one's name, or the word for any other."""


def _name(entry: Entry) -> str:
    return entry.name.replace("_", "-")


def _written(value: Any) -> Any:
    return AUTO if value is None else value


def to_run_config(config: Config) -> dict[str, Any]:
    """Return every setting by its dotted name with hyphens, as Flower's run config takes it."""
    return {_name(entry): _written(config.value(entry)) for entry in SETTINGS.values()}


def for_nodes(config: Config) -> dict[str, Any]:
    """Return the run config of a deployment: what a node must know to take part, and no more.

    Guarantees:
        It holds no path of the server's, and nothing that only the server acts on.

    Raises:
        ConfigError: The run names a list of captions, which no node would open.
    """
    if config.mitigation.listed:
        raise ConfigError(
            "mitigation.listed is a file of this machine, and a node of a deployment opens none "
            "that the server names; leave it empty: each node names its own as listed in node.toml"
        )
    told = {}
    for entry in SETTINGS.values():
        if entry.about.server:
            continue
        value = config.value(entry)
        if entry.name in PUBLIC:
            public, other = PUBLIC[entry.name]
            value = value if value in public else other
        told[_name(entry)] = _written(value)
    return told


def for_server(config: Config) -> dict[str, Any]:
    """Return what stays with the server of a deployment, by dotted name."""
    return {
        _name(entry): _written(config.value(entry))
        for entry in SETTINGS.values()
        if entry.about.server or entry.name in PUBLIC
    }


def is_for_nodes(run_config: Mapping[str, Any]) -> bool:
    """Return whether a run config is a deployment's, so that the server's part is elsewhere."""
    return not any(entry.about.server and _name(entry) in run_config for entry in SETTINGS.values())


def from_run_config(run_config: Mapping[str, Any], kept: Mapping[str, Any] | None = None) -> Config:
    """Return the configuration that a run config carries.

    `flwr run` takes no key that its app doesn't declare. So this project's app declares each
    setting twice, as `app_config` has it, and a flat name that was given counts in place of a
    default.

    Args:
        run_config: Flower's.
        kept: The server's part, `for_server`; it counts in place of what nodes are told.

    Raises:
        ConfigError: As `config_from`; a setting that is given by both of its names.
    """
    told = {
        key: value
        for key, value in run_config.items()
        if key not in PLACES and not ("." not in key and value == "")
    }
    flat = {FLAT[name].name for key in told if (name := key.replace("-", "_")) in FLAT}
    default = Config()
    settings = {}
    for written, entry, value in settings_in(told):
        unasked = value == _written(default.value(entry))
        if "." in written and entry.name in flat and unasked:
            continue
        settings[written] = value
    return config_from(kept or {}, config_from(settings))


def app_config() -> dict[str, Any]:
    """Return the settings that this project's own app declares, by dotted and by flat name.

    A flat name is an empty text where it isn't given. Three flat names, `data`, `model` and
    `adapter`, are tables here, so that only the dotted names of those settings are there.
    """
    flat = {name.replace("_", "-"): "" for name in FLAT if name not in SECTIONS}
    return PLACES | flat | to_run_config(Config())


def server_part(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Check what a file says is the server's part.

    Raises:
        ConfigError: It isn't all of it, or holds what nodes were told otherwise.
    """
    expected, given = set(for_server(Config())), set(settings)
    if expected != given:
        odd = ", ".join(sorted(expected ^ given))
        raise ConfigError(f"the server's part of the configuration is not this version's: {odd}")
    return dict(settings)
