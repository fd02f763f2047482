"""The documentation's pages, cut into what can be run: blocks of code and commands in prose.

A comment in front of a block says what a test has to know:

- `<!-- not run: why -->`: it needs what a test machine lacks. Its imports and commands are still
  looked up.
- `<!-- run by: tests/… -->`: the test that runs these lines in another way.
- `<!-- slow -->`: Python that takes more than a few seconds.
- `<!-- given: NAME … -->`: files that the reader has; see `givens.py`.
- `<!-- terminals: PORT … -->`: each command runs on, until the page ends; they listen there.
"""

import re
import shlex
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
PAGES = sorted(
    [*(ROOT / "docs").rglob("*.md"), ROOT / "README.md", ROOT / "CONTRIBUTING.md"],
    key=lambda path: path.as_posix(),
)
SHELL, PYTHON = "sh", "python"
# What nothing runs: files, outputs, and what Sphinx itself reads.
OTHERS = {"toml", "text", "json", "csv", "bibtex", "diff"}
FENCE = re.compile(
    r"(?P<notes>(?:^[ ]*<!--(?:(?!-->).)*-->\s*\n)*)"
    r"^(?P<indent>[ ]*)(?P<mark>`{3,}|:{3,})(?P<language>[^\n`]*)\n"
    r"(?P<text>.*?)^(?P=indent)(?P=mark)[ ]*$",
    re.MULTILINE | re.DOTALL,
)
NOTE = re.compile(r"<!--\s*(not run|run by|slow|given|terminals)\s*:?\s*(.*?)\s*-->", re.DOTALL)
INLINE = re.compile(r"`((?:fedvlm|python -m|make|flwr) [^`]*)`")


@dataclass(frozen=True)
class Block:
    """A block of code: its language, text and line, and what the page says of it."""

    page: Path
    line: int
    language: str
    text: str
    notes: dict[str, str]

    @property
    def where(self) -> str:
        return f"{self.page.relative_to(ROOT).as_posix()}:{self.line}"

    @property
    def runs(self) -> bool:
        return not {"not run", "run by"} & self.notes.keys()

    @property
    def commands(self) -> list[list[str]]:
        """Return the words of each command of a block for a shell."""
        joined = re.sub(r"\\\n\s*", " ", self.text)
        words = [shlex.split(line, comments=True) for line in joined.splitlines()]
        return [each for each in words if each]


def blocks(page: Path) -> list[Block]:
    """Return a page's blocks in order, those of Sphinx's directives left out."""
    text = page.read_text(encoding="utf-8")
    found = []
    for match in FENCE.finditer(text):
        if match["language"].startswith("{"):
            continue
        notes = {name: " ".join(rest.split()) for name, rest in NOTE.findall(match["notes"])}
        lines = match["text"].splitlines()
        body = "\n".join(line.removeprefix(match["indent"]) for line in lines) + "\n"
        number = text[: match.start("mark")].count("\n") + 1
        found.append(Block(page, number, match["language"].strip(), body, notes))
    return found


def all_blocks() -> list[Block]:
    return [block for page in PAGES for block in blocks(page)]


def inline_commands() -> list[tuple[str, list[str]]]:
    """Return the commands that stand in sentences, with their place."""
    found = []
    for page in PAGES:
        text = FENCE.sub(lambda match: "\n" * match[0].count("\n"), page.read_text("utf-8"))
        for match in INLINE.finditer(text):
            line = text[: match.start()].count("\n") + 1
            name = page.relative_to(ROOT).as_posix()
            found.append((f"{name}:{line}", shlex.split(match[1], comments=True)))
    return found
