"""A figure of a page: pictures with a title and a caption, each in the widths it is shown at."""

from collections.abc import Callable
from dataclasses import dataclass

from markupsafe import Markup

WIDE, NARROW, SMALL = 840.0, 350.0, 272.0
"""Widths in pixels: on a desk, on a phone, and of one of several small pictures."""


@dataclass(frozen=True)
class Picture:
    """One picture, drawn for a desk and for a phone.

    Attributes:
        wide: For a desk.
        narrow: For a phone; the same where it fits both.
        title: Above it; empty for a figure's only one.
        note: Below it.
    """

    wide: Markup
    narrow: Markup | None = None
    title: str = ""
    note: str = ""


@dataclass(frozen=True)
class Figure:
    """Pictures that belong together.

    Attributes:
        title: What is seen, in a few words.
        caption: How to read it.
        pictures: One, or several small ones.
        two: Whether small ones are wide, so that only two stand beside each other.
    """

    title: str
    caption: str
    pictures: tuple[Picture, ...]
    two: bool = False

    @property
    def small(self) -> bool:
        """Whether its pictures stand beside each other."""
        return all(each.narrow is None for each in self.pictures)


def both(draw: Callable[[float], Markup]) -> Picture:
    """Draw a picture in both widths."""
    return Picture(draw(WIDE), draw(NARROW))
