"""`fedvlm compare CONFIG.toml`: every protection side by side; `fedvlm compare A B`: two runs."""

import json
import sys
from pathlib import Path
from typing import Annotated, Any

import typer

from fedvlm.compare.spec import Spec, read_spec
from fedvlm.errors import ConfigError
from fedvlm.files import write_text
from fedvlm.progress import progress_bars

MARKDOWN = "comparison.md"
_FAILED = 1


def _say(text: str) -> None:
    typer.echo(text, err=True)


def compare_command(
    what: Annotated[
        list[Path],
        typer.Argument(
            metavar="CONFIG.toml | A B",
            help="settings of the runs, perhaps with a table [compare]; or two runs' folders",
        ),
    ],
    quick: Annotated[
        bool, typer.Option("--quick", help="few rounds, candidates and images; one seed")
    ] = False,
    rows: Annotated[
        str | None,
        typer.Option(help="protections by commas: none,secagg,own (all of own-8, own-3, own-1) …"),
    ] = None,
    columns: Annotated[
        str | None,
        typer.Option(help="groups by commas: utility,attack,epsilon,trust,cost,inference"),
    ] = None,
    adapters: Annotated[str | None, typer.Option(help="kinds by commas: lora,prototypes …")] = None,
    seeds: Annotated[str | None, typer.Option(help="seeds by commas: 0,1,2")] = None,
    out: Annotated[
        Path | None, typer.Option(help="folder of runs, cells and table; runs/compare")
    ] = None,
    show: Annotated[
        bool, typer.Option("--show", help="run nothing: show what is there of the grid")
    ] = False,
    as_json: Annotated[bool, typer.Option("--json", help="print JSON, not tables")] = False,
) -> None:
    """Compare what each protection buys and costs, or two finished runs.

    A comparison that was stopped goes on with the same command: cells are kept by their content.
    What can't be combined is shown as refused, with the reason. Exit code 1: a cell failed.
    """
    folders = [path for path in what if path.is_dir()]
    if len(what) == 2 and len(folders) == 2:
        given = {"--quick": quick, "--rows": rows, "--columns": columns}
        given |= {"--adapters": adapters, "--seeds": seeds, "--out": out, "--show": show}
        _refuse(given)
        _two(what[0], what[1], as_json)
        return
    if len(what) != 1 or folders:
        raise ConfigError(
            "compare takes one TOML file, or the folders of two finished runs; got "
            + " and ".join(map(str, what))
        )
    spec = read_spec(
        what[0], rows=rows, columns=columns, adapters=adapters, seeds=seeds, quick=quick
    )
    _grid(spec, str(what[0]), out or Path("runs/compare"), not show, as_json)


def _refuse(given: dict[str, Any]) -> None:
    wrong = [name for name, value in given.items() if value]
    if wrong:
        raise ConfigError(f"{', '.join(wrong)} belong to a grid of protections, not to two runs")


def _two(one: Path, other: Path, as_json: bool) -> None:
    from fedvlm.compare.runs import compare_runs, run_tables

    found = compare_runs(one, other)
    if as_json:
        typer.echo(json.dumps(found.to_dict(), indent=2))
        return
    from rich.console import Console

    Console(width=None if sys.stdout.isatty() else 120).print(run_tables(found))


def _grid(spec: Spec, source: str, out: Path, measures: bool, as_json: bool) -> None:
    from fedvlm.compare.grid import Grower
    from fedvlm.compare.show import markdown, tables

    with progress_bars() as progress:
        grower = Grower(spec, out, source, _say, progress, measures)
        try:
            found = grower.run()
        except KeyboardInterrupt:
            _say("stopped; the same command goes on where this one was")
            raise SystemExit(1) from None
    write_text(out / MARKDOWN, markdown(found))
    if as_json:
        typer.echo(json.dumps(found.to_dict(), indent=2))
    else:
        from rich.console import Console

        console = Console(width=None if sys.stdout.isatty() else 190)
        console.print(tables(found))
        console.print(f"saved: {out / 'comparison.json'}, {out / MARKDOWN}; fedvlm report {out}")
    if any(why.startswith("failed") for why in grower.failures.values()):
        raise typer.Exit(_FAILED)
