"""The kept comparison as part of a page: `python -m simulations.compare_page [docs/figures]`.

`--from DIR` takes over what `fedvlm compare … --out DIR` made.
"""

from pathlib import Path
from typing import Annotated

import typer

from fedvlm.compare.show import markdown
from fedvlm.files import write_text
from fedvlm.reporting.comparison import FILE, Comparison

REFERENCE = Path(__file__).parent / "reference" / "compare-quick.json"
PAGE = "compare.md"


def page() -> str:
    """Return the kept comparison as Markdown."""
    return markdown(Comparison.load(REFERENCE))


def main(
    folder: Annotated[Path, typer.Argument(help="where the page's part goes")] = Path(
        "docs/figures"
    ),
    taken: Annotated[Path | None, typer.Option("--from", help="folder of a comparison")] = None,
) -> None:
    """Write the tables, of what is kept or of what a folder holds."""
    if taken is not None:
        write_text(REFERENCE, (taken / FILE).read_text(encoding="utf-8"))
    write_text(folder / PAGE, page())


if __name__ == "__main__":
    typer.run(main)
