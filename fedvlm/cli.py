"""The command line: fedvlm simulate | deploy | audit | trust | report | privacy | infer | data ….

Heavy packages are imported inside the commands, so that `--help` answers at once.
"""

import json
import os
import signal
import sys
from pathlib import Path
from typing import Annotated, Any

import typer

from fedvlm.cli_trained import register as register_trained
from fedvlm.deploy.cli import app as deploy_app
from fedvlm.errors import ConfigError, FedVLMError
from fedvlm.progress import progress_bars
from fedvlm.tracking import TRACK_HELP
from fedvlm.watching import PORT_HELP, WATCH_HELP, port_of, watched

app = typer.Typer(
    help="Federated fine-tuning of vision-language models, its protections and its leakage.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)
data_app = typer.Typer(help="The embedded data, and prepared images.", no_args_is_help=True)
app.add_typer(data_app, name="data")

_state = {"debug": False}
TRACK = typer.Option("--track", metavar="KIND:PLACE", help=TRACK_HELP)
WATCH = typer.Option("--watch", help=WATCH_HELP)
WATCH_PORT = typer.Option("--watch-port", min=1, max=65535, help=PORT_HELP)


def _show_version(asked: bool) -> None:
    if asked:
        import fedvlm

        typer.echo(fedvlm.__version__)
        raise typer.Exit


@app.callback()
def _root(
    debug: Annotated[bool, typer.Option(help="show the traceback of an error")] = False,
    version: Annotated[
        bool,
        typer.Option("--version", help="show the version", callback=_show_version, is_eager=True),
    ] = False,
) -> None:
    _state["debug"] = debug


def _say(text: str) -> None:
    typer.echo(text, err=True)


def _settings(pairs: list[str]) -> dict[str, str]:
    """Split `key=value` arguments."""
    out = {}
    for pair in pairs:
        key, sign, value = pair.partition("=")
        if not sign:
            raise ConfigError(f"--set takes key=value; got {pair!r}")
        out[key.strip()] = value.strip()
    return out


@app.command()
def simulate(
    config: Annotated[
        Path | None,
        typer.Argument(help="TOML file of tables or flat keys; the defaults without one"),
    ] = None,
    settings: Annotated[
        list[str] | None,
        typer.Option("--set", metavar="KEY=VALUE", help="override one: --set training.rounds=3"),
    ] = None,
    list_settings: Annotated[
        bool, typer.Option("--settings", help="list every setting, its default and its range")
    ] = False,
    out: Annotated[
        Path | None, typer.Option(help="folder for result, figures, adapter and checkpoint")
    ] = None,
    seed: Annotated[int | None, typer.Option(help="seed of the experiment")] = None,
    seeds: Annotated[
        str | None,
        typer.Option(help="several, as 0,1,2: a folder each, and a table with 95 % intervals"),
    ] = None,
    resume: Annotated[
        bool, typer.Option("--resume", help="go on from the checkpoint in --out")
    ] = False,
    overwrite: Annotated[
        bool, typer.Option("--overwrite", help="replace the run that --out holds")
    ] = False,
    track: Annotated[list[str] | None, TRACK] = None,
    watch: Annotated[bool, WATCH] = False,
    watch_port: Annotated[int | None, WATCH_PORT] = None,
    as_json: Annotated[bool, typer.Option("--json", help="print the result as JSON")] = False,
    json_lines: Annotated[
        bool, typer.Option("--json-lines", help="print each event as a line of JSON, as it comes")
    ] = False,
) -> None:
    """Run a federation in this process and report what was gained.

    `--settings` lists what a TOML file and `--set` may say.
    """
    from fedvlm.config import Config, config_from, load_config

    if list_settings:
        from fedvlm.config.listing import plain

        typer.echo(plain(), nl=False)
        return
    if seeds is not None:
        from fedvlm.cli_seeds import simulate_seeds

        if seed is not None or json_lines or track or watch:
            raise ConfigError("--seeds goes without --seed, --json-lines, --track and --watch")
        base = load_config(config) if config is not None else Config()
        chosen = config_from(_settings(settings or []), base)
        simulate_seeds(chosen, seeds, out, resume, overwrite, as_json)
        return
    chosen = Config()
    if resume:
        if out is None:
            raise ConfigError("--resume needs --out, the folder of the run to go on with")
        from fedvlm.federation.checkpoint import saved_config

        chosen = saved_config(out)
    elif out is not None and not overwrite and (out / "checkpoint.npz").exists():
        raise ConfigError(
            f"{out} holds a run; --resume goes on with it, --overwrite replaces it, and another "
            "--out keeps both"
        )
    if config is not None:
        chosen = load_config(config, chosen)
    chosen = config_from(_settings(settings or []), chosen)
    if seed is not None:
        chosen = config_from({"seed": seed}, chosen)
    from fedvlm.federation import simulate as run
    from fedvlm.federation.lines import Follower, simulated_line
    from fedvlm.federation.notices import after, before
    from fedvlm.tracking import tracked

    finished = ""
    if resume and out is not None:
        from fedvlm.federation.checkpoint import nothing_left

        finished = nothing_left(out, chosen)
    said, follower, status = out is not None, Follower(chosen.training.rounds), ""

    def on_event(event: dict[str, Any]) -> None:
        nonlocal status
        shown.event(event)
        if json_lines:
            typer.echo(json.dumps(event))
        if event["event"] == "round":  # before the next one's silence is counted
            status = follower.after(event)
        else:
            list(follower.lines(event))

    with (
        progress_bars() as progress,
        tracked(track or [], chosen.to_dict()) as take,
        watched(chosen, port_of(watch, watch_port), _say) as shown,
    ):

        def on_round(entry: dict[str, Any]) -> None:
            nonlocal said, status
            if not entry["round"]:
                for notice in before(chosen):
                    _say(notice)
            if not said:  # now that it runs: an error is one line
                _say("nothing of this run is saved; --out DIR keeps result, adapter and checkpoint")
                said = True
            _say(simulated_line(entry, chosen) + status)
            status = ""  # what is told again after a resume has none
            progress("rounds", entry["round"], chosen.training.rounds)
            take(entry)
            shown.round(entry)

        result = run(
            chosen,
            out=out,
            resume=resume,
            progress=progress,
            on_round=on_round,
            on_event=on_event,
        )
        shown.end(result)
    if finished:
        _say(finished)
    for notice in after(result):
        _say(notice)
    from rich.console import Console

    from fedvlm.reporting import cost_line, save_plots, summary_table

    if out is not None:
        save_plots(result, out / "figures")
    if json_lines:
        typer.echo(json.dumps({"event": "result", "result": json.loads(result.to_json())}))
        return
    if as_json:
        typer.echo(result.to_json())
        return
    console = Console(width=None if sys.stdout.isatty() else 120)
    console.print(summary_table(result))
    console.print(cost_line(result))
    if out is not None:
        console.print(f"saved: {out / 'result.json'}, {out / 'figures'}, {out / 'adapter'}")


@app.command("init")
def init(
    folder: Annotated[Path, typer.Argument(metavar="DIR", help="made if missing")],
) -> None:
    """Make a project of your own: config, Flower apps, and pictures to start with."""
    from fedvlm.scaffold import init_project

    for path in init_project(folder):
        typer.echo(path)
    _say(f"next: cd {folder} && fedvlm simulate config.toml --out runs/first")


@app.command()
def report(
    folder: Annotated[
        Path, typer.Argument(metavar="DIR", help="folder of a run, or of a comparison")
    ],
) -> None:
    """Write DIR/report.html, one page that works offline, for DIR's run or comparison."""
    from fedvlm.reporting import report_of

    typer.echo(report_of(folder))


@app.command()
def doctor(
    as_json: Annotated[bool, typer.Option("--json", help="print as JSON")] = False,
) -> None:
    """Name each part as present or missing, with the fix; exit 1 if one is needed and broken."""
    from fedvlm.doctor import examine

    checks = examine()
    if as_json:
        typer.echo(json.dumps([vars(check) for check in checks], indent=2))
    else:
        for check in checks:
            word = "ok" if check.present else "BROKEN" if check.needed else "missing"
            typer.echo(f"{word:<8}{check.part}: {check.detail}")
    if any(check.needed and not check.present for check in checks):
        raise typer.Exit(1)


@data_app.command("info")
def data_info(
    as_json: Annotated[bool, typer.Option("--json", help="print as JSON")] = False,
) -> None:
    """Show where the embedded data comes from, and what is kept of prepared images."""
    from fedvlm.data import store
    from fedvlm.data._packages import PACKAGES
    from fedvlm.data.emoji import archive_path

    path = archive_path()
    rows = [
        {
            "package": f"{p.name}@{p.version}",
            "domain": p.domain or "captions",
            "licence": p.licence,
            "author": p.author,
            "source": p.source,
            "sha256": p.sha256,
        }
        for p in PACKAGES
    ]
    if as_json:
        cached = str(path) if path.exists() else None
        told = {"cached": cached, "packages": rows, "prepared": store.describe()}
        typer.echo(json.dumps(told))
        return
    from rich.console import Console
    from rich.table import Table

    table = Table(title="Embedded data: emoji by designer")
    for key in ("package", "domain", "licence", "author", "source"):
        table.add_column(key, overflow="fold")
    for row in rows:
        table.add_row(*(row[key] for key in ("package", "domain", "licence", "author", "source")))
    console = Console(width=None if sys.stdout.isatty() else 140)
    console.print(table)
    console.print(f"rendered: {path}" if path.exists() else "not here yet: fedvlm data fetch")
    kept = store.describe()
    size, most = (float(kept[key]) / 1e9 for key in ("bytes", "limit_bytes"))
    console.print(
        f"prepared images: {size:.2f} of {most:g} GB in {kept['files']} files of {kept['folder']}; "
        "fedvlm data clear deletes them"
    )


@data_app.command("clear")
def data_clear() -> None:
    """Delete what is kept of prepared images; it is made again where it is needed."""
    from fedvlm.data import store

    typer.echo(f"{store.clear() / 1e9:.2f} GB freed in {store.stores_dir()}")


@data_app.command("fetch")
def data_fetch() -> None:
    """Download, verify and render the embedded data now; later runs are offline."""
    from fedvlm.data import load_emoji

    with progress_bars() as progress:
        data = load_emoji(progress)
    typer.echo(
        f"{len(data)} pairs, {len(set(data.concepts.tolist()))} concepts, "
        f"{len(data.domain_names)} designers, {data.fingerprint[:16]}"
    )


# These commands live with their parts. Their arguments pass through unread, so that the part is
# imported only when it is asked for; `--help` behind them is theirs.
_FORWARD: dict[str, Any] = {
    "allow_extra_args": True,
    "ignore_unknown_options": True,
    "help_option_names": [],
}


@app.command(context_settings=_FORWARD)
def audit(context: typer.Context) -> None:
    """Measure what leaks from a run, by vantage and attack: fedvlm audit DIR."""
    from fedvlm.leakage.cli import audit_command

    command = typer.Typer(add_completion=False, pretty_exceptions_enable=False)
    command.command()(audit_command)
    raise typer.Exit(command(context.args, prog_name="fedvlm audit", standalone_mode=False) or 0)


@app.command(context_settings=_FORWARD)
def trust(context: typer.Context) -> None:
    """Measure fairness, robustness and safety of a run beside zero-shot: fedvlm trust DIR."""
    from fedvlm.trust.cli import trust_command

    command = typer.Typer(add_completion=False, pretty_exceptions_enable=False)
    command.command()(trust_command)
    raise typer.Exit(command(context.args, prog_name="fedvlm trust", standalone_mode=False) or 0)


@app.command(context_settings=_FORWARD)
def compare(context: typer.Context) -> None:
    """Compare protections by what they buy and cost, or two runs: fedvlm compare CONFIG.toml."""
    from fedvlm.compare.cli import compare_command

    command = typer.Typer(add_completion=False, pretty_exceptions_enable=False)
    command.command()(compare_command)
    raise typer.Exit(command(context.args, prog_name="fedvlm compare", standalone_mode=False) or 0)


@app.command(context_settings=_FORWARD)
def privacy(context: typer.Context) -> None:
    """Plan a privacy budget: fedvlm privacy plan."""
    from fedvlm.privacy.cli import app as command

    raise typer.Exit(command(context.args, prog_name="fedvlm privacy", standalone_mode=False) or 0)


infer_app = typer.Typer(help="Compute on what must not be seen.", no_args_is_help=True)
app.add_typer(infer_app, name="infer")


@infer_app.command("he-serve", context_settings=_FORWARD)
def he_serve(context: typer.Context) -> None:
    """Serve an encrypted layer over TLS."""
    from secure.he.serve import main as serve

    raise typer.Exit(serve(context.args, "fedvlm infer he-serve"))


@infer_app.command("he-query", context_settings=_FORWARD)
def he_query(context: typer.Context) -> None:
    """Ask a server for a projection of what it can't see."""
    from secure.he.query import main as query

    raise typer.Exit(query(context.args, "fedvlm infer he-query"))


@infer_app.command("dealer", context_settings=_FORWARD)
def dealer(context: typer.Context) -> None:
    """Make correlated randomness for two-party inference."""
    from secure.smpc.dealer import main as deal

    raise typer.Exit(deal(context.args, "fedvlm infer dealer"))


def _inference(name: str, arguments: list[str]) -> None:
    from fedvlm.inference.cli import app as command

    found = command([name, *arguments], prog_name="fedvlm infer", standalone_mode=False)
    raise typer.Exit(found or 0)


@infer_app.command("compile", context_settings=_FORWARD)
def compile_model(context: typer.Context) -> None:
    """Compile a model for private inference: its owner's first step."""
    _inference("compile", context.args)


@infer_app.command("serve", context_settings=_FORWARD)
def serve_model(context: typer.Context) -> None:
    """Serve a compiled model without seeing what it is asked."""
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # how a service is asked to end
    _inference("serve", context.args)


@infer_app.command("classify", context_settings=_FORWARD)
def classify(context: typer.Context) -> None:
    """Classify an image by a model that you can't see."""
    _inference("classify", context.args)


register_trained(app)
app.add_typer(deploy_app, name="deploy")


def main() -> None:
    """Run the command line; errors are one line on stderr and an exit code."""
    # One thread per operation unless asked otherwise: clients run side by side instead.
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    try:
        # Without its standalone mode, click returns the code of an Exit instead of leaving with it.
        code = app(standalone_mode=False)
    except FedVLMError as error:
        if _state["debug"]:
            raise
        _say(f"error: {error}")
        raise SystemExit(error.exit_code) from None
    except typer.Abort:
        _say("stopped; a run with --out goes on with --resume")
        raise SystemExit(1) from None
    except KeyboardInterrupt:
        _say("stopped; a run with --out goes on with --resume")
        raise SystemExit(1) from None
    except Exception as error:
        import click

        if isinstance(error, click.ClickException):
            error.show()
            raise SystemExit(error.exit_code) from None
        if _state["debug"]:
            raise
        from secure.errors import MissingExtraError, ParameterError, SecureError

        if isinstance(error, SecureError):
            _say(f"error: {error}")
            wrong_use = isinstance(error, ParameterError | MissingExtraError)
            raise SystemExit(2 if wrong_use else 3) from None
        _say(f"error: {type(error).__name__}: {error}; --debug shows where")
        raise SystemExit(1) from None
    raise SystemExit(code if isinstance(code, int) else 0)


if __name__ == "__main__":
    main()
