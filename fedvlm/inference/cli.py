"""`fedvlm infer compile | serve | classify`: a model and an image that don't meet."""

import json
import sys
import threading
from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import torch
import typer

from fedvlm.errors import ConfigError
from fedvlm.inference.owner import compile_model, load_compiled, load_owned
from fedvlm.inference.preparation import read_images, read_preparation
from fedvlm.progress import progress_bars
from secure.smpc import (
    Answer,
    Client,
    Folder,
    Identity,
    Limits,
    Owner,
    Plan,
    Query,
    connect,
    listen,
    read_program,
)
from secure.smpc._query import MAX_BATCH, MAX_LABELS, REVEALS
from secure.smpc.dealer import Remote
from secure.smpc.parcels import Source
from secure.smpc.plan import PROGRAM_FILE, PUBLIC

app = typer.Typer(no_args_is_help=True, help="Compute on what must not be seen.")

Identities = Annotated[
    Path,
    typer.Option(
        "--identity",
        help="folder with authority.pem and this role's certificate and key "
        "(fedvlm infer dealer identities DIR makes them)",
    ),
]
DealerAt = Annotated[str | None, typer.Option("--dealer", help="HOST:PORT of the dealer")]
Parcels = Annotated[Path | None, typer.Option(help="folder of dealt parcels, instead of --dealer")]
Timeout = Annotated[float, typer.Option(min=1, help="longest silence of the other side, seconds")]
_NETWORKS = ("lan", "wan")


def _say(text: str) -> None:
    typer.echo(text, err=True)


def _address(text: str, option: str) -> tuple[str, int]:
    host, colon, port = text.rpartition(":")
    if not colon or not host or not port.isdigit() or not 0 < int(port) < 1 << 16:
        raise ConfigError(f"{option} takes HOST:PORT, got {text!r}")
    return host.strip("[]"), int(port)


def _source(
    dealer: str | None, parcels: Path | None, identity: Identity, timeout_s: float
) -> Source:
    if (dealer is None) == (parcels is None):
        raise ConfigError(
            "say where the randomness comes from: --dealer HOST:PORT or --parcels DIR"
        )
    if parcels is not None:
        return Folder(parcels, 0 if identity.role == "server" else 1)
    return Remote(*_address(str(dealer), "--dealer"), identity, timeout_s)


def _describe(plan: Plan, query: Query) -> None:
    _say(str(plan.leakage(query)))
    for network in _NETWORKS:
        cost = plan.cost(network, query)
        _say(
            f"{network}: about {cost.seconds:.2g} s an image; {cost.rounds} rounds, "
            f"{max(cost.server_bytes, cost.client_bytes) / 1e6:.2f} MB online, "
            f"{cost.dealer_bytes / 1e6:.1f} MB dealt, {cost.setup_bytes / 1e6:.1f} MB once"
        )


@app.command("compile")
def compile_command(
    folder: Annotated[Path, typer.Argument(help="gets the compiled model; made if missing")],
    model: Annotated[
        str, typer.Option(help='"embedded", or a folder or hub name of a CLIP or SigLIP')
    ] = "embedded",
    run: Annotated[
        Path | None, typer.Option(help="folder of a run: its model with its adapter merged")
    ] = None,
    calibration: Annotated[
        Path | None,
        typer.Option(help="folder of PUBLIC images like those to come; default: embedded data"),
    ] = None,
    labels: Annotated[
        int, typer.Option(min=2, help="labels of the query whose cost is printed")
    ] = 10,
) -> None:
    """Compile an image tower for private inference (the model's owner).

    FOLDER/public is for the dealer and the clients: it has no weights. The rest of FOLDER is the
    owner's alone.
    """
    if run is not None and model != "embedded":
        raise ConfigError("--run says which model it is of: leave --model out")
    plan = compile_model(load_owned(model, run), folder, calibration)
    _describe(plan, Query("top", labels=labels))
    typer.echo(f"hand out {folder / PUBLIC}; keep the rest of {folder}")


