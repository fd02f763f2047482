"""`fedvlm predict | ask | evaluate | export`: use what a run has trained.

Heavy packages are imported inside the commands, so that `--help` answers at once.
"""

import json
import sys
from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer

from fedvlm.errors import ConfigError
from fedvlm.progress import progress_bars

Run = Annotated[Path, typer.Argument(metavar="DIR", help="folder of a finished run")]
AsJson = Annotated[bool, typer.Option("--json", help="print as JSON")]


def _texts(labels: str | None, captions: Path | None) -> list[str]:
    if (labels is None) == (captions is None):
        raise ConfigError("give --labels a,b,c or --captions FILE, one of them")
    if captions is None:
        return str(labels).split(",")
    try:
        lines = captions.read_text(encoding="utf-8-sig").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"can't read {captions} as UTF-8 text: {error}") from error
    return [line for line in lines if line.strip()]


def predict(
    folder: Run,
    images: Annotated[list[Path], typer.Argument(metavar="IMAGES…", help="image files")],
    labels: Annotated[str | None, typer.Option(help="texts to choose from, by commas")] = None,
    captions: Annotated[
        Path | None, typer.Option(help="file of texts to choose from, one a line")
    ] = None,
    top: Annotated[int, typer.Option(min=1, help="texts to show for each image")] = 3,
    as_json: AsJson = False,
) -> None:
    """Say which of some texts new images show, by a run's trained model."""
    from fedvlm.trained import load_trained
    from fedvlm.trained import predict as ask

    texts = _texts(labels, captions)
    found = ask(load_trained(folder), images, texts)
    if as_json:
        rows = [[asdict(one) for one in ranked[:top]] for ranked in found]
        typer.echo(json.dumps(rows, indent=2))
        return
    for path, ranked in zip(images, found, strict=True):
        best = "  ".join(f"{100 * one.share:5.1f} % {one.text}" for one in ranked[:top])
        typer.echo(f"{path}: {best}")


def ask(
    folder: Run,
    images: Annotated[list[Path], typer.Argument(metavar="IMAGES…", help="image files")],
    prompt: Annotated[str, typer.Option(help="the question, the same about each image")],
    most_tokens: Annotated[int, typer.Option(min=1, help="most tokens of an answer")] = 64,
    as_json: AsJson = False,
) -> None:
    """Ask a run's trained model, one that answers, about new images."""
    from fedvlm.trained import ask as answers_of
    from fedvlm.trained import load_trained

    answers = answers_of(load_trained(folder), images, prompt, most_tokens)
    pairs = list(zip(map(str, images), answers, strict=True))
    if as_json:
        typer.echo(json.dumps([{"image": path, "answer": said} for path, said in pairs], indent=2))
        return
    for path, said in pairs:
        typer.echo(f"{path}: {said}")


def evaluate(
    folder: Run,
    data: Annotated[
        Path | None, typer.Option(help="folder with images and captions; default: the run's data")
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Score a run's trained model on its own data's parts, or on a folder."""
    from fedvlm.trained import evaluate as score
    from fedvlm.trained import load_trained

    with progress_bars() as progress:
        found = score(load_trained(folder), data, progress)
    if as_json:
        typer.echo(json.dumps(found, indent=2))
        return
    from rich.console import Console
    from rich.table import Table

    table = Table("metric", title=f"{folder} on {data or 'its own data'}")
    table.add_column("value", justify="right")
    for name, value in found.items():
        text = f"{value:.3f}" if name.endswith("_nll") else f"{100 * value:.1f} %"
        table.add_row(name, str(value) if isinstance(value, int) else text)
    Console(width=None if sys.stdout.isatty() else 100).print(table)


def export(
    folder: Run,
    merged: Annotated[Path, typer.Option(help="folder to make: the model with its LoRA folded in")],
) -> None:
    """Save a run's model, its LoRA folded in, as a plain folder in Hugging Face's format."""
    from fedvlm.trained import export_merged, load_trained

    typer.echo(export_merged(load_trained(folder), merged))


def register(app: typer.Typer) -> None:
    """Add the commands to the command line."""
    for command in (predict, ask, evaluate, export):
        app.command()(command)
