"""A protocol's trips over a real SuperLink, beside the round trip of Flower's own empty message."""

import json
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from simulations.benchmarks._federation_runs import (
    flwr_run,
    free_port,
    marked,
    start_flower,
    wait_for_port,
    with_home,
)

NODES = 3
_WAIT_S = 900.0
_REPEATS = 6
_SERVER = """\
import json
import time

from flwr.app import Context, Message, RecordDict
from flwr.serverapp import Grid, ServerApp

app = ServerApp()


@app.main()
def main(grid: Grid, context: Context) -> None:
    while len(list(grid.get_node_ids())) < {nodes}:
        time.sleep(0.2)
    seconds = []
    for _ in range({repeats}):
        nodes = list(grid.get_node_ids())
        messages = [Message(RecordDict(), dst_node_id=n, message_type="query") for n in nodes]
        start = time.monotonic()
        replies = list(grid.send_and_receive(messages, timeout=120))
        assert len(replies) == {nodes} and not any(r.has_error() for r in replies)
        seconds.append(time.monotonic() - start)
    with open(context.run_config["out"] + ".part", "w") as file:
        json.dump(seconds, file)
    import os
    os.replace(context.run_config["out"] + ".part", context.run_config["out"])
"""
_CLIENT = """\
from flwr.app import Context, Message, RecordDict
from flwr.clientapp import ClientApp

app = ClientApp()


@app.query()
def query(message: Message, context: Context) -> Message:
    return Message(RecordDict(), reply_to=message)
"""
_PROJECT = """\
[project]
name = "empty"
version = "1.0.0"
description = "Empty messages"
license = "Apache-2.0"
dependencies = []

[tool.flwr.app]
publisher = "fedvlm"

[tool.flwr.app.components]
serverapp = "empty.server_app:app"
clientapp = "empty.client_app:app"

[tool.flwr.app.config]
out = ""
"""


def flower_seconds() -> float:
    """Return the median round trip of an empty message to three SuperNodes, in seconds.

    Flower's own app, which imports Flower and nothing else, without TLS.
    """
    with tempfile.TemporaryDirectory() as name, marked() as (environment, _):
        folder, port, out = Path(name), free_port(), Path(name) / "seconds.json"
        app = folder / "app"
        (app / "empty").mkdir(parents=True)
        (app / "pyproject.toml").write_text(_PROJECT)
        (app / "empty" / "__init__.py").write_text("")
        (app / "empty" / "server_app.py").write_text(_SERVER.format(nodes=NODES, repeats=_REPEATS))
        (app / "empty" / "client_app.py").write_text(_CLIENT)
        environment = with_home(environment, folder, port)

        def start(*words: str) -> None:
            log = f"{words[0]}-{words[-1]}.log"
            start_flower(words[0], words[1:], environment, folder, log)

        start("flower-superlink", "--port", str(port))
        wait_for_port(port)
        for _ in range(NODES):
            link = ("--superlink", f"127.0.0.1:{port}")
            start("flower-supernode", *link, "--port", str(free_port()))
        flwr_run(app, f"out={json.dumps(str(out))}", environment, folder)
        end = time.monotonic() + _WAIT_S
        while not out.exists():
            if time.monotonic() > end:
                raise RuntimeError("Flower's empty messages did not come back")
            time.sleep(0.2)
        return statistics.median(json.loads(out.read_text()))


def protocol_seconds(rounds: int = 2) -> float:
    """Return the median of secure aggregation's trips 2 to 5 over a SuperLink, in seconds.

    Three sites as `fedvlm deploy init` makes them: TLS, node authentication, the active mode, the
    embedded model and data.
    """
    with tempfile.TemporaryDirectory() as name, marked() as (environment, _):
        folder, port = Path(name), free_port()
        root, out = folder / "fed", folder / "run"
        environment = environment | {"FEDVLM_PYTHON": sys.executable}

        def call(*words: str) -> None:
            subprocess.run(  # noqa: S603  our own arguments
                [sys.executable, "-m", "fedvlm.cli", *words],
                env=environment,
                cwd=folder,
                check=True,
                timeout=_WAIT_S,
            )

        def start(party: Path, script: str, **more: str) -> None:
            log = (folder / f"{party.name}.log").open("w")
            subprocess.Popen(  # noqa: S603  our own arguments
                ["sh", str(party / script)],  # noqa: S607
                env=environment | more,
                cwd="/",
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )

        call("deploy", "init", str(root), "--clients", str(NODES), "--port", str(port))
        for number in range(NODES):
            write_images(root / f"node-{number + 1}" / "data", number)
        start(root / "server", "start-server.sh")
        wait_for_port(port)
        call("deploy", "register", str(root / "server"))
        for number in range(NODES):
            start(root / f"node-{number + 1}", "start-node.sh", NODE_PORT=str(free_port()))
        call(
            *("deploy", "run", str(root / "server"), "--out", str(out)),
            *("--set", f"rounds={rounds}", "--set", "local_epochs=1", "--within", str(_WAIT_S)),
        )
        trips = [
            event["seconds"]
            for event in map(json.loads, (out / "progress.jsonl").read_text().splitlines())
            if event["event"] == "trip" and event["trip"] in ("share", "mask", "commit", "unmask")
        ]
        return statistics.median(trips)


def write_images(folder: Path, number: int, pairs: int = 60) -> None:
    """Write a site's folder: images and captions of the embedded private concepts."""
    import csv

    import numpy as np

    from fedvlm.data import load_emoji

    data = load_emoji()
    rows = np.flatnonzero(~data.public)[number::NODES][:pairs]
    (folder / "images").mkdir(parents=True, exist_ok=True)
    with (folder / "captions.csv").open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["image", "caption"])
        for row in rows:
            (folder / "images" / f"{row}.png").write_bytes(data.encoded[row])
            writer.writerow([f"{row}.png", data.captions[row]])
