"""Scores by round: a line with its interval, labelled where it ends, beside lines to read it by."""

from collections.abc import Sequence
from dataclasses import dataclass

from markupsafe import Markup

from fedvlm.reporting.facts import Score
from fedvlm.reporting.numbers import percent, round_percent
from fedvlm.reporting.svg import Scale, dot, line, path, picture, spread, text, top_of

_TOP, _BOTTOM, _GAP = 16.0, 36.0, 17.0


@dataclass(frozen=True)
class Line:
    """A score by round.

    Attributes:
        name: Its label.
        points: Round → score.
    """

    name: str
    points: Sequence[tuple[int, Score]]


@dataclass(frozen=True)
class Reference:
    """A score that doesn't change by round.

    Attributes:
        name: Its label.
        value: As a fraction.
        kind: Class of its line.
    """

    name: str
    value: float
    kind: str = "reference"


def _said(name: str, number: int, score: Score) -> str:
    told = f"{name}, round {number}: {percent(score.value)}"
    if score.low is not None and score.high is not None:
        told += f" [{percent(score.low)}, {percent(score.high)}]"
    return told


def lines_chart(
    label: str,
    one: Line,
    references: Sequence[Reference] = (),
    *,
    width: float,
    height: float,
    margin: float,
    top: float | None = None,
    last: int | None = None,
    axis: str = "round",
) -> Markup:
    """Draw one line by round with its interval, and references across.

    Args:
        label: For who can't see it.
        one: The line; rounds without a score are left out.
        references: Drawn across, each labelled at the right.
        width: Of the picture.
        height: Of the picture.
        margin: Room for labels at the right.
        top: Upper end of the axis as a fraction; None for one that fits.
        last: Last round of the axis; None for the line's own.
        axis: Name of the axis below.
    """
    highs = [s.value if s.high is None else s.high for _, s in one.points]
    top = top or top_of([*highs, *(each.value for each in references)])
    rounds = [number for number, _ in one.points]
    end = float(max(1, last or 0, *rounds))
    x = Scale(0, end, 44, width - margin)
    y = Scale(0, top, height - _BOTTOM, _TOP)
    parts = [*_axes(x, y, width - margin, height, axis)]
    parts += [line(x.start, y(e.value), x.end, y(e.value), e.kind) for e in references]
    bands = [(n, s) for n, s in one.points if s.low is not None and s.high is not None]
    if len(bands) > 1:
        upper = [(x(n), y(s.high or 0)) for n, s in bands]
        lower = [(x(n), y(s.low or 0)) for n, s in reversed(bands)]
        parts.append(path([*upper, *lower], "band", close=True))
    spots = [(x(n), y(s.value)) for n, s in one.points]
    if len(spots) > 1:
        parts.append(path(spots, "main"))
    for (n, s), (px, py) in zip(one.points, spots, strict=True):
        parts.append(dot(px, py, _said(one.name, n, s), "spot"))
    ends = [(f"{each.name} {round_percent(each.value)}", y(each.value), "") for each in references]
    if one.points:
        name = f"{one.name} {round_percent(one.points[-1][1].value)}"
        ends.append((name, spots[-1][1], "strong"))
    places = spread([place for _, place, _ in ends], _GAP, _TOP, height - _BOTTOM)
    for (words, wanted, kind), place in zip(ends, places, strict=True):
        if abs(place - wanted) > 3:
            parts.append(line(x.end + 2, wanted, x.end + 9, place, "leader"))
        parts.append(text(x.end + 11, place, words, f"label {kind}".strip()))
    return picture(width, height, label, *parts)


def _axes(x: Scale, y: Scale, right: float, height: float, axis: str) -> list[Markup]:
    parts = []
    for value in y.ticks(4):
        parts.append(line(x.start, y(value), right, y(value), "axis" if value == 0 else "grid"))
        parts.append(text(x.start - 8, y(value), round_percent(value), "tick", "end"))
    step = max(1, round((x.high - x.low) / 6))
    parts += [
        text(x(number), height - _BOTTOM + 15, str(number), "tick", "middle")
        for number in range(0, int(x.high) + 1, step)
    ]
    parts.append(text((x.start + x.end) / 2, height - 5, axis, "tick", "middle"))
    return parts
