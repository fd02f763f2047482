"""A configuration from what people write: tables, dotted names, and flat names."""

import difflib
import tomllib
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from fedvlm.config._section import AUTO, Entry
from fedvlm.config.whole import SECTIONS, SETTINGS, Config
from fedvlm.errors import ConfigError

FLAT: dict[str, Entry] = {entry.flat: entry for entry in SETTINGS.values()}
"""Name outside of a table → setting; no two have the same."""


def _convert(entry: Entry, value: Any) -> Any:
    """Convert a value to the type of its setting, or say what was wrong with it."""
    kind = entry.kind
    if entry.optional and (value is None or value == AUTO):
        return None
    if isinstance(value, str) and kind is not str:
        text = value.strip().lower()
        if kind is bool and text in ("true", "false"):
            return text == "true"
        try:
            if kind in (int, float):
                return kind(text)
        except ValueError:
            pass
    elif kind is float and isinstance(value, int) and not isinstance(value, bool):
        return float(value)
    elif type(value) is kind:
        return value
    raise ConfigError(f"{entry.name} must be of type {kind.__name__}; got {value!r}")


def _near(given: str, known: Iterable[str]) -> str:
    found = difflib.get_close_matches(given, list(known), n=1, cutoff=0.5)
    return f"; did you mean {found[0]!r}?" if found else f"; known: {', '.join(known)}"


def _in_table(given: str, table: str, key: str) -> Entry:
    if table not in SECTIONS:
        raise ConfigError(f"unknown table {table!r} in {given!r}{_near(table, SECTIONS)}")
    entry = SETTINGS.get(f"{table}.{key}")
    if entry is None and (flat := FLAT.get(key)) is not None and flat.table == table:
        entry = flat  # [server] server_momentum
    if entry is None:
        elsewhere = [each.name for each in SETTINGS.values() if key in (each.key, each.flat)]
        names = [each.name for each in SETTINGS.values() if each.table == table]
        hint = f"; did you mean {elsewhere[0]!r}?" if elsewhere else _near(f"{table}.{key}", names)
        raise ConfigError(f"unknown configuration key {given!r}{hint}")
    return entry


def _flat(given: str, key: str) -> Entry:
    entry = FLAT.get(key)
    if entry is None:
        named = [each.name for each in SETTINGS.values() if each.key == key]
        hint = f"; did you mean {named[0]!r}?" if named else _near(key, FLAT)
        raise ConfigError(f"unknown configuration key {given!r}{hint}")
    return entry


def settings_in(given: Mapping[str, Any]) -> Iterator[tuple[str, Entry, Any]]:
    """Find the settings that are meant: by table, by dotted name or by flat name.

    Args:
        given: Name → value, or table → (key → value); hyphens count as underscores.

    Yields:
        The name as it was given, the setting, and the value as it was given.

    Raises:
        ConfigError: An unknown table or name; the message suggests the nearest.
    """
    for written, value in given.items():
        name = written.replace("-", "_")
        if isinstance(value, Mapping):
            if name not in SECTIONS:
                raise ConfigError(f"unknown table [{written}]{_near(name, SECTIONS)}")
            for inner, each in value.items():
                place = f"{written}.{inner}"
                yield place, _in_table(place, name, inner.replace("-", "_")), each
        elif "." in name:
            table, _, key = name.partition(".")
            yield written, _in_table(written, table, key), value
        elif name in SECTIONS and name not in FLAT:
            raise ConfigError(f"{name} is a table, [{name}]; got {value!r}")
        else:
            yield written, _flat(written, name), value


def config_from(settings: Mapping[str, Any], base: Config | None = None) -> Config:
    """Build a configuration from settings by name, over a base.

    Args:
        settings: As `settings_in` takes them; text is converted.
        base: What holds where `settings` says nothing; the defaults where None.

    Raises:
        ConfigError: An unknown table or name (the message suggests the nearest), a setting given
            twice, a value of another type or out of its range, settings that don't go together.

    Example:
        >>> config_from({"rounds": "3", "training.proximal-mu": 0.1}).training.rounds
        3
        >>> config_from({"training": {"rounds": 3}}).training.rounds
        3
    """
    base = base or Config()
    changes: dict[str, dict[str, Any]] = {}
    names: dict[str, str] = {}
    for written, entry, value in settings_in(settings):
        if entry.name in names:
            raise ConfigError(
                f"{names[entry.name]} and {written} are one setting, given twice; keep one"
            )
        names[entry.name] = written
        changes.setdefault(entry.table, {})[entry.key] = _convert(entry, value)
    return replace(
        base,
        **{table: replace(getattr(base, table), **changed) for table, changed in changes.items()},
    )


def read_toml(path: Path, what: str = "") -> dict[str, Any]:
    """Read a TOML file.

    Args:
        path: The file.
        what: What it is, before its path where it can't be read.

    Raises:
        ConfigError: It can't be read, or isn't TOML.
    """
    try:
        return tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise ConfigError(f"can't read {what}{path}: {error.strerror}") from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path} is not TOML: {error}") from error


def load_config(path: Path, base: Config | None = None) -> Config:
    """Read a configuration from a TOML file of tables, flat keys or both.

    Raises:
        ConfigError: The file is missing, isn't TOML, or holds a wrong setting.
    """
    settings = read_toml(path)
    try:
        return config_from(settings, base)
    except ConfigError as error:
        raise ConfigError(f"{path}: {error}") from error
