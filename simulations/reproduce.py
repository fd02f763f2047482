"""The page of claims that can be measured again: `python -m simulations.reproduce [FILE]`.

Every number is read from a result that the repository keeps; `simulations/reference/index.json`
says by which command it was made, in how many minutes, and when. Written by a script, so that page
and results can't disagree.
"""

import json
from collections.abc import Iterable
from functools import cache
from pathlib import Path
from typing import Annotated, Any

import typer

from simulations._claims import CLAIMS, Claim
from simulations._made_page import deliver

ROOT = Path(__file__).parent.parent
INDEX = ROOT / "simulations" / "reference" / "index.json"
_HEAD = """\
# Reproduce

<!-- Made from the kept results: python -m simulations.reproduce docs/reproduce.md -->

Every claim in figures, the command that measures it again, and what it gave last. Commands run from
a clone after `make setup`; minutes are of two cores, and "–" where nobody noted them. A result
within the tolerance agrees with ours; intervals over seeds are of 95 %.

"""


@cache
def kept(path: str) -> Any:
    """Return a kept result."""
    return json.loads((ROOT / path).read_text(encoding="utf-8"))


def rows(claims: Iterable[Claim] = CLAIMS) -> list[str]:
    """Return the table's rows."""
    index = kept("simulations/reference/index.json")
    lines = []
    for claim in claims:
        made = index[claim.result]
        minutes = "–" if made["minutes"] is None else f"{made['minutes']:g}"
        value = claim.value(kept(claim.result))
        lines.append(
            f"| {claim.text} | {value} | {claim.tolerance} | {minutes} | `{made['command']}` "
            f"| {made['measured']} |"
        )
    return lines


def page() -> str:
    """Return the page."""
    head = "| claim | last measured | tolerance | minutes | command | on |"
    return _HEAD + "\n".join([head, "|---|---|---|--:|---|---|", *rows()]) + "\n"


def main(
    path: Annotated[Path | None, typer.Argument(help="file to write; prints without one")] = None,
) -> None:
    """Write the page."""
    deliver(page(), path)


if __name__ == "__main__":
    typer.run(main)
