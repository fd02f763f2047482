"""The README renders on GitHub, is short where it says so, and quotes what is kept."""

import re

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
