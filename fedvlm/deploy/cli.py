"""`fedvlm deploy init | join | check | register | unregister | run`."""

import time
from pathlib import Path
from typing import Annotated, Any

import typer

from fedvlm.errors import ConfigError
from fedvlm.tracking import TRACK_HELP, tracked
from fedvlm.watching import PORT_HELP, WATCH_HELP, port_of, watched

app = typer.Typer(help="A federation between owners, on their own machines.", no_args_is_help=True)

Model = Annotated[str, typer.Option(help='base model: "embedded", or a folder')]


@app.command()
def init(
    folder: Annotated[Path, typer.Argument(metavar="DIR", help="new folder")],
    clients: Annotated[int, typer.Option(help="number of nodes, at least 3")],
    host: Annotated[str, typer.Option(help="name or address of the server")] = "localhost",
    port: Annotated[int, typer.Option(help="port of the server")] = 8000,
    he: Annotated[
        bool, typer.Option("--he", help="sum under encryption: one key for all nodes")
    ] = False,
    model: Model = "embedded",
    handed: Annotated[
        list[Path] | None,
        typer.Option("--join", metavar="FILE", help="a site's public.json; once for each"),
    ] = None,
) -> None:
    """Make the folders of a federation: one a party, to be handed over by itself.

    Without --join everybody's keys are made here, which is a rehearsal.
    """
    from fedvlm.deploy.folders import Public, Terms, roster_fingerprint
    from fedvlm.deploy.setup import init as make
    from fedvlm.deploy.setup import weights_of

    public = [Public.load(path) for path in handed] if handed else None
    protect = "he" if he else "secagg-active"
    terms = Terms(host, port, clients, protect, model, weights_of(model))
    roster = make(folder, terms, public)
    typer.echo(f"server: {folder / 'server'}, for {terms.server}")
    typer.echo(f"nodes:  {folder / 'node-1'} to {folder / f'node-{clients}'}")
    typer.echo(f"roster: {roster_fingerprint(roster)}; every site must see the same")
    if public is None:
        typer.echo(
            "this is a rehearsal: all keys were made here. Between owners each site runs "
            "fedvlm deploy join, and init takes the public halves by --join"
        )
    else:
        typer.echo("send each site its folder back; it finishes with deploy join DIR --welcome")


@app.command()
def join(
    folder: Annotated[Path, typer.Argument(metavar="DIR", help="this site's folder")],
    number: Annotated[int | None, typer.Option(help="number of this node, from 1")] = None,
    welcome: Annotated[
        Path | None, typer.Option(help="what the organiser sent back: finish the folder")
    ] = None,
    model: Model = "embedded",
) -> None:
    """Make this site's own keys here, and hand over the public halves alone."""
    from fedvlm.deploy.folders import PUBLIC, roster_fingerprint
    from fedvlm.deploy.setup import join as make
    from fedvlm.deploy.setup import settle

    if (number is None) == (welcome is None):
        raise ConfigError("give --number to begin, or --welcome to finish; one of them")
    if number is not None:
        public = make(folder, number)
        typer.echo(f"hand over {folder / PUBLIC}, and nothing else of this folder:")
        typer.echo((folder / PUBLIC).read_text(encoding="utf-8").rstrip())
        typer.echo(f"node {public.number}: then finish with --welcome")
        return
    roster = settle(folder, Path(str(welcome)), model)
    typer.echo(f"ready: {folder}; roster {roster_fingerprint(roster)}, as at every other site")
    typer.echo(f"next: read the floor in {folder / 'node.toml'}, then fedvlm deploy check {folder}")


@app.command()
def check(
    folder: Annotated[Path, typer.Argument(metavar="DIR", help="a party's folder")] = Path(),
    offline: Annotated[bool, typer.Option("--offline", help="don't call the server")] = False,
) -> None:
    """Say of a party's folder what is fine and what is not, each with its fix; exit 2 if not."""
    from fedvlm.deploy.check import check as look

    lines = look(folder, offline=offline)
    for line in lines:
        typer.echo(f"{'ok' if line.ok else 'WRONG':<6}{line.what}: {line.told}")
    if not all(line.ok for line in lines):
        raise typer.Exit(2)


