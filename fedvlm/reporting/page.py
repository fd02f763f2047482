"""The HTML report of a run: one file, nothing fetched from elsewhere."""

import base64
import html
from pathlib import Path

from fedvlm.config import config_from
from fedvlm.federation.result import Result
from fedvlm.files import write_text
from fedvlm.reporting.plots import PLOTS, save_plots
from fedvlm.reporting.tables import SUMMARY_COLUMNS, cost_line, summary_rows

_STYLE = """
body{font:16px/1.5 system-ui,sans-serif;max-width:60rem;margin:2rem auto;padding:0 1rem;color:#222}
table{border-collapse:collapse;margin:1rem 0}td,th{border-bottom:1px solid #ddd;padding:.3rem .8rem;
text-align:right}td:first-child,th:first-child{text-align:left}img{max-width:100%}
code,pre{background:#f5f5f5;font-size:.85rem}pre{padding:.8rem;overflow:auto}
"""
_CAPTIONS = {
    "rounds": "Retrieval by round, with the lines to read it against.",
    "domains": "By the designer of the test image; no client saw that designer's drawing of it.",
    "bytes": "What one client sent and received.",
}
_NOTE = (
    "What the gain is: transfer across designers of concepts that some client holds. Read the "
    "columns of concepts that nobody holds and of public concepts for what was not gained, and "
    "for what was forgotten. Rounds and rates were chosen on the validation part; the test part "
    "decided nothing."
)


def _table(header: list[str], rows: list[list[str]]) -> str:
    head = "".join(f"<th>{html.escape(cell)}</th>" for cell in header)
    body = "".join(
        "<tr>" + "".join(f"<td>{html.escape(cell)}</td>" for cell in row) + "</tr>" for row in rows
    )
    return f"<table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>"


def _facts(values: dict) -> str:
    return _table(["setting", "value"], [[str(k), str(v)] for k, v in values.items()])


def write_report(result: Result, folder: Path) -> Path:
    """Write `report.html` and `figures/*.png` for a result; returns the page's path."""
    config = config_from(result.config)
    images = {path.stem: path for path in save_plots(result, folder / "figures")}
    parts = [
        "<!doctype html><html lang='en'><head><meta charset='utf-8'>",
        f"<title>fedvlm: {html.escape(result.data['name'])}, seed {result.seed}</title>",
        f"<style>{_STYLE}</style></head><body><h1>Federation over {config.data.clients} "
        f"clients, {len(result.rounds) - 1} rounds</h1>",
        _table(list(SUMMARY_COLUMNS), summary_rows(result)),
        f"<p>{html.escape(_NOTE)}</p><p>{html.escape(cost_line(result))}</p>",
    ]
    for name in PLOTS:
        data = base64.b64encode(images[name].read_bytes()).decode()
        parts.append(
            f"<figure><img alt='{name}' src='data:image/png;base64,{data}'>"
            f"<figcaption>{html.escape(_CAPTIONS[name])}</figcaption></figure>"
        )
    privacy = result.privacy or {"differential privacy": "none"}
    for title, values in (
        ("Protection", {**result.protection, **result.protection.get("parameters", {})}),
        ("Privacy", privacy),
        ("Data", result.data),
        ("Adapter", result.adapter),
        ("Configuration", config.by_name()),
        ("Versions", result.versions),
    ):
        parts.append(f"<h2>{title}</h2>{_facts(values)}")
    if result.leakage:
        header = list(result.leakage[0])
        rows = [[str(row.get(key)) for key in header] for row in result.leakage]
        parts.append(f"<h2>Leakage</h2>{_table(header, rows)}")
    parts.append("</body></html>\n")
    path = folder / "report.html"
    write_text(path, "".join(parts))
    return path
