"""The trust grid's figures, one a pillar: a panel a measure, a row a protection."""

from pathlib import Path

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from simulations._page_figure import save
from simulations._trust_table import SHOWN, Cell, of, spread, summary

_ZERO, _RUN = "#666666", "#0072B2"
_COLUMNS = 2  # two beside each other are legible on a phone


def save_figures(cells: list[Cell], order: list[str], out: Path) -> list[Path]:
    """Draw a figure a pillar as SVG; returns the paths."""
    rows = [name for name in order if any(c["kind"] == "protection" for c in of(cells, name))]
    paths = []
    for pillar, shown in SHOWN.items():
        drawn = [(n, t) for n, t in shown if any(summary(of(cells, r), n) for r in rows)]
        if not drawn:
            continue
        columns = min(_COLUMNS, len(drawn))
        lines = -(-len(drawn) // columns)
        size = (3.4 * columns + 1.0, (0.7 + 0.22 * (len(rows) + 1)) * lines)
        figure = Figure(figsize=size, layout="constrained")
        axes = figure.subplots(lines, columns, squeeze=False, sharey=True)
        for number, (measure, title) in enumerate(drawn):
            _panel(axes[number // columns][number % columns], cells, rows, measure, title, pillar)
        for number in range(len(drawn), lines * columns):
            axes[number // columns][number % columns].set_visible(False)
        paths.append(out / f"trust-{pillar}.svg")
        save(figure, paths[-1], sizes=False)
    return paths


def _panel(
    ax: Axes, cells: list[Cell], rows: list[str], measure: str, title: str, pillar: str
) -> None:
    floor = summary(of(cells, "plain"), measure, "before") if pillar != "privacy" else None
    # Panels share their rows: a measure that zero-shot has not leaves its place empty.
    names = rows if pillar == "privacy" else ["zero-shot", *rows]
    for place, name in enumerate(names):
        one = floor if name == "zero-shot" else summary(of(cells, name), measure)
        if one is None or spread(one) == "–":
            continue
        # An interval from resamples need not hold its estimate: no negative bar.
        bars = [[max(0.0, one.value - one.low)], [max(0.0, one.high - one.value)]]
        colour = _ZERO if name == "zero-shot" else _RUN
        ax.errorbar(one.value, place, xerr=bars, fmt="o", ms=4, capsize=2, color=colour)
    if floor is not None:
        ax.axvline(floor.value, color=_ZERO, linewidth=0.8, linestyle=":")
    if pillar == "privacy":
        ax.axvline(0.5, color="black", linewidth=0.8)
    ax.set_yticks(range(len(names)), names, fontsize=9)
    ax.set_ylim(len(names) - 0.5, -0.5)
    ax.tick_params(axis="x", labelsize=8)
    ax.xaxis.set_major_locator(MaxNLocator(5))
    ax.set_title(title, fontsize=9.5, loc="left")
    ax.grid(axis="x", alpha=0.25)
