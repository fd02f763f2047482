"""`deploy run`: start a run on the SuperLink, follow it by round, and keep what came out."""

import json
import os
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from fedvlm.config import Config, for_nodes
from fedvlm.deploy.bundle import toml_value, write_app
from fedvlm.errors import ConfigError, DropoutError, ProtocolError
from fedvlm.federation.lines import Follower
from fedvlm.federation.server_part import write_server_part
from fedvlm.federation.watch import FILE
from fedvlm.files import write_text

SUPERLINK = "federation"
_CALL_S = 120.0
_POLL_S = 0.5
_ASK_S = 15.0
_END_S = 20.0
_LOST_S = 60.0
_CONNECT_S = 10.0
QUIET = {
    "FLWR_TELEMETRY_ENABLED": "0",
    "FLWR_DISABLE_UPDATE_CHECK": "1",
    "FLWR_DISABLE_RUNTIME_DEPENDENCY_INSTALLATION": "1",
}
"""What keeps Flower from reporting, asking and installing."""


def server_of(folder: Path) -> str:
    """Return a server folder's own address, as programs on this machine reach it.

    Raises:
        ConfigError: The folder is no server's.
    """
    try:
        server = json.loads((folder / "server.json").read_text(encoding="utf-8"))["server"]
        port = int(str(server).rpartition(":")[2])
    except (OSError, ValueError, KeyError, TypeError):
        raise ConfigError(f"{folder} is no server's folder; deploy init makes one") from None
    return os.environ.get("SUPERLINK", f"127.0.0.1:{port}")


