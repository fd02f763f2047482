"""A comparison's figures: accuracy, leakage by vantage, privacy and utility, bytes."""

from collections.abc import Callable

from markupsafe import Markup

from fedvlm.reporting import comparison as keys
from fedvlm.reporting.charts import (
    Figure,
    Mark,
    Point,
    attacks_picture,
    intervals_chart,
    scatter_chart,
)
from fedvlm.reporting.charts import Row as Drawn
from fedvlm.reporting.charts.figure import both
from fedvlm.reporting.comparison import Cell as Measured
from fedvlm.reporting.comparison import Column, Comparison, Grid, Row
from fedvlm.reporting.facts import VANTAGES, Score
from fedvlm.reporting.numbers import (
    NONE,
    between,
    decimal,
    duration,
    finite,
    percent,
    round_percent,
    size,
    size_tick,
    tick,
)
from fedvlm.reporting.svg import top_of

_APART = 1.1  # bytes that differ by less say nothing
_REFERENCES = {
    "central": "central",
    "local_only": "clients alone",
    "control": "public pairs alone",
    "zero_shot": "zero-shot",
}


def writer_of(column: Column, cell: Measured | None = None) -> Callable[[float | None], str]:
    """Return what writes numbers of a column, or of a cell with a unit of its own."""
    unit = (cell.unit if cell is not None and cell.unit else column.unit) or ""
    if column.key.startswith("auc_"):
        return decimal
    known = {"fraction": percent, "bytes": size, "s": duration, "": decimal}
    if unit in known:
        return known[unit]
    return lambda value: NONE if finite(value) is None else f"{decimal(value)} {unit}"


def label_of(row: Row, grid: Grid) -> str:
    """Return a row's name, with its adapter where there are several."""
    several = len({each.adapter for each in grid.rows}) > 1
    told = f"{row.name}, {row.adapter}" if several and row.adapter else row.name
    return told.replace(" = ", "\u00a0=\u00a0")


def reason_of(cell: Measured) -> str:
    """Return why a cell has no value: what failed, or that it wasn't computed yet."""
    told = cell.failed.strip()
    return told if told.startswith(("failed", "not ")) else f"failed: {told}"


def _score(row: Row, key: str) -> Score | None:
    cell, value = row.cells.get(key), row.number(key)
    if cell is None or value is None:
        return None
    return Score(value, cell.low, cell.high)


def _drawn(grid: Grid, key: str, show: Callable[[float | None], str]) -> list[Drawn]:
    out = []
    for row in grid.rows:
        score, name = _score(row, key), label_of(row, grid)
        cell = row.cells.get(key)
        if score is not None:
            told = f"{name}: {show(score.value)} {between(show(score.low), show(score.high))}"
            out.append(Drawn(name, [Mark(score, told.strip())], show(score.value)))
        elif cell is not None and cell.failed:
            out.append(Drawn(name, why_not=reason_of(cell)))
    return out


def accuracy_figure(table: Comparison) -> Figure | None:
    """Draw each protection's accuracy beside the references."""
    rows = _drawn(table, keys.ACCURACY, percent)
    if not any(row.marks for row in rows):
        return None
    references = [
        (name, value)
        for key, name in _REFERENCES.items()
        if (value := finite(table.references.get(key))) is not None
    ]
    marks = [mark.score for row in rows for mark in row.marks]
    top = top_of([s.high or s.value for s in marks] + [value for _, value in references])

    def draw(width: float) -> Markup:
        shown = references if width > 500 else [r for r in references if r[0] == "zero-shot"]
        return intervals_chart(
            "Accuracy by protection: " + "; ".join(f"{row.name} {row.value}" for row in rows),
            rows,
            round_percent,
            width=width,
            low=0,
            high=top,
            references=shown,
            left=270 if width > 500 else None,
        )

    return Figure(
        "What is learned under each protection",
        "Score on the same test, with its 95 % interval. Dashed: what it is to be read against.",
        (both(draw),),
    )


def vantage_figure(table: Comparison) -> Figure | None:
    """Draw the best attack's AUC under each protection, a picture a vantage."""
    found = {v: rows for v in VANTAGES if (rows := _drawn(table, f"auc_{v}", decimal))}
    found = {v: rows for v, rows in found.items() if any(row.marks for row in rows)}
    if not found:
        return None
    lows = [m.score.low or m.score.value for rows in found.values() for r in rows for m in r.marks]
    low = min(0.4, int(10 * min(lows)) / 10)
    pictures = tuple(
        attacks_picture(
            f"{vantage}: " + "; ".join(f"{row.name} {row.value}" for row in rows),
            rows,
            low,
            f"{vantage}: {VANTAGES[vantage]}",
        )
        for vantage, rows in found.items()
    )
    return Figure(
        "What an attacker still gets, by who is looking",
        "AUC of the best membership attack with its interval; 0.5 is guessing. A protection that "
        "leaves a vantage no view is not drawn there.",
        pictures,
    )


def worst_leak(row: Row) -> tuple[str, Score] | None:
    """Return the vantage from which a row leaks most, and how much."""
    found = [(v, score) for v in VANTAGES if (score := _score(row, f"auc_{v}")) is not None]
    return max(found, key=lambda pair: pair[1].value) if found else None


def privacy_figure(table: Comparison) -> Figure | None:
    """Draw accuracy against what the best attacker gets."""
    points = []
    for row in table.rows:
        leak, value = worst_leak(row), row.number(keys.ACCURACY)
        if leak is None or value is None:
            continue
        name = label_of(row, table)
        told = f"{name}: {percent(value)}, AUC {decimal(leak[1].value)} at {leak[0]}"
        points.append(Point(name, leak[1].value, value, told))
    if len(points) < 2:
        return None
    return _scatter(
        table,
        points,
        ("Privacy and utility", "Up and to the left is better: much learned, little leaked."),
        "AUC of the best attack, from wherever it is best",
        x=(min(0.5, *(p.x for p in points)), 1.0),
        show=tick,
    )


def bytes_figure(table: Comparison) -> Figure | None:
    """Draw accuracy against what a client uploads in a round."""
    points = []
    for row in table.rows:
        sent, value = row.number(keys.UPLOAD), row.number(keys.ACCURACY)
        if sent is None or value is None or sent <= 0:
            continue
        name = label_of(row, table)
        points.append(Point(name, sent, value, f"{name}: {percent(value)}, {size(sent)} a round"))
    xs = [p.x for p in points]
    if not xs or max(xs) < _APART * min(xs):
        return None
    return _scatter(
        table,
        points,
        ("Bytes and accuracy", "Up and to the left is better. The axis across is logarithmic."),
        "upload of a client in a round",
        x=(min(xs) / 1.3, max(xs) * 1.3),
        show=size_tick,
        log=True,
    )


def _scatter(
    table: Comparison,
    points: list[Point],
    words: tuple[str, str],
    axis: str,
    *,
    x: tuple[float, float],
    show: Callable[[float], str],
    log: bool = False,
) -> Figure:
    zero = finite(table.references.get("zero_shot"))
    top = top_of([p.y for p in points] + ([] if zero is None else [zero]))

    def draw(width: float) -> Markup:
        return scatter_chart(
            f"{words[0]}: " + "; ".join(p.told for p in points),
            points,
            width=width,
            x=x,
            y=(0, top),
            written=(show, round_percent),
            axes=(axis, "accuracy"),
            log=log,
            references=() if zero is None else (("zero-shot", zero),),
        )

    return Figure(words[0], words[1], (both(draw),))
