"""A comparison's page: one table, its verdict, and every cell that failed named."""

import re
from dataclasses import replace

from hypothesis import given, settings

from fedvlm.reporting.comparison import Cell, Comparison, Row
from fedvlm.reporting.comparison_page import comparison_page, verdict
from fedvlm.reporting.pages import report_of
from fedvlm.reporting.render import render
from tests.fedvlm.reporting.samples import Parsed, comparison
from tests.fedvlm.reporting.test_comparison import GRIDS
from tests.fedvlm.reporting.test_run_page import HOSTILE, words


def test_the_verdict_is_from_measured_cells():
    assert words(verdict(comparison())) == (
        "62 % without protection, against 25 % before; membership AUC 0.96 for the server that "
        "sees single updates; active secure aggregation keeps 100 % of the gain and leaves AUC "
        "0.60."
    )
    nothing = replace(comparison(), rows=(Row("none", "lora", {"accuracy": None}),))
    assert verdict(nothing) == ""


def test_a_folder_with_a_comparison_has_its_page(tmp_path):
    comparison().save(tmp_path)
    page = report_of(tmp_path).read_text()
    parsed = Parsed(page)
    text = words(parsed.text)
    assert page.count('class="main"') == 0
    for told in (
        "777 kB", "6.99 MB", "100.0 %", "[58.0 %, 66.0 %]", "DropoutError: 2 of 10 nodes came",
        "example DP, own noise, ε = 1", "Privacy and utility", "Bytes and accuracy",
        "the owner learns all", "seeds 0, 1, 2", "fedvlm compare",
    ):  # fmt: skip
        assert told in text.replace("\u00a0", " "), told
    assert "never measured" not in text
    assert not re.search(r"\d[eE][+-]?\d\d", text)
    assert "http" not in page.replace('http-equiv="Content-Security-Policy"', "")


def test_text_of_a_comparison_stays_text():
    rows = tuple(
        Row(HOSTILE, HOSTILE, {"accuracy": Cell(failed=HOSTILE), "auc_V1": Cell(HOSTILE)})
        for _ in range(2)
    )
    found = replace(
        comparison(), rows=rows, command=HOSTILE, note=HOSTILE, versions={HOSTILE: HOSTILE}
    )
    parsed = Parsed(render(comparison_page(found)))
    assert parsed.scripts == 1
    assert not [v for tag, _, v in parsed.attributes if tag == "img"]
    assert parsed.text.count("alert(1)") > 5


@settings(max_examples=40, deadline=None)
@given(grid=GRIDS)
def test_any_comparison_makes_a_page(grid):
    Parsed(render(comparison_page(Comparison(grid.columns, grid.rows, grid))))
