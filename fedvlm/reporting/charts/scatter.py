"""Two measures of several protections against each other, each point labelled."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from markupsafe import Markup

from fedvlm.reporting.svg import Scale, dot, fitted, line, picture, spread, text

_LEFT, _TOP, _BOTTOM, _GAP = 52.0, 14.0, 44.0, 16.0


@dataclass(frozen=True)
class Point:
    """A protection's two measures.

    Attributes:
        name: Its label.
        x: Across.
        y: Up.
        told: What it says to who points at it.
    """

    name: str
    x: float
    y: float
    told: str


def scatter_chart(
    label: str,
    points: Sequence[Point],
    *,
    width: float,
    x: tuple[float, float],
    y: tuple[float, float],
    written: tuple[Callable[[float], str], Callable[[float], str]],
    axes: tuple[str, str],
    log: bool = False,
    references: Sequence[tuple[str, float]] = (),
) -> Markup:
    """Draw points, with labels at the right that are led to them.

    Args:
        label: For who can't see it.
        points: One a protection.
        width: Of the picture.
        x: Ends of the axis across.
        y: Ends of the axis up.
        written: Write values of both axes.
        axes: Names of both axes.
        log: Whether the axis across is logarithmic.
        references: Name and height of lines across.
    """
    margin = 250.0 if width > 500 else 136.0
    height = max(300.0, _TOP + _BOTTOM + _GAP * (len(points) + len(references)))
    across = Scale(*x, _LEFT, width - margin, log)
    up = Scale(*y, height - _BOTTOM, _TOP)
    parts = []
    for value in up.ticks(5):
        parts.append(line(across.start, up(value), across.end, up(value), "grid"))
        parts.append(text(across.start - 8, up(value), written[1](value), "tick", "end"))
    marks = across.ticks(5)
    if width < 500 and len(marks) > 2:
        marks = [marks[0], marks[-1]]
    for value in marks:
        parts.append(line(across(value), up.start, across(value), up.end, "grid"))
        parts.append(
            text(across(value), height - _BOTTOM + 14, written[0](value), "tick", "middle")
        )
    middle = (across.start + across.end) / 2
    parts.append(text(middle, height - 8, axes[0], "tick", "middle"))
    ends = [(name, across.end, up(value), "tick") for name, value in references]
    for _, value in references:
        parts.append(line(across.start, up(value), across.end, up(value), "reference"))
    ends += [(one.name, across(one.x), up(one.y), "label") for one in points]
    places = spread([place for _, _, place, _ in ends], _GAP, _TOP, height - _BOTTOM)
    for (name, at, wanted, kind), place in zip(ends, places, strict=True):
        parts.append(line(at, wanted, across.end + 12, place, "leader"))
        parts.append(text(across.end + 16, place, fitted(name, margin - 18), kind))
    parts += [dot(across(one.x), up(one.y), one.told, "spot", 4.5) for one in points]
    return picture(width, height, label, *parts)
