"""The page of all commands: `python -m simulations.commands_page [FILE]`, from their help texts."""

from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any

import typer

from fedvlm.cli import app
from simulations._made_page import deliver

_HEAD = """\
# Commands

<!-- Made from the help texts: python -m simulations.commands_page docs/commands.md -->

`fedvlm COMMAND --help` has every argument and option, `fedvlm simulate --settings` every setting,
`fedvlm --version` the version. Results go to stdout and all else to stderr; `--json` prints for
machines, and `fedvlm --debug COMMAND` shows the traceback of an error.

| exit code | |
|--:|---|
| 0 | done |
| 1 | anything that isn't below |
| 2 | wrong usage, configuration or data |
| 3 | a protocol refused to go on, no round succeeded, or an audit refutes a claim |

| command | what it does |
|---|---|
"""


def commands(group: Any, name: str) -> Iterator[tuple[str, str]]:
    """Give each command below a group, with the first paragraph of its help."""
    for word, command in group.commands.items():
        if hasattr(command, "commands"):
            yield from commands(command, f"{name} {word}")
        elif not command.hidden:
            paragraph = (command.help or "").split("\n\n", maxsplit=1)[0]
            yield f"{name} {word}", " ".join(paragraph.split())


def page() -> str:
    """Return the page."""
    rows = commands(typer.main.get_command(app), "fedvlm")
    return _HEAD + "".join(f"| `{name}` | {about.replace('|', '/')} |\n" for name, about in rows)


def main(
    path: Annotated[Path | None, typer.Argument(help="file to write; prints without one")] = None,
) -> None:
    """Write the page."""
    deliver(page(), path)


if __name__ == "__main__":
    typer.run(main)
