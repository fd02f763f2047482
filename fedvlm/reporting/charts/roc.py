"""ROCs on logarithmic axes: what an attack finds when it may err only rarely."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

from markupsafe import Markup

from fedvlm.reporting.numbers import percent
from fedvlm.reporting.svg import Scale, line, path, picture, tag, text

_LEFT, _RIGHT, _TOP, _BOTTOM = 46.0, 10.0, 10.0, 40.0


@dataclass(frozen=True)
class Curve:
    """A ROC with its band.

    Attributes:
        name: Whose it is.
        points: False-positive rate, true-positive rate, and the ends of its interval, ascending.
    """

    name: str
    points: Sequence[tuple[float, float, float, float]]


def roc_chart(
    label: str, one: Curve, others: Sequence[Curve], *, width: float, least: float
) -> Markup:
    """Draw one ROC with its band, and others faintly behind it: none is hidden by another.

    Args:
        label: For who can't see it.
        one: The curve that this picture is of.
        others: Of the other pictures.
        width: Of the picture, which is nearly square.
        least: Lower end of both axes, in (0, 1).
    """
    height = width - _LEFT - _RIGHT + _TOP + _BOTTOM
    x = Scale(least, 1, _LEFT, width - _RIGHT, log=True)
    y = Scale(least, 1, height - _BOTTOM, _TOP, log=True)
    parts = []
    for value in x.ticks():
        name = percent(value, max(0, -2 - round(math.log10(value))))
        parts.append(line(x(value), y.start, x(value), y.end, "grid"))
        parts.append(text(x(value), height - _BOTTOM + 13, name, "tick", "middle"))
        parts.append(line(x.start, y(value), x.end, y(value), "grid"))
        parts.append(text(x.start - 6, y(value), name, "tick", "end"))
    parts.append(line(x.start, y.start, x.end, y.end, "reference"))
    parts.append(text((x.start + x.end) / 2, height - 7, "false positives", "tick", "middle"))
    parts += [path([(x(f), y(t)) for f, t, _, _ in each.points], "ghost") for each in others]
    upper = [(x(f), y(high)) for f, _, _, high in one.points]
    lower = [(x(f), y(low)) for f, _, low, _ in reversed(one.points)]
    parts.append(path([*upper, *lower], "band", close=True))
    parts.append(path([(x(f), y(t)) for f, t, _, _ in one.points], "main"))
    for f, t, low, high in one.points:
        told = (
            f"{one.name}: finds {percent(t)} [{percent(low)}, {percent(high)}] of members while "
            f"it accuses {percent(f, 2 if f < 0.01 else 1)} of the others"
        )
        parts.append(_hit(x(f), y(t), told))
    return picture(width, height, label, *parts)


def _hit(x: float, y: float, told: str) -> Markup:
    return tag(
        "g",
        tag("title", told),
        tag("circle", cx=x, cy=y, r=8, class_="hit"),
        tag("circle", cx=x, cy=y, r=3, class_="spot on-hover"),
        class_="mark",
    )
