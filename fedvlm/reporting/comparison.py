"""What several protections buy and cost, as one table: `comparison.json`, frozen, self-describing.

    {"columns": [{"key", "title", "unit", "better", "note"}, …],
     "rows":    [{"name", "adapter", "cells": {key: {"value", "low", "high", "unit", "note"}
                                               or {"failed": reason} or null}}, …],
     "inference": {"columns", "rows"} or null,
     "references": {"zero_shot": 0.25, …},
     "config", "versions", "seeds", "command", "seconds", "note"}

A value is in the unit that its column names: a `fraction` lies between 0 and 1 and is shown as a
percentage, `bytes` and `s` are shown with the prefix that people read. Text is a value too.
"""

import json
import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal

from fedvlm.errors import ConfigError
from fedvlm.files import write_text

FILE = "comparison.json"
UNITS = ("", "fraction", "bytes", "s", "text")
"""Units that are shown in a way of their own; any other one is printed behind the number."""

# Keys that figures and the verdict are drawn from, where a table has them. Attacks' columns are
# f"auc_{vantage}" and f"tpr_{vantage}", with vantages V1 … V6.
ACCURACY = "accuracy"
WORST_DOMAIN = "worst_domain"
GAIN_KEPT = "gain_kept"
EPSILON = "epsilon"
EPSILON_AUDITED = "epsilon_audited"
UPLOAD = "upload_bytes"
CLIENT_S = "client_s"
SERVER_S = "server_s"

Better = Literal["high", "low", "none"]


@dataclass(frozen=True)
class Column:
    """A column of a comparison.

    Attributes:
        key: Short and stable.
        title: What it is, in a few words.
        unit: Of its cells, unless a cell names another; see `UNITS`.
        better: Which end is good; none where neither is.
        note: One sentence for whoever asks what it means.
    """

    key: str
    title: str
    unit: str = ""
    better: Better = "none"
    note: str = ""

    def __post_init__(self) -> None:
        if self.better not in ("high", "low", "none"):
            raise ConfigError(f"better must be high, low or none; got {self.better!r}")


@dataclass(frozen=True)
class Cell:
    """A measured value, or why there is none.

    Attributes:
        value: A finite number in the column's unit, or text; None only where it failed.
        low: Lower end of its 95 % interval, None where there is none.
        high: Upper end.
        unit: Another unit than the column's.
        note: What to know of this one, such as the attack that was best.
        failed: Why there is no value, in one line.
    """

    value: float | str | None = None
    low: float | None = None
    high: float | None = None
    unit: str = ""
    note: str = ""
    failed: str = ""

    def __post_init__(self) -> None:
        if (self.value is None) != bool(self.failed):
            raise ConfigError(
                f"a cell has a value or the reason why it failed; got value {self.value!r} and "
                f"failed {self.failed!r}"
            )
        numbers = [v for v in (self.value, self.low, self.high) if isinstance(v, int | float)]
        if not all(math.isfinite(v) for v in numbers):
            raise ConfigError(f"a cell's numbers must be finite; got {numbers}: say failed instead")

    def to_dict(self) -> dict[str, Any]:
        """Return what is set."""
        if self.failed:
            return {"failed": self.failed}
        told = {k: v for k, v in asdict(self).items() if v not in (None, "")}
        return {"value": self.value} | told


@dataclass(frozen=True)
class Row:
    """A row: one protection, on one adapter.

    Attributes:
        name: The protection, such as `example DP, ε = 8`.
        adapter: What was trained; empty where it is no matter of adapters.
        cells: By the columns' keys; None, like a missing key, is what doesn't apply.
    """

    name: str
    adapter: str = ""
    cells: Mapping[str, Cell | None] = field(default_factory=dict)

    def number(self, key: str) -> float | None:
        """Return a cell's number; None where there is none."""
        cell = self.cells.get(key)
        value = None if cell is None else cell.value
        return float(value) if isinstance(value, int | float) else None

    def to_dict(self) -> dict[str, Any]:
        """Return the row as JSON takes it."""
        cells = {k: None if cell is None else cell.to_dict() for k, cell in self.cells.items()}
        return {"name": self.name, "adapter": self.adapter, "cells": cells}