def flwr(folder: Path, *arguments: str) -> dict[str, Any]:
    """Call Flower's command line with the connection of a server's folder; returns its JSON.

    Raises:
        ConfigError: The SuperLink can't be reached, or refuses.
    """
    home = folder.resolve() / "flwr"
    connection = {
        "address": server_of(folder),
        "root-certificates": str(folder.resolve() / "tls" / "ca.crt"),
    }
    lines = [f"{key} = {toml_value(value)}" for key, value in connection.items()]
    text = f'[superlink]\ndefault = "{SUPERLINK}"\n\n[superlink.{SUPERLINK}]\n' + "\n".join(lines)
    write_text(home / "config.toml", text + "\n")
    program = Path(sys.executable).parent / "flwr"
    try:
        done = subprocess.run(  # noqa: S603  our own arguments
            [str(program), *arguments, "--format", "json"],
            env=os.environ | QUIET | {"FLWR_HOME": str(home)},
            capture_output=True,
            text=True,
            timeout=_CALL_S,
            check=False,
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        raise ConfigError(f"flwr {arguments[0]}: {type(error).__name__}") from None
    found = _json_of(done.stdout)
    if done.returncode != 0 or not found.get("success", False):
        raise ConfigError(f"the SuperLink refused flwr {arguments[0]}: {_reason(found, done)}")
    return found


def _json_of(text: str) -> dict[str, Any]:
    start = text.find("{")
    try:
        found = json.loads(text[start:]) if start >= 0 else {}
    except ValueError:
        return {}
    return found if isinstance(found, dict) else {}


def _reason(found: dict[str, Any], done: subprocess.CompletedProcess[str]) -> str:
    told = str(found.get("error-message") or "")
    lines = [line.strip() for line in (told + "\n" + done.stderr).splitlines() if line.strip()]
    text = lines[0] if lines else f"code {done.returncode}"
    if any(word in told + done.stderr for word in ("ConnectError", "refused", "unreachable")):
        text += "; start it first: sh start-server.sh"
    return text[:400]


def register(folder: Path) -> list[str]:
    """Let the nodes in whose public keys lie in `nodes/`; returns a line for each.

    Raises:
        ConfigError: The SuperLink can't be reached.
    """
    lines = []
    for path in sorted((folder / "nodes").glob("*.pub")):
        try:
            found = flwr(folder, "supernode", "register", str(path), SUPERLINK)
        except ConfigError as error:
            if "already" not in str(error):
                raise
            lines.append(f"{path.stem}: registered before")
        else:
            write_text(path.with_suffix(".id"), f"{found.get('node-id')}\n")
            lines.append(f"{path.stem}: registered, Flower's id {found.get('node-id')}")
    return lines


def unregister(folder: Path, number: int) -> None:
    """Let a node take part no more; its `.pub` is put aside, so that `register` lets none in.

    Args:
        folder: The server's folder.
        number: The node's number, from 1.

    Raises:
        ConfigError: The node was not registered from this folder, or the SuperLink can't be
            reached.
    """
    path = folder / "nodes" / f"node-{number}.id"
    try:
        flowers = int(path.read_text(encoding="ascii"))
    except (OSError, ValueError):
        raise ConfigError(
            f"{path} isn't there: node {number} was not registered from this folder; flwr "
            "supernode list shows Flower's ids"
        ) from None
    flwr(folder, "supernode", "unregister", str(flowers), SUPERLINK)
    key = path.with_suffix(".pub")
    if key.exists():
        key.replace(path.with_suffix(".left"))
    path.unlink()


def start_run(folder: Path, config: Config, out: Path, resume: bool = False) -> str:
    """Start a run on the SuperLink; returns Flower's id of it.

    Nodes are told what `for_nodes` tells; the rest is written into `out`, for the ServerApp.

    Raises:
        ConfigError: The SuperLink can't be reached.
    """
    write_app(folder / "app")  # nodes run this version's and no other
    settings = for_nodes(config) | {"out": str(out.resolve()), "resume": resume}
    out.mkdir(mode=0o700, parents=True, exist_ok=True)
    if not resume:  # an earlier start's end would be taken for this one's
        (out / FILE).unlink(missing_ok=True)
    write_server_part(config, out, folder / "roster.json")
    path = out / "run-config.toml"
    write_text(path, "".join(f"{k} = {toml_value(v)}\n" for k, v in settings.items()))
    app = folder / "app"
    found = flwr(folder, "run", str(app), SUPERLINK, "--run-config", str(path.resolve()))
    return str(found["run-id"])


def follow(
    folder: Path,
    run_id: str,
    out: Path,
    follower: Follower,
    say: Callable[[str], None],
    seconds: float,
    *,
    place: int = 0,
    on_event: Callable[[dict[str, Any]], None] = lambda event: None,
) -> None:
    """Follow a run until it ends.

    Args:
        folder: The server's folder.
        run_id: Flower's id of the run.
        out: The run's folder.
        follower: Makes lines of events.
        say: Takes a line.
        seconds: Longest that it may take in all.
        place: Where in the run's events this start of it begins.
        on_event: Called with each event.

    Raises:
        ProtocolError: The run failed, or ended without a result.
        DropoutError: It took too long, or the SuperLink is gone.
    """
    end = time.monotonic() + seconds
    asked, gone, lost = time.monotonic(), 0.0, 0.0
    while time.monotonic() < end:
        place, events = read_events(out / FILE, place)
        for event in events:
            on_event(event)
            for line in follower.lines(event):
                say(line)
            if event.get("event") == "done":
                return
            if event.get("event") == "failed":
                raise ProtocolError(f"{event.get('text')}{_refusals(follower)}")
        if time.monotonic() - asked > _ASK_S:
            asked = time.monotonic()
            waiting = follower.waiting()
            if waiting:
                say(waiting)
            status = status_of(folder, run_id)
            lost = 0.0 if reachable(folder) else lost or time.monotonic()
            if lost and time.monotonic() - lost > _LOST_S:
                raise DropoutError(
                    f"the SuperLink doesn't answer for {_LOST_S:.0f} s; start it again (sh "
                    "start-server.sh), then deploy run --resume goes on from the last round"
                )
            # What the app wrote last may be on its way still: ask twice before giving up.
            if status.startswith("finished"):
                gone = gone or time.monotonic()
            if gone and time.monotonic() - gone > _END_S:
                raise ProtocolError(
                    f"run {run_id} ended ({status}) and left no result{_refusals(follower)}; the "
                    "reason is in the SuperLink's terminal; deploy run --resume goes on with it"
                )
        time.sleep(_POLL_S)
    raise DropoutError(f"run {run_id} took longer than {seconds:.0f} s; raise --within")


def place_of(out: Path) -> int:
    """Return where the events of a run's next start begin: after the last whole line."""
    return read_events(out / FILE, 0)[0]


def read_events(path: Path, place: int) -> tuple[int, list[dict[str, Any]]]:
    """Read the whole lines that a file has gained since a place in it."""
    try:
        with path.open("rb") as file:
            file.seek(place)
            data = file.read()
    except FileNotFoundError:
        return place, []
    whole = data[: data.rfind(b"\n") + 1]
    return place + len(whole), [json.loads(line) for line in whole.splitlines()]


def status_of(folder: Path, run_id: str) -> str:
    """Return Flower's status of a run, such as running or finished:completed."""
    try:
        found = flwr(folder, "list", SUPERLINK, "--run-id", run_id)
        return str(found["runs"][0]["status"])
    except (ConfigError, KeyError, IndexError):
        return "unknown"


def reachable(folder: Path) -> bool:
    """Return whether somebody listens at the server's address."""
    host, _, port = server_of(folder).rpartition(":")
    try:
        with socket.create_connection((host.strip("[]"), int(port)), timeout=_CONNECT_S):
            return True
    except OSError:
        return False


def _refusals(follower: Follower) -> str:
    told = [f"{node} ({', '.join(sorted(why))})" for node, why in sorted(follower.refused.items())]
    return f"; refused: {', '.join(told)}" if told else ""