@app.command()
def register(
    folder: Annotated[Path, typer.Argument(metavar="DIR", help="the server's folder")] = Path(),
) -> None:
    """Let the nodes in whose public keys lie in DIR/nodes; once, and after each new key."""
    from fedvlm.deploy.run import register as tell

    for line in tell(folder):
        typer.echo(line)


@app.command()
def unregister(
    folder: Annotated[Path, typer.Argument(metavar="DIR", help="the server's folder")],
    node: Annotated[int, typer.Option(help="number of the node, from 1")],
) -> None:
    """Let a node take part no more, from now on; its key's file is put aside."""
    from fedvlm.deploy.run import unregister as tell

    tell(folder, node)
    typer.echo(f"node {node} can't take part any more; those who stay need a roster without it")


@app.command()
def run(
    folder: Annotated[Path, typer.Argument(metavar="DIR", help="the server's folder")] = Path(),
    settings: Annotated[
        list[str] | None, typer.Option("--set", metavar="KEY=VALUE", help="override one setting")
    ] = None,
    out: Annotated[Path | None, typer.Option(help="folder for the result")] = None,
    resume: Annotated[
        bool, typer.Option("--resume", help="go on from the checkpoint in --out")
    ] = False,
    within: Annotated[float, typer.Option(help="longest that it may take, seconds")] = 86_400.0,
    track: Annotated[
        list[str] | None, typer.Option("--track", metavar="KIND:PLACE", help=TRACK_HELP)
    ] = None,
    watch: Annotated[bool, typer.Option("--watch", help=WATCH_HELP)] = False,
    watch_port: Annotated[
        int | None, typer.Option("--watch-port", min=1, max=65535, help=PORT_HELP)
    ] = None,
) -> None:
    """Run what DIR/run.toml says on the SuperLink, and follow it live, by round."""
    from fedvlm.config import config_from, load_config
    from fedvlm.deploy.run import Follower, follow, place_of, read_events, start_run
    from fedvlm.federation.checkpoint import nothing_left, saved_config
    from fedvlm.federation.result import Result
    from fedvlm.federation.watch import FILE
    from fedvlm.reporting import write_report

    changes = {}
    for pair in settings or []:
        key, sign, value = pair.partition("=")
        if not sign:
            raise ConfigError(f"--set takes key=value; got {pair!r}")
        changes[key.strip()] = value.strip()
    if resume and out is None:
        raise ConfigError("--resume needs --out, the folder of the run to go on with")
    place = out or folder / "runs" / time.strftime("%Y%m%d-%H%M%S")
    if not resume and (place / "checkpoint.npz").exists():
        raise ConfigError(f"{place} holds a run; --resume goes on with it, another --out keeps it")
    base = saved_config(place) if resume else load_config(folder / "run.toml")
    config = config_from(changes, base)
    if resume and (finished := nothing_left(place, config)):
        typer.echo(finished)
        return
    begin = place_of(place) if resume else 0
    follower = Follower(config.training.rounds, config)
    with (
        tracked(track or [], config.to_dict()) as take,
        watched(config, port_of(watch, watch_port), typer.echo) as shown,
    ):
        for event in read_events(place / FILE, 0)[1] if resume else ():
            if event.get("event") == "round":
                shown.round(event["entry"])
        run_id = start_run(folder, config, place, resume)
        told = f"{config.training.rounds} rounds with {config.data.clients} nodes"
        typer.echo(f"run {run_id} of {told}, in {place}")

        def on_event(event: dict[str, Any]) -> None:
            shown.event(event)
            if event.get("event") == "round":
                take(event["entry"])
                shown.round(event["entry"])

        follow(
            *(folder, run_id, place, follower, typer.echo, within), place=begin, on_event=on_event
        )
        result = Result.load(place)
        shown.end(result)
    report = write_report(result, place)
    typer.echo(f"saved: {place / 'result.json'}, {report}, {place / 'adapter'}")
