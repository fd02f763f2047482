"""The rows of a comparison: which protection each of them is, as settings of a run."""

import difflib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from fedvlm.errors import ConfigError

_EPSILONS = (8, 3, 1)
_OFF: dict[str, Any] = {"protect": "plain", "dp": "none", "noise": "own"}
"""What every row starts from, so that nothing of the base configuration's protection is left."""


@dataclass(frozen=True)
class Protection:
    """One row.

    Attributes:
        name: Short and stable, for the command line.
        title: What it is, in a few words.
        settings: Flat settings that make it so; all others are the base's.
    """

    name: str
    title: str
    settings: Mapping[str, Any] = field(default_factory=dict)


def _private(name: str, title: str, **settings: Any) -> list[Protection]:
    return [
        Protection(f"{name}-{each}", f"{title}, ε = {each}", settings | {"epsilon": float(each)})
        for each in _EPSILONS
    ]


_ALL = (
    Protection("none", "none"),
    Protection("secagg", "secure aggregation", {"protect": "secagg"}),
    Protection("secagg-active", "active secure aggregation", {"protect": "secagg-active"}),
    Protection("he", "sums under HE", {"protect": "he"}),
    *_private("client", "client DP", dp="client"),
    *_private("own", "example DP, own noise", dp="example"),
    *_private("shared", "example DP, shared noise", dp="example", noise="shared", protect="secagg"),
    Protection(
        "distributed",
        "distributed DP, ε = 8",
        {"dp": "distributed", "protect": "secagg", "epsilon": 8.0},
    ),
)
ROWS: dict[str, Protection] = {row.name: row for row in _ALL}
"""Name → row, in the order of the table."""


def settings_of(row: Protection) -> dict[str, Any]:
    """Return every flat setting that a row decides."""
    return _OFF | dict(row.settings)


def kind_of(row: str) -> str:
    """Return what rows of several ε share: `own` of own-8; others are their own kind."""
    kind, _, level = row.rpartition("-")
    return kind if level.isdigit() else row


def chosen(given: Iterable[str], known: Mapping[str, Any], what: str) -> tuple[str, ...]:
    """Return the names that were asked for, in the order of the table; all where none was.

    A name that begins others means all of them: `client` is client-8, client-3 and client-1.

    Args:
        given: Names, or beginnings of names before a hyphen.
        known: By name, in the order of the table.
        what: What they are, for the message.

    Raises:
        ConfigError: No such name; the message suggests the nearest.

    Example:
        >>> chosen(["client", "none"], ROWS, "row")
        ('none', 'client-8', 'client-3', 'client-1')
    """
    wanted: set[str] = set()
    for name in given:
        exact = {name} if name in known else {k for k in known if k.startswith(f"{name}-")}
        if not exact:
            near = difflib.get_close_matches(name, known, n=1, cutoff=0.5)
            hint = f"; did you mean {near[0]!r}?" if near else ""
            raise ConfigError(f"no {what} {name!r}{hint}; known: {', '.join(known)}")
        wanted |= exact
    return tuple(name for name in known if not wanted or name in wanted)
