"""A result in a notebook: the verdict and a small table."""

from fedvlm.federation.result import Result
from fedvlm.reporting.facts import facts_of
from fedvlm.reporting.run_tables import gains_table
from fedvlm.reporting.svg import tag
from fedvlm.reporting.verdict import sentence, verdict
from fedvlm.reporting.view import Cell


def html_of(result: Result) -> str:
    """Return a result as a fragment of HTML; text of the result stays text."""
    facts = facts_of(result)
    parts = [tag("p", tag("strong", verdict(facts))), tag("p", sentence(facts))]
    table = gains_table(facts)
    if table is not None:
        head = tag("tr", *(tag("th", head.title) for head in table.heads))
        rows = [tag("tr", *(tag("td", _words(cell)) for cell in row)) for row in table.rows]
        parts.append(tag("table", tag("thead", head), tag("tbody", *rows)))
    return str(tag("div", *parts))


def _words(cell: Cell) -> str:
    return f"{cell.text} {cell.sub}" if cell.sub else cell.text
