"""`deploy run`: start a run on the SuperLink, follow it by round, and keep what came out."""

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from fedvlm.config import Config, for_nodes
from fedvlm.deploy.bundle import toml_value, write_app
from fedvlm.errors import ConfigError, DropoutError, ProtocolError
from fedvlm.federation.server_part import write_server_part
from fedvlm.federation.watch import FILE
from fedvlm.files import write_text

SUPERLINK = "federation"
_CALL_S = 120.0
_POLL_S = 0.5
_ASK_S = 15.0
_END_S = 20.0
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
            lines.append(f"{path.stem}: registered, Flower's id {found.get('node-id')}")
    return lines


def start_run(folder: Path, config: Config, out: Path, resume: bool = False) -> str:
    """Start a run on the SuperLink; returns Flower's id of it.

    Nodes are told what `for_nodes` tells; the rest is written into `out`, for the ServerApp.

    Raises:
        ConfigError: The SuperLink can't be reached.
    """
    write_app(folder / "app")  # nodes run this version's and no other
    settings = for_nodes(config) | {"out": str(out.resolve()), "resume": resume}
    out.mkdir(mode=0o700, parents=True, exist_ok=True)
    write_server_part(config, out)
    path = out / "run-config.toml"
    write_text(path, "".join(f"{k} = {toml_value(v)}\n" for k, v in settings.items()))
    app = folder / "app"
    found = flwr(folder, "run", str(app), SUPERLINK, "--run-config", str(path.resolve()))
    return str(found["run-id"])


@dataclass
class Follower:
    """Turns what a run writes down into lines for a person, as it goes.

    Attributes:
        rounds: Rounds of the run.
        refused: Node → the codes it refused with.
        started: When the run began, on this machine's clock.
    """

    rounds: int
    refused: dict[str, set[str]] = field(default_factory=dict)
    started: float = field(default_factory=time.monotonic)
    _waiting: tuple[float, list[str]] = (0.0, [])

    def lines(self, event: dict[str, Any]) -> Iterator[str]:
        """Return the lines that an event is worth."""
        kind = event.get("event")
        if kind == "asked":
            self._waiting = (time.monotonic(), event["nodes"])
        elif kind == "trip":
            yield self._trip(event)
        elif kind == "round" and event["entry"].get("round"):
            yield self._round(event["entry"])

    def _trip(self, event: dict[str, Any]) -> str:
        self._waiting = (0.0, [])
        text = (
            f"  {event['trip']:<14} asked {len(event['asked'])}, answered {len(event['answered'])}"
        )
        for node, why in event["refused"].items():
            self.refused.setdefault(node, set()).add(why)
            text += f"; {node} refused: {why}"
        if event["silent"]:
            text += f"; silent: {', '.join(event['silent'])}"
        size = f"{event['upload_bytes'] / 1e6:.2f} MB up, {event['download_bytes'] / 1e6:.2f} down"
        return f"{text}; {size}; {event['seconds']:.1f} s"

    def _round(self, entry: dict[str, Any]) -> str:
        spent = time.monotonic() - self.started
        left = spent / entry["round"] * (self.rounds - entry["round"])
        text = f"round {entry['round']}/{self.rounds}"
        if entry.get("abandoned"):
            text += f": abandoned, {entry['abandoned']}"
        else:
            text += f": {entry.get('clients', '?')} nodes summed"
        if entry.get("epsilon") is not None:
            text += f", ε {entry['epsilon']:.2f}"
        for metric in ("test_one_of_100", "test_exact_match"):
            if metric in entry:
                text += f", test {100 * entry[metric]:.1f} %"
        return f"{text}; about {left:.0f} s left"

    def waiting(self) -> str | None:
        """Say for whom the run waits, where it does."""
        since, nodes = self._waiting
        if not nodes:
            return None
        return f"  waiting {time.monotonic() - since:.0f} s for {', '.join(nodes)}"


def follow(
    folder: Path,
    run_id: str,
    out: Path,
    follower: Follower,
    say: Callable[[str], None],
    seconds: float,
) -> None:
    """Follow a run until it ends.

    Args:
        folder: The server's folder.
        run_id: Flower's id of the run.
        out: The run's folder.
        follower: Makes lines of events.
        say: Takes a line.
        seconds: Longest that it may take in all.

    Raises:
        ProtocolError: The run failed, or ended without a result.
        DropoutError: It took too long.
    """
    end, place = time.monotonic() + seconds, 0
    asked, gone = time.monotonic(), 0.0
    while time.monotonic() < end:
        place, events = read_events(out / FILE, place)
        for event in events:
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


def _refusals(follower: Follower) -> str:
    told = [f"{node} ({', '.join(sorted(why))})" for node, why in sorted(follower.refused.items())]
    return f"; refused: {', '.join(told)}" if told else ""
