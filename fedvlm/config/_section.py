"""What a setting is: its default, its range, its words, and whose it is."""

import math
import types
from collections.abc import Iterator
from dataclasses import Field, dataclass, field, fields
from typing import Any, ClassVar, get_args

from fedvlm.errors import ConfigError

AUTO = "auto"
"""What an optional setting is called where nothing was asked."""
_KEY = "setting"


@dataclass(frozen=True)
class Setting:
    """What is known of a setting beside its type and default.

    Attributes:
        words: What it does, in a sentence or two.
        low: Least value of a number.
        high: Largest value of a number.
        above: Whether `low` itself is out.
        below: Whether `high` itself is out.
        choices: What a text may be; empty for any.
        flat: Its name outside of a table; the key itself where empty.
        server: Whether it stays with the server: no node of a deployment is told.
    """

    words: str
    low: float = -math.inf
    high: float = math.inf
    above: bool = False
    below: bool = False
    choices: tuple[str, ...] = ()
    flat: str = ""
    server: bool = False

    def check(self, name: str, value: Any, kind: type) -> None:
        """Refuse what isn't of this kind and in the range; a NaN is in none.

        Raises:
            ConfigError: Naming the setting, what is expected, and the value.
        """
        if kind in (str, bool):
            if type(value) is not kind:
                raise ConfigError(f"{name} must be of type {kind.__name__}; got {value!r}")
            if self.choices and value not in self.choices:
                raise ConfigError(f"{name} must be one of {', '.join(self.choices)}; got {value!r}")
            return
        whole = isinstance(value, int) and not isinstance(value, bool)
        if not whole and (kind is int or not isinstance(value, float)):
            raise ConfigError(f"{name} must be of type {kind.__name__}; got {value!r}")
        if value < self.low or (self.above and value == self.low):
            least = "above" if self.above else "at least"
            raise ConfigError(f"{name} must be {least} {self.low:g}; got {value}")
        if not (value < self.high or (value == self.high and not self.below)):
            most = "below" if self.below else "at most"
            raise ConfigError(f"{name} must be a number {most} {self.high:g}; got {value}")


def setting(default: Any, words: str, **known: Any) -> Any:
    """Return a section's field; `known` are attributes of `Setting`."""
    return field(default=default, metadata={_KEY: Setting(words, **known)})


@dataclass(frozen=True)
class Entry:
    """A setting and its place.

    Attributes:
        table: The section's name, which is its table's in TOML.
        key: The name in that table.
        kind: str, bool, int or float.
        optional: Whether it may be left to what follows from the others.
        default: Its default.
        about: The rest.
    """

    table: str
    key: str
    kind: type
    optional: bool
    default: Any
    about: Setting

    @property
    def name(self) -> str:
        """The name with its table, such as `training.rounds`."""
        return f"{self.table}.{self.key}"

    @property
    def flat(self) -> str:
        """The name outside of a table."""
        return self.about.flat or self.key


def _entry(table: str, one: Field) -> Entry:
    optional = isinstance(one.type, types.UnionType)
    kind: Any = get_args(one.type)[0] if optional else one.type
    return Entry(table, one.name, kind, optional, one.default, one.metadata[_KEY])


@dataclass(frozen=True)
class Section:
    """A part of the configuration that one room of the house owns; it validates itself.

    Raises:
        ConfigError: A value is of another type, or out of its range.
    """

    table: ClassVar[str]

    def __post_init__(self) -> None:
        for entry in self.entries():
            value = getattr(self, entry.key)
            if not (value is None and entry.optional):
                entry.about.check(entry.name, value, entry.kind)

    @classmethod
    def entries(cls) -> Iterator[Entry]:
        """Return the section's settings, in their order."""
        return (_entry(cls.table, one) for one in fields(cls))
