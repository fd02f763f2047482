"""The README renders on GitHub, is short where it says so, and quotes what is kept."""

import re

from fedvlm.reporting.comparison import Cell, Column, Comparison, Row
from simulations import readme_table
from tests.docs.pages import OTHERS, PYTHON, ROOT, SHELL, blocks

README = ROOT / "README.md"
TEXT = README.read_text("utf-8")


def test_it_is_plain_markdown():
    assert not re.findall(r"^(?:```\{|:::|\{\w+\}`)", TEXT, re.MULTILINE)
    assert {block.language for block in blocks(README)} <= {SHELL, PYTHON, *OTHERS}


def test_every_link_leads_somewhere():
    for target in re.findall(r"\]\(([^)\s]+)\)", TEXT):
        if not target.startswith(("http://", "https://")):
            assert (ROOT / target.partition("#")[0]).exists(), target


def test_the_quickstart_is_of_at_most_25_lines():
    (code,) = (block for block in blocks(README) if block.language == PYTHON)
    assert len(code.text.strip().splitlines()) <= 25


def test_the_peers_versions_are_the_pinned_ones():
    pins = dict(
        line.split("==") for line in (ROOT / "constraints.txt").read_text().splitlines() if line
    )
    for peer, package in (
        ("Flower", "flwr"),
        ("CrypTen", "crypten"),
        ("TenSEAL", "tenseal"),
        ("Opacus", "opacus"),
    ):
        assert f"{peer} {pins[package]}" in TEXT, package


def test_the_table_is_of_what_is_kept():
    (match,) = readme_table.BLOCK.finditer(TEXT)
    inside = match[0].removeprefix(match[1]).removesuffix(match[2])
    assert inside == readme_table.block(), "python -m simulations.readme_table"


def test_a_comparison_s_table_has_each_row_that_was_measured():
    columns = (
        Column("accuracy", "accuracy", "fraction", "high", "…"),
        Column("auc_V1", "AUC V1", "", "low", "…"),
    )
    rows = (
        Row("none", "lora", {"accuracy": Cell(0.6, low=0.5, high=0.7), "auc_V1": Cell(0.9)}),
        Row("secure aggregation", "lora", {"accuracy": Cell(0.6), "auc_V1": None}),
        Row("sums under HE", "lora", {"accuracy": Cell(failed="refused: it can't be")}),
        Row("later", "lora", {"accuracy": Cell(0.5), "auc_V1": Cell(failed="not measured yet: …")}),
    )
    told = readme_table.of_comparison(
        Comparison(columns, rows, seeds=(0,), command="fedvlm compare x.toml")
    )
    assert "| none | 60.0 % [50.0, 70.0] | 0.900 |" in told
    assert "| secure aggregation | 60.0 % | – |" in told
    assert "| later | 50.0 % | – |" in told
    assert "HE" not in told
    assert "`fedvlm compare x.toml`" in told


def test_the_peers_ratios_are_of_what_is_kept():
    (match,) = readme_table.PEERS.finditer(TEXT)
    inside = match[0].removeprefix(match[1]).removesuffix(match[2])
    assert inside == readme_table.peers(), "python -m simulations.readme_table"