@dataclass(frozen=True)
class Grid:
    """Rows and columns.

    Attributes:
        columns: In the order of the table.
        rows: In the order of the table.
    """

    columns: tuple[Column, ...] = ()
    rows: tuple[Row, ...] = ()

    def to_dict(self) -> dict[str, Any]:
        """Return the grid as JSON takes it."""
        return {
            "columns": [asdict(column) for column in self.columns],
            "rows": [row.to_dict() for row in self.rows],
        }


@dataclass(frozen=True)
class Comparison(Grid):
    """One table of protections and its origin.

    Attributes:
        columns: Of the federation.
        rows: Protections of the federation.
        inference: Private inference's own rows and columns; None where it wasn't asked for.
        references: Accuracies to read the table against, as fractions: `zero_shot`, `local_only`,
            `central`, `control`.
        config: Every setting that the rows share.
        versions: Of the packages that decide a result.
        seeds: Of the experiments.
        command: Makes the table again.
        seconds: Wall time by phase.
        note: What to know of the whole table, such as that it is a quick one.
    """

    inference: Grid | None = None
    references: Mapping[str, float] = field(default_factory=dict)
    config: Mapping[str, Any] = field(default_factory=dict)
    versions: Mapping[str, str] = field(default_factory=dict)
    seeds: tuple[int, ...] = ()
    command: str = ""
    seconds: Mapping[str, float] = field(default_factory=dict)
    note: str = ""

    def to_dict(self) -> dict[str, Any]:
        """Return the comparison as JSON takes it."""
        return super().to_dict() | {
            "inference": None if self.inference is None else self.inference.to_dict(),
            "references": dict(self.references),
            "config": dict(self.config),
            "versions": dict(self.versions),
            "seeds": list(self.seeds),
            "command": self.command,
            "seconds": dict(self.seconds),
            "note": self.note,
        }

    def save(self, folder: Path) -> Path:
        """Write `comparison.json` into a folder, whole or not at all; returns its path."""
        path = folder / FILE
        write_text(path, json.dumps(self.to_dict(), indent=2, allow_nan=False) + "\n")
        return path

    @classmethod
    def load(cls, folder: Path) -> "Comparison":
        """Read the comparison in a folder, or a file of one.

        Raises:
            ConfigError: There is none, or it can't be read.
        """
        path = folder / FILE if folder.is_dir() else folder
        try:
            return comparison_from(json.loads(path.read_text(encoding="utf-8")))
        except OSError as error:
            raise ConfigError(f"no comparison at {path}: {error.strerror}") from error
        except (ValueError, TypeError, KeyError, AttributeError) as error:
            raise ConfigError(f"{path} is not a comparison of this library: {error}") from error


def _grid(told: Mapping[str, Any]) -> tuple[tuple[Column, ...], tuple[Row, ...]]:
    columns = tuple(Column(**column) for column in told["columns"])
    rows = tuple(
        Row(
            row["name"],
            row.get("adapter", ""),
            {k: None if cell is None else Cell(**cell) for k, cell in row["cells"].items()},
        )
        for row in told["rows"]
    )
    return columns, rows


def comparison_from(told: Mapping[str, Any]) -> Comparison:
    """Return the comparison that JSON holds.

    Raises:
        KeyError, TypeError, ValueError: It is none.
    """
    inference = told.get("inference")
    return Comparison(
        *_grid(told),
        inference=None if inference is None else Grid(*_grid(inference)),
        references=told.get("references", {}),
        config=told.get("config", {}),
        versions=told.get("versions", {}),
        seeds=tuple(told.get("seeds", ())),
        command=told.get("command", ""),
        seconds=told.get("seconds", {}),
        note=told.get("note", ""),
    )
