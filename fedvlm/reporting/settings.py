"""A run's settings: those that differ from the defaults, all of them, and the command again."""

import shlex
from dataclasses import dataclass

from fedvlm.config import Config
from fedvlm.config.listing import written
from fedvlm.config.whole import SETTINGS
from fedvlm.reporting.numbers import plain
from fedvlm.reporting.verdict import name_of


@dataclass(frozen=True)
class Setting:
    """A setting as a page shows it.

    Attributes:
        name: With its table, such as `training.rounds`.
        value: As people read it.
        default: Its default, likewise.
        words: What it does.
        differs: Whether the run's differs from the default.
    """

    name: str
    value: str
    default: str
    words: str
    differs: bool


def _shown(value: object) -> str:
    return plain(name_of(value) if isinstance(value, str) else value)


def settings_of(config: Config) -> list[Setting]:
    """Return every setting. Of a path there is only the last part."""
    return [
        Setting(
            name,
            _shown(config.value(entry)),
            _shown(entry.default),
            entry.about.words,
            config.value(entry) != entry.default,
        )
        for name, entry in SETTINGS.items()
    ]


def command_of(config: Config, deployed: bool) -> str:
    """Return the command that makes a run again; folders of this machine are left out of it."""
    parts = ["fedvlm", "deploy", "run", "DIR"] if deployed else ["fedvlm", "simulate"]
    for name, entry in SETTINGS.items():
        value = config.value(entry)
        if value == entry.default:
            continue
        told = name_of(value) if isinstance(value, str) else written(value).strip('"')
        parts += ["--set", f"{name}={told}"]
    return shlex.join([*parts, "--out", "DIR" if not deployed else "OUT"])
