"""A comparison on a terminal and in Markdown: one table a group, and private inference's own."""

from collections.abc import Sequence

from rich.console import Group
from rich.table import Table
from rich.text import Text

from fedvlm.compare.columns import GROUPS
from fedvlm.leakage.vantage import Vantage
from fedvlm.reporting.comparison import ACCURACY, Cell, Column, Comparison, Row

_PREFIXES = ((1e9, "G"), (1e6, "M"), (1e3, "k"))
_TITLES = {
    "utility": "what is left of the gain",
    "attack": "what an attacker still gets: best membership attack by vantage",
    "epsilon": "what is claimed, and what an audit can show of it",
    "trust": "whom it hurts: the trust audit's primary measures",
    "cost": "what it costs, a client and round",
    "inference": "private inference",
}
_REFERENCES = {
    "zero_shot": "zero-shot",
    "control": "public pairs alone",
    "local_only": "local only",
    "central": "central",
}


def text_of(cell: Cell | None, column: Column) -> str:
    """Return a cell as people read it: a percentage, bytes and seconds with their prefix."""
    if cell is None:
        return "–"
    if cell.failed:
        return cell.failed
    if isinstance(cell.value, str):
        return cell.value
    unit = cell.unit or column.unit
    value = _number(float(cell.value or 0.0), unit)
    if cell.low is None or cell.high is None:
        return value
    return f"{value} [{_number(cell.low, unit, True)}, {_number(cell.high, unit, True)}]"


def _number(value: float, unit: str, bare: bool = False) -> str:
    if unit == "fraction":
        return f"{100 * value:.1f}" if bare else f"{100 * value:.1f} %"
    if unit == "bytes":
        size, prefix = next(((s, p) for s, p in _PREFIXES if value >= s), (1.0, ""))
        return f"{value / size:.3g} {prefix}B"
    if unit == "s":
        return f"{value * 1e3:.3g} ms" if value < 1 else f"{value:.3g} s"
    return f"{value:.3f}" if abs(value) < 1 else f"{value:.2f}"


def _name(row: Row, several: bool) -> str:
    return f"{row.name} · {row.adapter}" if several and row.adapter else row.name


def _rows(
    rows: Sequence[Row], columns: Sequence[Column], several: bool
) -> list[tuple[list[str], str]]:
    """Return each row's texts, and why a row has none."""
    out = []
    for row in rows:
        cells = [row.cells.get(column.key) for column in columns]
        reason = ""
        only = [cell for cell in row.cells.values() if cell is not None]
        if len(only) == 1 and only[0].failed:  # the whole row is that reason
            reason = only[0].failed
        texts = [text_of(c, column) for c, column in zip(cells, columns, strict=True)]
        whys = {cell.failed if cell is not None else "" for cell in cells}
        if len(cells) > 1 and len(whys) == 1 and whys != {""}:  # one reason for the whole group
            texts = [whys.pop(), *["–"] * (len(cells) - 1)]
        out.append(([_name(row, several), *texts], reason))
    return out


def _groups(found: Comparison) -> list[tuple[str, list[Column]]]:
    there = {column.key: column for column in found.columns}
    out = []
    for name, columns in GROUPS.items():
        held = [there[column.key] for column in columns if column.key in there]
        if held:
            out.append((name, held))
    return out


def lines_of(found: Comparison) -> list[str]:
    """Return what stands beside the tables: references, seeds, what holds for all."""
    told = [
        f"{_REFERENCES[key]} {100 * value:.1f} %"
        for key, value in found.references.items()
        if key in _REFERENCES
    ]
    lines = ["references: " + ", ".join(told)] if told else []
    several = len(found.seeds) > 1
    what = "mean over seeds, Student's 95 %" if several else "one seed; 95 % within it"
    lines.append(f"seeds {', '.join(map(str, found.seeds))}: {what}")
    return [*([found.note] if found.note else []), *lines]


def notes_of(found: Comparison) -> list[str]:
    """Return which attack and which domain stands behind the numbers, row by row."""
    out, several = [], len({row.adapter for row in found.rows}) > 1
    wanted = {c.key for name in ("utility", "epsilon") for c in GROUPS[name]} - {ACCURACY}
    for row in found.rows:
        told = [
            f"{column.title}: {cell.note}"
            for column in found.columns
            if column.key in wanted and (cell := row.cells.get(column.key)) and cell.note
        ]
        if told:
            out.append(f"{_name(row, several)}: {'; '.join(told)}")
    return out


def tables(found: Comparison) -> Group:
    """Return the comparison for a terminal."""
    several = len({row.adapter for row in found.rows}) > 1
    parts: list[Table | Text] = []
    for name, columns in _groups(found):
        parts.append(_table(_TITLES[name], found.rows, columns, several, name == "utility"))
    if found.inference is not None:
        parts.append(
            _table(_TITLES["inference"], found.inference.rows, found.inference.columns, False, True)
        )
    parts += [Text(line) for line in [*lines_of(found), *notes_of(found)]]
    return Group(*parts)


def _table(
    title: str, rows: Sequence[Row], columns: Sequence[Column], several: bool, reasons: bool
) -> Table:
    table = Table(title=title)
    table.add_column("")
    for column in columns:
        table.add_column(column.title, overflow="fold")
    for texts, reason in _rows(rows, columns, several):
        if not reason:
            table.add_row(*texts)
        elif reasons:
            table.add_row(texts[0], reason, *["–"] * (len(columns) - 1))
    return table


def markdown(found: Comparison) -> str:
    """Return the comparison as Markdown: a table a group, what can't be with its reason below."""
    several = len({row.adapter for row in found.rows}) > 1
    out: list[str] = []
    for name, columns in _groups(found):
        title = _TITLES[name]
        out += [f"**{title[0].upper()}{title[1:]}**", ""]
        out += _markdown(found.rows, columns, several)
        if name == "attack":
            out += [*(f"{v}: {v.title}. " for v in Vantage), ""]
    reasons = [
        f"- {texts[0]}: {reason}"
        for texts, reason in _rows(found.rows, found.columns, several)
        if reason
    ]
    if reasons:
        out += ["**What can't be, and why**", "", *reasons, ""]
    if found.inference is not None:
        out += ["**Private inference**", ""]
        out += _markdown(found.inference.rows, found.inference.columns, False)
    out += [f"{line[0].upper()}{line[1:]}.\n" for line in lines_of(found)]
    out += [f"`{found.command}`", ""]
    return "\n".join(out)


def _markdown(rows: Sequence[Row], columns: Sequence[Column], several: bool) -> list[str]:
    lines = [
        "| | " + " | ".join(column.title for column in columns) + " |",
        "|---|" + "---|" * len(columns),
    ]
    for texts, reason in _rows(rows, columns, several):
        if not reason:
            lines.append("| " + " | ".join(each.replace("|", "\\|") for each in texts) + " |")
    return [*lines, ""]
