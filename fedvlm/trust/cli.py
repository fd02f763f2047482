"""The command `fedvlm trust DIR`, as a function for typer."""

import json
import sys
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from fedvlm.files import write_text
from fedvlm.progress import progress_bars
from fedvlm.trust.answering_context import AnsweringSizes
from fedvlm.trust.audit import audit_trust
from fedvlm.trust.context import Sizes
from fedvlm.trust.show import markdown, save_figures, trust_table


def trust_command(
    folder: Annotated[Path, typer.Argument(metavar="DIR", help="folder of a finished run")],
    group: Annotated[
        list[str] | None, typer.Option(help="column of the table that holds groups; repeat it")
    ] = None,
    attacked: Annotated[int, typer.Option(help="images attacked by gradients", min=20)] = 32,
    instructions: Annotated[
        Path | None,
        typer.Option(
            help="table (CSV, JSON lines) of image, instruction, image_safe, instruction_safe, "
            "answer: refusal and helpfulness of a model that answers"
        ),
    ] = None,
    rows: Annotated[
        int, typer.Option(help="questions a measure, of a model that answers", min=20)
    ] = 150,
    as_json: Annotated[bool, typer.Option("--json", help="print JSON, not a table")] = False,
) -> None:
    """Measure fairness, robustness, safety and privacy by group of a run, beside zero-shot.

    Of a dual encoder by its embeddings, of a model that answers by its words. Writes `trust.json`,
    `trust.md`, and a figure a pillar into the run's `figures/`. What the data can't carry is said
    in one line, and the rest goes on.
    """
    with progress_bars() as progress:
        found = audit_trust(
            folder,
            sizes=Sizes(attacked=attacked),
            groups=tuple(group) if group else None,
            instructions=instructions,
            answering=AnsweringSizes(rows=rows),
            progress=progress,
        )
    text = json.dumps(found.to_dict(), indent=2)
    write_text(folder / "trust.json", text + "\n")
    write_text(folder / "trust.md", markdown(found))
    save_figures(found, folder / "figures")
    if as_json:
        typer.echo(text)
        return
    told = found.identity
    title = f"trust audit of {folder}, {told['protect']}, dp {told['dp']}"
    console = Console(width=None if sys.stdout.isatty() else 150)
    console.print(trust_table(found, title))
    for name, p in found.adjusted.items():
        console.print(f"{name}: change from zero-shot, Holm's p = {p:.4f}")
    console.print(f"saved: {folder / 'trust.json'}, {folder / 'figures'}")
