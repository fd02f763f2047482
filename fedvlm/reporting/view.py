"""What a page is made of: sections of text, tables, figures and folds; a template writes them."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

from fedvlm.reporting.charts.figure import Figure
from fedvlm.reporting.numbers import NONE, between

_BROAD = 8  # columns


@dataclass(frozen=True)
class Head:
    """The head of a column.

    Attributes:
        title: What it says.
        note: What it means, for who asks.
        text: Whether its cells are words, set to the left.
    """

    title: str
    note: str = ""
    text: bool = False


@dataclass(frozen=True)
class Cell:
    """A cell of a table.

    Attributes:
        text: What it says.
        sub: Its interval or a remark, in small print.
        order: What rows are sorted by; the text where None.
        kind: Class: `strong`, `failed`, `none`.
    """

    text: str
    sub: str = ""
    order: float | None = None
    kind: str = ""


def number_cell(text: str, order: float | None, low: str = NONE, high: str = NONE) -> Cell:
    """Return a cell of a number with the ends of its interval."""
    return Cell(text, between(low, high), order, "none" if text == NONE else "")


@dataclass(frozen=True)
class Table:
    """A table that is sorted by whatever column is asked for.

    Attributes:
        title: What it is of.
        heads: The first one is of the rows' names.
        rows: As many cells as heads.
        strong: Rows that stand out.
        note: Below it.
    """

    kind: ClassVar[str] = "table"
    title: str
    heads: Sequence[Head]
    rows: Sequence[Sequence[Cell]]
    strong: Sequence[int] = ()
    note: str = ""

    @property
    def stacks(self) -> bool:
        """Whether rows become cards on a phone, which it is too wide for."""
        return 3 < len(self.heads) <= _BROAD

    @property
    def broad(self) -> bool:
        """Whether it may be wider than the text, and scrolls by itself where it still is."""
        return len(self.heads) > _BROAD


@dataclass(frozen=True)
class Shown:
    """A figure in its place."""

    kind: ClassVar[str] = "figure"
    figure: Figure


@dataclass(frozen=True)
class Text:
    """A paragraph."""

    kind: ClassVar[str] = "text"
    text: str


@dataclass(frozen=True)
class Note:
    """A titled remark: what it says, and what was measured of it."""

    title: str
    text: str
    measured: str = ""
    bad: bool = False


@dataclass(frozen=True)
class Notes:
    """Remarks, one below the other."""

    kind: ClassVar[str] = "notes"
    notes: Sequence[Note]


@dataclass(frozen=True)
class Code:
    """A command to copy."""

    kind: ClassVar[str] = "code"
    text: str


@dataclass(frozen=True)
class Fold:
    """What is shown to who opens it."""

    kind: ClassVar[str] = "fold"
    summary: str
    blocks: Sequence["Block"]
    open: bool = False


Block = Table | Shown | Text | Notes | Code | Fold


@dataclass(frozen=True)
class Section:
    """A part of a page under its heading."""

    name: str
    title: str
    blocks: Sequence[Block]


@dataclass(frozen=True)
class Page:
    """A whole page.

    Attributes:
        kicker: What kind of page it is, above all.
        verdict: What came of it, in one line.
        sentence: What it was, in one sentence.
        sections: Its parts.
        status: Of a run that goes on: where it stands; empty for a finished one.
    """

    kicker: str
    verdict: str
    sentence: str
    sections: Sequence[Section]
    status: str = ""
