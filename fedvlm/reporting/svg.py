"""Scalable pictures as text: tags, scales and labels that keep out of each other's way.

Colours are class names alone, so that a style sheet decides them, for light and for dark.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from markupsafe import Markup, escape

_LETTER = 6.7  # width of a letter, about


def tag(name: str, *children: Any, **attributes: Any) -> Markup:
    """Return an element; what isn't Markup is escaped.

    Args:
        name: The element's name.
        children: What it holds.
        attributes: `class_` stands for class, other underscores for hyphens; None leaves one out.

    Example:
        >>> tag("text", "<b>", x=1.26, class_="label")
        Markup('<text x="1.3" class="label">&lt;b&gt;</text>')
    """
    told = [
        Markup('{}="{}"').format(key.rstrip("_").replace("_", "-"), _written(value))
        for key, value in attributes.items()
        if value is not None
    ]
    inner = Markup("").join(escape(child) for child in children)
    head = Markup(" ").join([escape(name), *told])
    return Markup("<{}>{}</{}>").format(head, inner, name)


def _written(value: Any) -> str:
    if isinstance(value, float):
        return f"{value:.1f}".rstrip("0").rstrip(".")
    return str(value)


def picture(width: float, height: float, label: str, *children: Markup) -> Markup:
    """Return the `svg` element around a picture, told to who can't see it by a label."""
    return tag(
        "svg",
        *children,
        viewBox=f"0 0 {width:g} {height:g}",
        width=width,
        height=height,
        role="img",
        aria_label=label,
    )


def line(x1: float, y1: float, x2: float, y2: float, kind: str) -> Markup:
    """Return a straight line."""
    return tag("line", x1=x1, y1=y1, x2=x2, y2=y2, class_=kind)


def text(x: float, y: float, words: Any, kind: str = "", anchor: str | None = None) -> Markup:
    """Return words whose middle is at a height."""
    return tag("text", words, x=x, y=y, dy="0.32em", class_=kind or None, text_anchor=anchor)


def dot(x: float, y: float, told: str, kind: str, radius: float = 4) -> Markup:
    """Return a dot that says a value to who points at it, on an area that a finger can hit."""
    return tag(
        "g",
        tag("title", told),
        tag("circle", cx=x, cy=y, r=max(10.0, radius), class_="hit"),
        tag("circle", cx=x, cy=y, r=radius, class_=kind),
        class_="mark",
    )


def path(points: Sequence[tuple[float, float]], kind: str, close: bool = False) -> Markup:
    """Return a line through points, or the area that they enclose."""
    steps = "L".join(f"{x:.1f} {y:.1f}" for x, y in points)
    return tag("path", d=f"M{steps}{'Z' if close else ''}", class_=kind)


@dataclass(frozen=True)
class Scale:
    """Values on an axis.

    Attributes:
        low: The value at `start`.
        high: The value at `end`.
        start: Its place.
        end: Its place.
        log: Whether factors are equally far apart, rather than differences.
    """

    low: float
    high: float
    start: float
    end: float
    log: bool = False

    def __call__(self, value: float) -> float:
        """Return the place of a value, the axis' end for what lies beyond."""
        low, high, value = (self._on(v) for v in (self.low, self.high, value))
        share = 0.5 if high == low else (value - low) / (high - low)
        return self.start + min(1.0, max(0.0, share)) * (self.end - self.start)

    def _on(self, value: float) -> float:
        return math.log10(max(value, 1e-300)) if self.log else value

    def ticks(self, count: int = 5) -> list[float]:
        """Return about so many round values; of a logarithmic axis powers of ten, and between."""
        if self.log:
            first, last = math.floor(self._on(self.low)), math.ceil(self._on(self.high))
            ends = self.low * (1 - 1e-9), self.high * (1 + 1e-9)
            for steps in ((1,), (1, 3), (1, 2, 5)):
                found = [s * 10.0**k for k in range(first, last + 1) for s in steps]
                found = [value for value in found if ends[0] <= value <= ends[1]]
                if len(found) > 2:
                    break
            return found
        step = nice_step((self.high - self.low) / max(1, count))
        first, last = math.ceil(self.low / step - 1e-9), math.floor(self.high / step + 1e-9)
        return [k * step for k in range(first, last + 1)]


def nice_step(raw: float) -> float:
    """Return the round number 1, 2, 2.5 or 5 times a power of ten, not below a raw one.

    Example:
        >>> nice_step(0.13), nice_step(7)
        (0.2, 10.0)
    """
    if raw <= 0 or not math.isfinite(raw):
        return 1.0
    ten = 10.0 ** math.floor(math.log10(raw))
    found = next((k for k in (1, 2, 2.5, 5) if k * ten >= raw * (1 - 1e-9)), 10)
    return found * ten


def top_of(values: Sequence[float], least: float = 0.1, most: float = 1.0) -> float:
    """Return a round upper end for fractions that start at 0."""
    highest = min(most, max([least, *values]))
    step = nice_step(highest / 4)
    return min(most, step * math.ceil(highest * 1.02 / step))


def fitted(words: str, room: float) -> str:
    """Shorten words to the room that there is, in pixels; what stands behind a comma is kept.

    Example:
        >>> fitted("example DP, own noise, ε = 8", 110)
        'example …, ε = 8'
    """
    most = max(6, int(room / _LETTER))
    if len(words) <= most:
        return words
    head, comma, tail = words.rpartition(", ")
    if comma and len(tail) < most - 4:
        return f"{head[: most - len(tail) - 3]}…, {tail}"
    return words[: most - 1].rstrip() + "…"


def spread(places: Sequence[float], gap: float, low: float, high: float) -> list[float]:
    """Move places apart, as little as needed, so that labels at them don't overlap.

    Args:
        places: Wanted heights, in any order.
        gap: Least distance of two.
        low: Upper end of the room, in pixels.
        high: Lower end of the room.

    Returns:
        Heights in the order given, at least `gap` apart where the room allows it.

    Example:
        >>> spread([10, 12, 50], 10, 0, 100)
        [6.0, 16.0, 50.0]
    """
    order = sorted(range(len(places)), key=lambda k: places[k])
    groups: list[list[float]] = []  # [middle, count], each group a stack of labels

    def edge(group: list[float], side: int) -> float:
        return group[0] + side * (group[1] - 1) * gap / 2

    for k in order:
        groups.append([float(places[k]), 1])
        while len(groups) > 1 and edge(groups[-1], -1) - edge(groups[-2], 1) < gap:
            one, other = groups.pop(), groups.pop()
            total = one[1] + other[1]
            groups.append([(one[0] * one[1] + other[0] * other[1]) / total, total])
            half = (total - 1) * gap / 2
            groups[-1][0] = min(max(groups[-1][0], low + half), max(high - half, low + half))
    flat = [edge(g, -1) + n * gap for g in groups for n in range(int(g[1]))]
    out = [0.0] * len(places)
    for k, place in zip(order, flat, strict=True):
        out[k] = place
    return out
