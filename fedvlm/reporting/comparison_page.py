"""A comparison of protections as a page: the verdict, one figure, the table, then all the rest."""

from pathlib import Path

from fedvlm.files import write_text
from fedvlm.reporting import comparison as keys
from fedvlm.reporting.charts import Figure
from fedvlm.reporting.comparison import Cell as Measured
from fedvlm.reporting.comparison import Column, Comparison, Grid, Row
from fedvlm.reporting.comparison_figures import (
    accuracy_figure,
    bytes_figure,
    label_of,
    privacy_figure,
    vantage_figure,
    worst_leak,
    writer_of,
)
from fedvlm.reporting.facts import VANTAGES, Score, config_of
from fedvlm.reporting.numbers import NONE, between, decimal, duration, finite, plain, round_percent
from fedvlm.reporting.render import render
from fedvlm.reporting.settings import settings_of
from fedvlm.reporting.verdict import name_of
from fedvlm.reporting.view import (
    Block,
    Cell,
    Code,
    Fold,
    Head,
    Note,
    Notes,
    Page,
    Section,
    Shown,
    Table,
    Text,
)

_NOTHING = "none"
_KEPT = 0.9  # of the gain, for a protection to count as one that keeps it


def cell_of(column: Column, cell: Measured | None) -> Cell:
    """Return a measured value as a page shows it, with its interval and remark."""
    if cell is None:
        return Cell(NONE, kind="none")
    if cell.failed:
        return Cell("failed", cell.failed, None, "failed")
    if isinstance(cell.value, str):
        return Cell(cell.value, cell.note)
    show = writer_of(column, cell)
    ends = between(show(cell.low), show(cell.high)) if cell.low is not None else ""
    sub = "; ".join(part for part in (ends, cell.note) if part)
    return Cell(show(cell.value), sub, finite(cell.value))


def table_of(title: str, grid: Grid, note: str = "") -> Table | None:
    """Return a grid as a table; columns in which nothing was measured are left out."""
    used = [c for c in grid.columns if any(row.cells.get(c.key) is not None for row in grid.rows)]
    if not used or not grid.rows:
        return None
    heads = [Head("protection", text=True)]
    heads += [Head(c.title, text=c.unit == "text") for c in used]
    rows = [
        [Cell(label_of(row, grid)), *(cell_of(c, row.cells.get(c.key)) for c in used)]
        for row in grid.rows
    ]
    return Table(title, heads, rows, note=note)


def _columns_notes(grid: Grid) -> Notes | None:
    better = {"high": "Higher is better.", "low": "Lower is better.", "none": ""}
    notes = [Note(c.title, f"{c.note} {better[c.better]}".strip()) for c in grid.columns if c.note]
    return Notes(notes) if notes else None


def verdict(table: Comparison) -> str:
    """Return what the comparison shows, in one line; what wasn't measured isn't mentioned."""
    open_ = next((row for row in table.rows if row.name == _NOTHING), None)
    zero = finite(table.references.get("zero_shot"))
    told = []
    plain_accuracy = None if open_ is None else open_.number(keys.ACCURACY)
    if plain_accuracy is not None:
        against = "" if zero is None else f", against {round_percent(zero)} before"
        told.append(f"{round_percent(plain_accuracy)} without protection{against}")
    leak = None if open_ is None else worst_leak(open_)
    if leak is not None:
        told.append(f"membership AUC {decimal(leak[1].value)} for the {VANTAGES[leak[0]]}")
    best = _best(table, open_)
    if best is not None:
        row, kept, after = best
        words = f"{label_of(row, table)} keeps {round_percent(kept)} of the gain"
        told.append(f"{words} and leaves AUC {decimal(after.value)}")
    line = "; ".join(told)
    return f"{line[:1].upper()}{line[1:]}." if line else ""


def _best(table: Comparison, open_: Row | None) -> tuple[Row, float, Score] | None:
    """Return the protection that leaks least of those that keep nearly all of the gain."""
    found = []
    for row in table.rows:
        kept, leak = row.number(keys.GAIN_KEPT), worst_leak(row)
        if row is not open_ and kept is not None and leak is not None and kept >= _KEPT:
            found.append((row, kept, leak[1]))
    return min(found, key=lambda each: each[2].value) if found else None


