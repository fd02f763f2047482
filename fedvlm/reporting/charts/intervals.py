"""Values with their intervals, one row each: by domain, by attack, by measure, by protection."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from markupsafe import Markup

from fedvlm.reporting.facts import Score
from fedvlm.reporting.svg import Scale, dot, fitted, line, picture, text

_ROW, _TOP, _BOTTOM = 30.0, 8.0, 26.0


@dataclass(frozen=True)
class Mark:
    """A value in a row.

    Attributes:
        score: The value with its interval.
        told: What it says to who points at it.
        kind: Class of its dot: `spot`, or `hollow` for what was before.
    """

    score: Score
    told: str
    kind: str = "spot"


@dataclass(frozen=True)
class Row:
    """A row.

    Attributes:
        name: At the left, or above where the picture is narrow.
        marks: In the order in which they are drawn.
        value: What stands at the right.
        why_not: In place of marks, where there are none.
        strong: Whether the name stands out.
    """

    name: str
    marks: Sequence[Mark] = ()
    value: str = ""
    why_not: str = ""
    strong: bool = False


def intervals_chart(
    label: str,
    rows: Sequence[Row],
    written: Callable[[float], str],
    *,
    width: float,
    low: float,
    high: float,
    references: Sequence[tuple[str, float]] = (),
    left: float | None = None,
    right: float = 64,
) -> Markup:
    """Draw rows of dots with intervals on a common axis.

    Args:
        label: For who can't see it.
        rows: From the top.
        written: Writes a value of the axis.
        width: Of the picture.
        low: Left end of the axis.
        high: Right end.
        references: Name and value of lines down through all rows.
        left: Room for names at the left; None puts names above their rows.
        right: Room for values at the right.
    """
    above = left is None
    step = _ROW + (16 if above else 0)
    head = _TOP + (18 if any(name for name, _ in references) else 0)
    height = head + step * len(rows) + _BOTTOM
    x = Scale(low, high, 8 if left is None else left, width - right)
    parts = []
    for value in x.ticks(4 if width < 500 else 6):
        parts.append(line(x(value), head, x(value), height - _BOTTOM, "grid"))
        parts.append(text(x(value), height - 12, written(value), "tick", "middle"))
    for name, value in references:
        parts.append(line(x(value), head, x(value), height - _BOTTOM, "reference"))
        if name:
            anchor = "end" if x(value) > width - 90 else "middle" if x(value) > 60 else "start"
            parts.append(text(x(value), head - 9, name, "tick", anchor))
    for number, row in enumerate(rows):
        y = head + step * number + step / 2 + (8 if above else 0)
        kind = "label strong" if row.strong else "label"
        if above:
            parts.append(text(8, y - 19, fitted(row.name, width - 8), kind))
        else:
            parts.append(text(0, y, fitted(row.name, (left or 0) - 12), kind))
        if row.why_not:
            parts.append(text(x.start, y, fitted(row.why_not, width - x.start), "tick"))
            continue
        parts += _drawn(row, x, y)
        if row.value:
            parts.append(text(width, y, row.value, "value", "end"))
    return picture(width, height, label, *parts)


def _drawn(row: Row, x: Scale, y: float) -> list[Markup]:
    parts = []
    whiskers = any(mark.score.low is not None for mark in row.marks)
    shift = 4.0 if len(row.marks) > 1 and whiskers else 0.0
    if len(row.marks) > 1 and not whiskers:
        ends = [x(mark.score.value) for mark in row.marks]
        parts.append(line(min(ends), y, max(ends), y, "tie"))
    for place, mark in enumerate(row.marks):
        height = y + shift * (2 * place - len(row.marks) + 1)
        one = mark.score
        if one.low is not None and one.high is not None:
            parts.append(line(x(one.low), height, x(one.high), height, f"whisker {mark.kind}"))
        parts.append(dot(x(one.value), height, mark.told, mark.kind))
    return parts
