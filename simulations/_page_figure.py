"""How a figure of the documentation is kept: SVG for light pages, dark pages and phones.

Pages are light or dark, and an image can't ask which: so the ground is transparent, and what would
be black is a grey in the middle. Panels stand below each other, so that a page of 390 pixels shows
them at a size that can be read.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import matplotlib as mpl
from matplotlib.axes import Axes
from matplotlib.colors import to_hex
from matplotlib.figure import Figure

from fedvlm.files import whole_file

INK = "#7b7f86"  # contrast of about 4 to 1 with white and with a dark page alike
GRID = "#7b7f86"
WIDTH = 5.2  # inches
_FONT = 12
_BLACKS = ("#000000", "#0d0d0d")


def panels(count: int, height: float = 3.3, **options: Any) -> tuple[Figure, Sequence[Axes]]:
    """Return a figure of so many panels below each other, of one width.

    Args:
        count: How many.
        height: Of one, in inches.
        options: For `Figure.subplots`.
    """
    figure = Figure(figsize=(WIDTH, height * count), layout="constrained")
    return figure, list(figure.subplots(count, 1, squeeze=False, **options)[:, 0])


def _inked(colour: Any) -> bool:
    try:
        return to_hex(colour) in _BLACKS
    except (ValueError, TypeError):
        return False


def dress(figure: Figure, sizes: bool = True) -> None:
    """Give a figure the pages' look: no ground, grey in the place of black, larger text.

    Args:
        figure: What to change.
        sizes: Set the sizes of texts, too; a figure of many panels has its own.
    """
    figure.patch.set_alpha(0)
    for artist in figure.findobj():
        for kind in ("color", "edgecolor", "facecolor", "markeredgecolor", "markerfacecolor"):
            get, put = (getattr(artist, f"{verb}_{kind}", None) for verb in ("get", "set"))
            if get is not None and put is not None and _inked(get()):
                put(INK)
    for ax in figure.axes:
        ax.patch.set_alpha(0)
        ax.tick_params(which="both", color=INK, labelcolor=INK)
        for spine in ax.spines.values():
            spine.set_edgecolor(INK)
        for side in ("top", "right"):
            ax.spines[side].set_visible(False)
        if sizes:
            ax.tick_params(which="both", labelsize=_FONT - 1)
            for label in (ax.title, ax.xaxis.label, ax.yaxis.label):
                label.set_fontsize(_FONT)
        legend = ax.get_legend()
        if legend is not None:
            legend.get_frame().set_alpha(0)
            for text in legend.get_texts():
                text.set_color(INK)
                if sizes:
                    text.set_fontsize(_FONT - 2)


def save(figure: Figure, path: Path, sizes: bool = True) -> None:
    """Dress a figure and write it as SVG; the same figure gives the same file."""
    dress(figure, sizes)
    salt: Any = {"svg.hashsalt": path.stem}
    with mpl.rc_context(salt), whole_file(path) as temporary:
        figure.savefig(temporary, format="svg", metadata={"Date": None}, transparent=True)  # pyright: ignore