def _sentence(table: Comparison) -> str:
    adapters = sorted({row.adapter for row in table.rows if row.adapter})
    names = {row.name for row in table.rows}
    told = f"{len(names)} {'protection' if len(names) == 1 else 'protections'}"
    if adapters:
        told += f", {'adapter' if len(adapters) == 1 else 'adapters'} {', '.join(adapters)},"
    config = config_of(table.config)
    told += f" on “{name_of(config.data.source)}”, over {config.data.clients} clients and "
    told += f"{config.training.rounds} {'round' if config.training.rounds == 1 else 'rounds'}"
    seeds = ", ".join(map(str, table.seeds))
    if seeds:
        told += f"; {'seed' if len(table.seeds) == 1 else 'seeds'} {seeds}"
    return f"{told}."


def _failed(table: Comparison) -> Notes | None:
    notes = []
    for grid in (table, table.inference):
        for row in () if grid is None else grid.rows:
            reasons: dict[str, list[str]] = {}
            for column in () if grid is None else grid.columns:
                cell = row.cells.get(column.key)
                if cell is not None and cell.failed:
                    reasons.setdefault(cell.failed, []).append(column.title)
            notes += [
                Note(f"{label_of(row, table)}: {', '.join(titles)}", why, bad=True)
                for why, titles in reasons.items()
            ]
    return Notes(notes) if notes else None


def _origin(table: Comparison) -> Section:
    settings = settings_of(config_of(table.config))
    heads = [Head("setting", text=True), Head("all rows", text=True), Head("default", text=True)]
    differing = [[Cell(s.name), Cell(s.value), Cell(s.default)] for s in settings if s.differs]
    whole = [[Cell(s.name, s.words), Cell(s.value), Cell(s.default)] for s in settings]
    blocks: list[Block] = [Code(table.command)] if table.command else []
    if differing:
        blocks.append(Table("What all rows share and differs from the default", heads, differing))
    blocks.append(Fold(f"All {len(settings)} settings", [Table("All settings", heads, whole)]))
    rows = [("seeds", ", ".join(map(str, table.seeds)) or "–")]
    rows += [(name, plain(version)) for name, version in table.versions.items()]
    rows += [(f"time of {name}", duration(value)) for name, value in table.seconds.items()]
    cells = [[Cell(name), Cell(value)] for name, value in rows]
    heads = [Head("", text=True), Head("", text=True)]
    blocks.append(Fold("Versions, seeds and times", [Table("Versions and seeds", heads, cells)]))
    return Section("again", "Make this again", blocks)


def comparison_page(table: Comparison) -> Page:
    """Return a comparison's page."""

    def section(name: str, title: str, *found: Block | Figure | None) -> Section | None:
        blocks = [Shown(x) if isinstance(x, Figure) else x for x in found if x is not None]
        return Section(name, title, blocks) if blocks else None

    notes = _columns_notes(table)
    inference = None if table.inference is None else table_of("Private inference", table.inference)
    infer_notes = None if table.inference is None else _columns_notes(table.inference)
    failed = _failed(table)
    sections = [
        section("gain", "", Text(table.note) if table.note else None, accuracy_figure(table)),
        section(
            "table",
            "What each protection buys and costs",
            table_of("What each protection buys and costs", table),
            Fold("What the columns mean", [notes]) if notes else None,
        ),
        section("leakage", "What leaks", vantage_figure(table), privacy_figure(table)),
        section("cost", "What it costs to send", bytes_figure(table)),
        section(
            "inference",
            "Private inference",
            inference,
            Fold("What these columns mean", [infer_notes]) if inference and infer_notes else None,
        ),
        section("failed", "What failed", failed),
        _origin(table),
    ]
    return Page(
        "fedvlm · comparison",
        verdict(table),
        _sentence(table),
        [each for each in sections if each is not None],
    )


def write_comparison(table: Comparison, folder: Path) -> Path:
    """Write `report.html` for a comparison into a folder; returns the page's path."""
    path = folder / "report.html"
    write_text(path, render(comparison_page(table)))
    return path
