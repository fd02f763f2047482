"""The trust table on a terminal and in Markdown, and a figure a pillar."""

from pathlib import Path

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from rich.table import Table

from fedvlm.files import whole_file
from fedvlm.trust.audit import TrustAudit
from fedvlm.trust.estimate import Estimate
from fedvlm.trust.readings import PILLARS, Column

_BEFORE, _AFTER = "#666666", "#0072B2"
_HEADER = ("pillar", "measure", "zero-shot", "run", "change")


def _text(one: Estimate | None) -> str:
    return "–" if one is None else str(one)


def rows_of(found: TrustAudit) -> list[list[str]]:
    """Return the table's rows; a measure without a number says why in its place."""
    out = []
    for column in found.columns:
        title = f"{column.title} *" if column.primary else column.title
        if column.why_not is not None:
            out.append([column.pillar, title, "–", f"not measured: {column.why_not}", "–"])
            continue
        out.append(
            [column.pillar, title, _text(column.before), _text(column.after), _text(column.change)]
        )
    return out


def trust_table(found: TrustAudit, title: str) -> Table:
    """Return the audit as a table for a terminal."""
    table = Table(title=title, caption="* primary measure of its pillar; 95 % intervals by concept")
    for name in _HEADER:
        table.add_column(name, overflow="fold")
    last = ""
    for row in rows_of(found):
        table.add_row(row[0] if row[0] != last else "", *row[1:])
        last = row[0]
    return table


def markdown(found: TrustAudit) -> str:
    """Return the audit as Markdown."""
    lines = ["| " + " | ".join(_HEADER) + " |", "|---|---|---|---|---|"]
    lines += ["| " + " | ".join(row) + " |" for row in rows_of(found)]
    return "\n".join(lines) + "\n"


def _drawn(columns: list[Column]) -> list[Column]:
    return [c for c in columns if c.after is not None and c.after.resolved]


def plot_pillar(found: TrustAudit, pillar: str, ax: Axes | None = None) -> Axes:
    """Draw a pillar's columns, zero-shot beside the run, with their intervals."""
    columns = _drawn([c for c in found.columns if c.pillar == pillar])
    if ax is None:
        height = 1.2 + 0.34 * max(1, len(columns))
        ax = Figure(figsize=(7.2, height), layout="constrained").subplots()
    places = range(len(columns))
    for shift, colour, label, key in (
        (0.14, _BEFORE, "zero-shot", "before"),
        (-0.14, _AFTER, "run", "after"),
    ):
        named = False
        for place, column in zip(places, columns, strict=True):
            one: Estimate | None = getattr(column, key)
            if one is None or not one.resolved:
                continue
            # An interval from resamples need not hold its estimate: no negative bar.
            bars = [[max(0.0, one.value - one.low)], [max(0.0, one.high - one.value)]]
            ax.errorbar(
                one.value,
                place + shift,
                xerr=bars,
                fmt="o",
                color=colour,
                markersize=4,
                capsize=2,
                label=None if named else label,
            )
            named = True
    ax.axvline(0.5 if pillar == "privacy" else 0.0, color="black", linewidth=0.8)
    ax.set_yticks(list(places), [c.title for c in columns], fontsize=8)
    ax.invert_yaxis()
    ax.grid(axis="x", alpha=0.25)
    ax.set_title(pillar, fontsize=10, loc="left")
    if columns:
        ax.legend(fontsize=8, loc="best")
    return ax


def save_figures(found: TrustAudit, folder: Path) -> list[Path]:
    """Write a figure a pillar that has numbers; returns their paths."""
    paths = []
    for pillar in PILLARS:
        if not _drawn([c for c in found.columns if c.pillar == pillar]):
            continue
        figure = plot_pillar(found, pillar).figure
        path = folder / f"trust-{pillar}.png"
        with whole_file(path) as temporary:
            figure.savefig(temporary, format="png", dpi=140)  # pyright: ignore
        paths.append(path)
    return paths
