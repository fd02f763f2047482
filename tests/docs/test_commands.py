"""Every command that a page names exists, with the options and settings that it names."""

import ast
import re

import pytest

from tests.docs.commands import problem
from tests.docs.pages import OTHERS, PAGES, PYTHON, ROOT, SHELL, all_blocks, inline_commands


def test_every_block_says_what_it_is():
    """A block in another language, or in none, would be run by nobody and be noticed by nobody."""
    known = {SHELL, PYTHON, *OTHERS}
    assert not [(each.where, each.language) for each in all_blocks() if each.language not in known]


def test_no_command_hides_in_an_indented_block():
    hidden = []
    for page in PAGES:
        fenced = False
        for number, line in enumerate(page.read_text("utf-8").splitlines(), 1):
            fenced ^= line.lstrip().startswith("```")
            if not fenced and line.startswith(
                ("    fedvlm ", "    python ", "    $ ", "    make ")
            ):
                hidden.append(f"{page.name}:{number}")
    assert not hidden


def test_what_is_not_run_says_why_or_by_whom():
    for block in all_blocks():
        if "run by" in block.notes:
            assert (ROOT / block.notes["run by"]).is_file(), block.where
        if "not run" in block.notes:
            assert len(block.notes["not run"]) > 10, block.where
            for path in re.findall(r"tests/[\w/]+(?:\.py)?", block.notes["not run"]):
                assert (ROOT / path).exists(), f"{block.where}: {path}"


def test_commands_in_blocks_exist():
    wrong = {}
    for block in all_blocks():
        if block.language == SHELL:
            for words in block.commands:
                if why := problem(words):
                    wrong[f"{block.where}: {' '.join(words)}"] = why
    assert not wrong


def test_commands_in_sentences_exist():
    found = inline_commands()
    assert len(found) > 40
    wrong = {
        f"{where}: {' '.join(words)}": why for where, words in found if (why := problem(words))
    }
    assert not wrong


def test_python_that_is_not_run_parses_and_finds_its_imports():
    for block in all_blocks():
        if block.language != PYTHON or block.runs:
            continue
        tree = ast.parse(block.text, block.where)
        imports = [
            node
            for node in tree.body
            if isinstance(node, ast.ImportFrom)
            and str(node.module).startswith(("fedvlm", "secure"))
        ]
        exec(compile(ast.Module(imports, []), block.where, "exec"), {})


@pytest.mark.parametrize(
    ("command", "why"),
    [
        ("fedvlm simulate --set rounds=3 --out runs/a", ""),
        ("fedvlm simulate --set ronds=3", "rounds"),
        ("fedvlm simulate --set rounds=many", "rounds"),
        ("fedvlm simulate --rounds 3", "--rounds"),
        ("fedvlm simulat", "no command"),
        ("fedvlm infer dealer identities DIR --client alice", ""),
        ("fedvlm infer dealer identitie", "invalid choice"),
        ("fedvlm infer he-serve gallery.npy --sert server.pem --port 9000", "--sert"),
        ("python -m simulations.nothing", "no module"),
        ("python -m simulations.benchmarks aggregatio", "no benchmark"),
        ("make tests", "no target"),
    ],
)
def test_a_command_that_is_not_there_is_found_out(command, why):
    found = problem(command.split())
    assert why in found
    assert bool(why) == bool(found)
