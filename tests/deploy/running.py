"""A rehearsal on loopback with its processes running, as the docs say to start them."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import Any

from tests.deploy.processes import (
    Parties,
    end_group,
    environment,
    fedvlm,
    free_port,
    listening,
    wait_for,
)

NODES = 4  # of which a sum can lose one


class Running:
    """Four sites and a server; each process can be ended and started again.

    Args:
        stack: Ends what is started.
        tmp: Folder for everything.
        fill: Puts images into the nodes' data folders.
        model: Base model.
    """

    def __init__(
        self,
        stack: ExitStack,
        tmp: Path,
        fill: Callable[[list[Path]], None],
        model: str = "embedded",
    ) -> None:
        self.root, self.port = tmp / "fed", free_port()
        (tmp / "logs").mkdir()
        made = fedvlm(
            *("deploy", "init", str(self.root), "--clients", str(NODES)),
            *("--port", str(self.port), "--model", model),
            within=300,
        )
        assert made.returncode == 0, made.stderr
        self.nodes = [self.root / f"node-{k + 1}" for k in range(NODES)]
        fill([node / "data" for node in self.nodes])
        self._stack = stack
        self.parties = Parties(stack, tmp / "logs")
        self.processes: dict[str, subprocess.Popen] = {}
        self.ports = [free_port() for _ in self.nodes]
        self._starts = 0
        self.start_server()
        told = fedvlm("deploy", "register", str(self.root / "server"), within=400)
        assert told.returncode == 0, told.stderr
        assert told.stdout.count("registered") == NODES
        for number in range(NODES):
            self.start_node(number)

    def start_server(self) -> None:
        self._starts += 1
        name = f"server-{self._starts}"
        self.processes["server"] = self.parties.start(self.root / "server", "start-server.sh", name)
        wait_for(lambda: listening(self.port), 300, f"the SuperLink's start\n{self.parties.logs()}")

    def start_node(self, number: int) -> None:
        self._starts += 1
        node = self.nodes[number]
        self.processes[node.name] = self.parties.start(
            node,
            "start-node.sh",
            f"{node.name}-{self._starts}",
            # A port that was just given back may be held for a while.
            NODE_PORT=str(free_port()),
        )

    def kill(self, name: str) -> None:
        """End a party with all its helpers, as a power cut does."""
        end_group(self.processes[name])
        if name == "server":
            for number, _ in list(self._of_server()):
                with suppress(ProcessLookupError):
                    os.kill(number, signal.SIGKILL)

    def hold(self, name: str) -> None:
        os.killpg(self.processes[name].pid, signal.SIGSTOP)

    def go_on(self, name: str) -> None:
        os.killpg(self.processes[name].pid, signal.SIGCONT)

    def server_app(self) -> int | None:
        """Return the id of the ServerApp's process, which the SuperLink started."""
        found = [n for n, words in self._of_server() if b"flwr-serverapp" in words]
        return found[0] if found else None

    def _of_server(self) -> Iterator[tuple[int, bytes]]:
        """Give out the server's processes: Flower starts some in a session of their own."""
        home = f"FLWR_HOME={self.root / 'server' / 'flwr'}\0".encode()
        for place in Path("/proc").glob("[0-9]*"):
            try:
                if home in (place / "environ").read_bytes():
                    yield int(place.name), (place / "cmdline").read_bytes()
            except OSError:
                continue

    def begin(self, out: Path, *more: str) -> subprocess.Popen:
        """Start `deploy run` and let it follow; its lines are in `out.log`."""
        log = self._stack.enter_context(out.with_suffix(".log").open("a"))
        process = subprocess.Popen(
            [
                *(sys.executable, "-m", "fedvlm.cli", "deploy", "run", str(self.root / "server")),
                *("--out", str(out), "--within", "1400", *more),
            ],
            env=environment(),
            stdout=log,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
        self._stack.callback(end_group, process)
        return process

    def told(self, out: Path) -> str:
        path = out.with_suffix(".log")
        return (path.read_text() if path.exists() else "") + self.parties.logs()


def events(out: Path) -> list[dict[str, Any]]:
    path = out / "progress.jsonl"
    if not path.exists():
        return []
    text = path.read_text()
    return [json.loads(line) for line in text[: text.rfind("\n") + 1].splitlines()]


def wait_event(out: Path, seconds: float, said: Callable[[], str], **wanted: Any) -> None:
    """Wait for an event with these values."""

    def seen() -> bool:
        return any(all(e.get(k) == v for k, v in wanted.items()) for e in events(out))

    end = time.monotonic() + seconds
    while not seen():
        if time.monotonic() > end:
            raise AssertionError(f"no {wanted} within {seconds} s\n{said()}")
        time.sleep(0.1)