@app.command("serve")
def serve_command(
    folder: Annotated[Path, typer.Argument(help="folder that `compile` made")],
    identity: Identities,
    dealer: DealerAt = None,
    parcels: Parcels = None,
    host: Annotated[str, typer.Option(help="address to listen on")] = "127.0.0.1",
    port: Annotated[
        int, typer.Option(min=0, max=65535, help="port to listen on; 0 takes a free one")
    ] = 7300,
    reveal: Annotated[
        list[str] | None,
        typer.Option(help=f"what clients may learn: {', '.join(REVEALS)}; may be repeated"),
    ] = None,
    max_k: Annotated[int, typer.Option(min=1, help="longest ranking that clients may ask for")] = 1,
    max_batch: Annotated[int, typer.Option(min=1, max=MAX_BATCH, help="most inputs a query")] = 1,
    max_labels: Annotated[
        int, typer.Option(min=0, max=MAX_LABELS, help="most labels a query")
    ] = MAX_LABELS,
    at_once: Annotated[
        int,
        typer.Option(
            min=1, max=512, help="sessions at once, of which one certificate has at most half"
        ),
    ] = Limits.at_once,
    session_timeout: Annotated[
        float, typer.Option(min=1, help="longest session of a client, seconds")
    ] = Limits.session_s,
    sessions: Annotated[
        int | None, typer.Option(min=1, help="stop after so many sessions of clients")
    ] = None,
    timeout: Timeout = 60.0,
) -> None:
    """Serve a compiled model: no client sees its weights, and it sees no client's image."""
    torch.set_num_threads(1)  # a second thread would wait for the first in every small kernel
    me = Identity(identity, "server")
    me.require_valid()
    source = _source(dealer, parcels, me, timeout)
    owned, plan = load_compiled(folder)
    allowed = tuple(reveal or ("top",))
    limits = Limits(max_batch, max_labels, at_once, session_s=session_timeout)
    owner = Owner(plan, source, owned.embed_labels, allowed, max_k, limits)
    listener = listen(host, port)
    _say(f"reveals {', '.join(allowed)}, at most the best {max_k}, to clients alone")
    _say(f"listening on {host}:{listener.getsockname()[1]}")
    try:
        owner.serve(listener, me, threading.Event(), sessions, timeout, _say)
    except KeyboardInterrupt:
        _say("stopped")


def _all_labels(lists: list[str], single: list[str]) -> list[str]:
    """Return the labels of `--labels`, parted at commas, and of `--label`, as they are."""
    labels = [label.strip() for text in lists for label in text.split(",")]
    labels += [label.strip() for label in single]
    if not all(labels) or len(set(labels)) != len(labels) or not 2 <= len(labels) <= MAX_LABELS:
        raise ConfigError(
            f"give 2 to {MAX_LABELS} different labels: --labels takes several, separated by "
            f"commas, --label one, commas and all; got {labels}"
        )
    return labels


def _record(path: Path, answer: Answer, query: Query, labels: list[str]) -> dict:
    """Return what was learned about one image, and what it cost."""
    found = answer.value[0]
    if query.reveal == "top":
        known = {"labels": [labels[int(i)] for i in found]}
    else:
        order = found.argsort(descending=True).tolist()
        known = {
            "labels": [labels[i] for i in order],
            "scores": [round(float(found[i]), 4) for i in order],
        }
    return {"image": str(path), **known, **asdict(answer.traffic), "seconds": answer.seconds}


@app.command("classify")
def classify_command(
    images: Annotated[list[Path], typer.Argument(help="image files; they stay here")],
    program: Annotated[Path, typer.Option(help="the owner's public folder")],
    identity: Identities,
    server: Annotated[str, typer.Option(help="HOST:PORT of the owner")],
    labels: Annotated[
        list[str] | None,
        typer.Option(
            help='candidates, as in "a photo of a cat,a photo of a dog"; the owner reads them'
        ),
    ] = None,
    label: Annotated[
        list[str] | None,
        typer.Option(help='one candidate, as in "a cat, asleep"; may be repeated'),
    ] = None,
    dealer: DealerAt = None,
    parcels: Parcels = None,
    reveal: Annotated[str, typer.Option(help="top, or scores where the owner allows it")] = "top",
    k: Annotated[int, typer.Option(help="how many of the best labels, with --reveal top")] = 1,
    timeout: Timeout = 60.0,
    as_json: Annotated[bool, typer.Option("--json", help="print a JSON list, with costs")] = False,
) -> None:
    """Classify images by a model that stays with its owner; the images stay with you."""
    torch.set_num_threads(1)
    texts = _all_labels(labels or [], label or [])
    if reveal not in ("top", "scores"):
        raise ConfigError(f"--reveal is top or scores, got {reveal!r}")
    query = Query(reveal, k, len(texts))
    me = Identity(identity, "client")
    address = _address(server, "--server")
    compiled = read_program(program / PROGRAM_FILE)
    source = _source(dealer, parcels, me, timeout)
    raw = read_preparation(program)(read_images(images))
    records = []
    with progress_bars() as progress:
        client = Client(
            compiled, source, lambda: connect(*address, me, "server", timeout), progress
        )
        for at, path in enumerate(images):
            one = {name: value[at : at + 1] for name, value in raw.items()}
            records.append(_record(path, client.ask(one, query, texts), query, texts))
            if not as_json:
                _print(records[-1])
    if as_json:
        typer.echo(json.dumps(records, indent=2))


def _print(record: dict) -> None:
    shown = record["labels"]
    if "scores" in record:
        shown = [f"{n} {s:.3f}" for n, s in zip(record["labels"], record["scores"], strict=True)]
    typer.echo(f"{record['image']}: {', '.join(shown)}")
    _say(
        f"  {record['rounds']} rounds, {record['sent_bytes'] / 1e6:.2f} MB sent, "
        f"{record['received_bytes'] / 1e6:.2f} MB received, {record['seconds']:.2f} s"
    )
    sys.stdout.flush()
