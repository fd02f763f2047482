"""Each promise names the test that holds it, and each test that a page names is there."""

import ast
import re
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
PAGES = sorted((ROOT / "docs").glob("*.md"))
MODEL = ROOT / "docs" / "threat-model.md"
COMMENT = re.compile(r"<!--\s*test:(.*?)-->", re.DOTALL)
FILE = re.compile(r"(?:[\w-]+/)*test_\w+\.py")
NAME = re.compile(r"(?:Test\w+::)?test_\w+|Test\w+")
# Who a page's section promises something of: all of the threat model's do.
SECTIONS = (
    "Nodes",
    "Secure aggregation",
    "Differential privacy",
    "Homomorphic encryption",
    "Private inference",
)
# Parts that promise nothing: who is trusted, and what is said not to hold.
SILENT = {"Who is trusted for what", "What is not claimed"}


@cache
def tests() -> dict[str, set[str]]:
    """Return the tests of each file, by its path from the root: functions, classes, and both."""
    found = {}
    for path in (ROOT / "tests").rglob("test_*.py"):
        names: set[str] = set()
        for node in ast.parse(path.read_text(encoding="utf-8")).body:
            if isinstance(node, ast.ClassDef | ast.FunctionDef):
                names.add(node.name)
            if isinstance(node, ast.ClassDef):
                names |= {f"{node.name}::{each.name}" for each in methods(node)}
        found[path.relative_to(ROOT).as_posix()] = names
    return found


def methods(node: ast.ClassDef) -> list[ast.FunctionDef]:
    return [each for each in node.body if isinstance(each, ast.FunctionDef)]


def named(text: str) -> list[str]:
    """Return what the comments of a text name, one each."""
    return [
        each for comment in COMMENT.findall(text) for each in re.split(r"[,\s]+", comment) if each
    ]


def problem(name: str) -> str:
    """Say what is wrong with a name; "" where just one test, or one file of tests, is meant."""
    file, separator, test = name.partition("::")
    if not separator and not FILE.fullmatch(name):
        file, test = "", name
    where = [path for path in tests() if not file or path == file or path.endswith(f"/{file}")]
    if file and not FILE.fullmatch(file):
        return "not the name of a file of tests"
    if file and len(where) != 1:
        return f"{len(where)} files have that name"
    if not test:
        return "" if tests()[where[0]] else "a file without a test"
    if not NAME.fullmatch(test):
        return "not the name of a test"
    holds = [path for path in where if test in tests()[path]]
    return "" if len(holds) == 1 else f"{len(holds)} files have that test"


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_what_a_page_names_is_there_and_once(page):
    wrong = {name: problem(name) for name in named(page.read_text(encoding="utf-8"))}
    assert not {name: why for name, why in wrong.items() if why}


def parts(text: str, marks: str) -> dict[str, str]:
    """Return the text under each heading of one level, fences of code left out."""
    found, title = {}, ""
    for line in re.sub(r"```.*?```", "", text, flags=re.DOTALL).splitlines():
        if line.startswith(f"{marks} "):
            title = line.removeprefix(f"{marks} ").strip()
        found.setdefault(title, []).append(line)
    return {title: "\n".join(lines) for title, lines in found.items()}


def test_each_part_of_the_threat_model_names_a_test():
    """All its sections, and in them each part that doesn't say what is left open."""
    sections = parts(MODEL.read_text(encoding="utf-8"), "##")
    assert tuple(title for title in sections if title) == SECTIONS
    for section in SECTIONS:
        assert named(sections[section]), section
        for title, text in parts(sections[section], "###").items():
            if title and title not in SILENT:
                assert named(text), f"{section}: {title}"


def test_each_point_that_holds_names_a_test():
    """A list under a heading of what holds: each of its points is held by a test of its own."""
    sections = parts(MODEL.read_text(encoding="utf-8"), "##")
    points = 0
    for section in ("Secure aggregation", "Homomorphic encryption", "Private inference"):
        holds = parts(sections[section], "###")["What holds"]
        for point in re.split(r"^(?=- |\d+\. )", holds, flags=re.MULTILINE)[1:]:
            points += 1
            assert named(point), f"{section}: {point[:70]}"
    assert points >= 19


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_no_sentence_is_swallowed_by_a_comment(page):
    """Markdown takes the rest of a line as HTML where a comment began the line."""
    text = page.read_text(encoding="utf-8")
    assert not re.findall(r"^[ ]*<!--(?:(?!-->).)*-->[ ]*[^\s<][^\n]*", text, re.M | re.S)


@pytest.mark.parametrize(
    ("name", "why"),
    [
        ("test_what_a_page_names_is_there_and_once", ""),
        ("test_threat_model.py", ""),
        ("test_threat_model.py::test_each_point_that_holds_names_a_test", ""),
        ("tests/test_threat_model.py::test_each_point_that_holds_names_a_test", ""),
        ("test_he_client.py::TestRelease::test_it_counts_and_then_refuses", ""),
        ("test_that_nobody_wrote", "0 files have that test"),
        ("test_node.py::test_that_nobody_wrote", "0 files have that test"),
        ("test_that_nobody_wrote.py", "0 files have that name"),
        ("docs/threat-model.md", "not the name of a test"),
    ],
)
def test_a_name_that_leads_nowhere_is_found_out(name, why):
    assert problem(name) == why


def test_comments_over_several_lines_are_read():
    text = (
        "One.\n<!-- test: test_a,\n   test_b.py::test_c -->\nTwo. <!-- a note --> <!-- test: d -->"
    )
    assert named(text) == ["test_a", "test_b.py::test_c", "d"]
