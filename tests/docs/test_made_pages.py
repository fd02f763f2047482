"""Pages that a script makes are as it makes them, and tables name what exists."""

import json
import re

import pytest

from simulations import _claims, commands_page, reproduce
from tests.docs.commands import problem
from tests.docs.pages import ROOT
from tests.test_threat_model import problem as problem_of_test

DOCS = ROOT / "docs"


def test_the_reproduction_page_is_of_the_kept_results():
    written = (DOCS / "reproduce.md").read_text("utf-8")
    assert written == reproduce.page(), "python -m simulations.reproduce docs/reproduce.md"


def test_each_command_that_reproduces_exists():
    for path, made in json.loads(reproduce.INDEX.read_text("utf-8")).items():
        assert (ROOT / path).is_file(), path
        assert not problem(made["command"].split()), made["command"]
        assert re.fullmatch(r"\d{4}-\d\d-\d\d", made["measured"])


def test_every_result_that_is_indexed_is_claimed_of():
    index = json.loads(reproduce.INDEX.read_text("utf-8"))
    assert {claim.result for claim in reproduce.CLAIMS} == set(index)


def test_a_claim_follows_its_result(monkeypatch):
    """Another number in a kept result is another page: nothing is written into the page by hand."""
    results = json.loads((ROOT / _claims.SMPC).read_text("utf-8"))
    for row in results["width"]:
        row["rounds"] += 1
    kept = reproduce.kept
    monkeypatch.setattr(reproduce, "kept", lambda p: results if p == _claims.SMPC else kept(p))
    assert reproduce.page() != (DOCS / "reproduce.md").read_text("utf-8")


def test_the_page_of_commands_is_that_of_the_help_texts():
    written = (DOCS / "commands.md").read_text("utf-8")
    assert written == commands_page.page(), "python -m simulations.commands_page docs/commands.md"


def test_every_figure_stands_in_the_gallery():
    page = (DOCS / "gallery.md").read_text("utf-8")
    figures = [p for p in (DOCS / "figures").iterdir() if p.suffix in (".svg", ".png")]
    assert figures
    assert not [p.name for p in figures if f"(figures/{p.name})" not in page]


def test_no_figure_has_a_ground_of_its_own():
    """A white slab on a dark page: U12."""
    for path in (DOCS / "figures").glob("*.svg"):
        text = path.read_text("utf-8").lower()
        assert "fill: #ffffff" not in text, path.name
        assert "#000000" not in text, path.name
        assert not re.search(r"<dc:date>", text), path.name


def guarantees() -> list[list[str]]:
    lines = (DOCS / "guarantees.md").read_text("utf-8").splitlines()
    rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines if "|" in line]
    return [row for row in rows if "`" in row[-1]]


@pytest.mark.parametrize("row", guarantees(), ids=lambda row: row[0][:50])
def test_a_guarantee_names_code_and_test_that_exist(row):
    (code,), (test,) = (re.findall(r"`([^`]+)`", cell) for cell in row[-2:])
    assert (ROOT / code).is_file()
    assert not problem_of_test(test)


def test_there_are_guarantees_of_every_part():
    assert len(guarantees()) >= 20


def test_links_have_words_of_their_own():
    """Sphinx fills an empty link with a title; GitHub shows nothing."""
    empty = [p.name for p in DOCS.glob("*.md") if "[](" in p.read_text("utf-8")]
    assert not empty


def test_directives_are_few():
    """What only Sphinx renders: navigation, cards, tables from files, docstrings, downloads."""
    for path in DOCS.glob("*.md"):
        used = set(re.findall(r"^[`:]{3,}\{([\w-]+)\}", path.read_text("utf-8"), re.MULTILINE))
        allowed = {"include", "toctree"}
        if path.name == "index.md":
            allowed |= {"grid", "grid-item-card"}
        assert used <= allowed, (path.name, used - allowed)
