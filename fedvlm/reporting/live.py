"""A run's page while it runs, from this machine to this machine, where somebody asks for it.

    with watched_page(config, port=0, say=print) as take:
        simulate(config, on_round=take.round)

Nothing listens before, nothing after. The server is the standard library's, on a thread of its
own; it serves three fixed answers and reads no file.
"""

import hmac
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

from fedvlm.config import Config
from fedvlm.config.rules import keeps_personal
from fedvlm.errors import ConfigError
from fedvlm.federation.lines import Follower
from fedvlm.federation.result import Result, summary_of, versions
from fedvlm.reporting.facts import Facts
from fedvlm.reporting.render import render
from fedvlm.reporting.run_page import run_page
from secure.random import SecureRandom

HOST = "127.0.0.1"
_ASKS_S = 1.0
"""How often a page asks whether there is anything new."""
_HEADERS = {
    "Cache-Control": "no-store",
    "Content-Security-Policy": "frame-ancestors 'none'",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Referrer-Policy": "no-referrer",
    "X-Content-Type-Options": "nosniff",
}


@dataclass
class LivePage:
    """What a run's page shows at the moment; written by the run, read by whoever looks.

    Attributes:
        config: The run's configuration.
        ended: Whether the run is over.
    """

    config: Config
    ended: bool = False
    _rounds: list[dict[str, Any]] = field(default_factory=list)
    _status: str = "Preparing: loading data and model."
    _text: str = ""
    _version: int = 0
    _asked: float = -1e9
    _told: str = ""
    _result: Result | None = None
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def __post_init__(self) -> None:
        self._follower = Follower(self.config.training.rounds, self.config)

    def event(self, event: dict[str, Any]) -> None:
        """Take an event of the run, as `on_event` hands it over."""
        kind = event.get("event")
        if kind == "round":
            number = event["entry"]["round"]
            status = self._follower.after(event)
            self._show(f"{number} of {self.config.training.rounds} rounds are done{status}.")
            return
        lines = list(self._follower.lines(event))
        if kind == "asked":
            self._show(f"{event.get('trip')}: {len(event.get('nodes', []))} nodes are asked.")
        elif lines:
            self._show(" ".join(lines[-1].split()))

    def round(self, entry: dict[str, Any]) -> None:
        """Take a round's entry, as `on_round` hands it over."""
        with self._lock:
            if all(entry["round"] != known["round"] for known in self._rounds):
                self._rounds = sorted([*self._rounds, entry], key=lambda one: one["round"])
                self._renew()

    def end(self, result: Result | None = None) -> None:
        """Show the end: the result, or that there is none."""
        with self._lock:
            self.ended = True
            self._status = "The run has ended." if result else "The run was stopped."
            self._renew(result)

    def _show(self, status: str) -> None:
        with self._lock:
            self._status = status
            self._renew()

    def _renew(self, result: Result | None = None) -> None:
        self._version += 1
        self._text = ""
        self._result = result

    def text(self) -> str:
        """Return the page as it is now."""
        with self._lock:
            if not self._text:
                found = self._result or so_far(self.config, self._rounds)
                page = run_page(Facts(found, self.config, {}, {}), self._status)
                self._text = render(page, live=True)
            if self.ended:
                self._told = "ended"
            return self._text

    def version(self) -> str:
        """Return what changes as the page does."""
        with self._lock:
            self._asked = time.monotonic()
            return "ended" if self.ended else str(self._version)

    def wait(self, seconds: float) -> None:
        """Give a page that is open time to take in the end."""
        end = time.monotonic() + seconds
        while time.monotonic() < end:
            with self._lock:
                open_ = time.monotonic() - self._asked < 3 * _ASKS_S
                if not open_ or self._told == "ended":
                    return
            time.sleep(0.05)


def so_far(config: Config, rounds: list[dict[str, Any]]) -> Result:
    """Return what is known of a run that goes on, as a result."""
    metric = "exact_match" if any("test_exact_match" in e for e in rounds) else "one_of_100"
    return Result(
        summary=summary_of(rounds, {}, keeps_personal(config), metric),
        rounds=rounds,
        privacy=None,
        protection={"name": config.protection.protect, "parameters": {}},
        leakage=[],
        config=config.to_dict(),
        versions=versions(),
        seed=config.training.seed,
        data={"name": config.data.source, "metric": metric},
        adapter={"kind": config.adapter.kind},
    )


def _handler(page: LivePage, secret: str) -> type[BaseHTTPRequestHandler]:
    answers: dict[str, Callable[[], tuple[str, str]]] = {
        "": lambda: ("text/html; charset=utf-8", page.text()),
        "page": lambda: ("text/html; charset=utf-8", page.text()),
        "version": lambda: ("text/plain; charset=utf-8", page.version()),
    }

    class Handler(BaseHTTPRequestHandler):
        """Answers GET, from this machine's own address, to who has the secret path."""

        timeout = 10
        server_version, sys_version = "fedvlm", ""

        def do_GET(self) -> None:
            # A name that a stranger's DNS points here must not pass for this address.
            port = self.connection.getsockname()[1]
            if self.headers.get_all("Host") not in ([f"{HOST}:{port}"], [f"localhost:{port}"]):
                self._answer(403, "text/plain", "another host is meant\n")
                return
            parts = self.path.split("/")
            known = len(parts) == 3 and hmac.compare_digest(parts[1].encode(), secret.encode())
            if not known or parts[2] not in answers:
                self._answer(404, "text/plain", "nothing here\n")
                return
            self._answer(200, *answers[parts[2]]())

        def _answer(self, code: int, kind: str, text: str) -> None:
            body = text.encode()
            self.send_response(code)
            for name, value in _HEADERS.items():
                self.send_header(name, value)
            self.send_header("Content-Type", kind)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, format: str, *args: Any) -> None:
            """Say nothing: the path holds the secret."""

    return Handler


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    allow_reuse_address = False

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Say nothing of a peer that hung up."""


@contextmanager
def watched_page(config: Config, port: int, say: Callable[[str], None]) -> Iterator[LivePage]:
    """Serve a run's page from 127.0.0.1 for as long as the block takes.

    Other users of the machine can reach the address, and don't know the path, which is drawn anew
    each time.

    Args:
        config: The run's configuration.
        port: Where to listen; 0 for any that is free.
        say: Told the page's address.

    Raises:
        ConfigError: The port is taken, or out of range.
    """
    page, secret = LivePage(config), SecureRandom().token(16).hex()
    try:
        server = _Server((HOST, port), _handler(page, secret))
    except (OSError, OverflowError) as error:
        raise ConfigError(
            f"can't listen on {HOST}:{port}: {error}; --watch alone takes a free port"
        ) from error
    address = f"http://{HOST}:{server.server_port}/{secret}/"
    thread = threading.Thread(target=server.serve_forever, args=(0.1,), daemon=True)
    thread.start()
    say(f"live at {address}")
    try:
        yield page
    finally:
        if not page.ended:
            page.end()
        page.wait(3 * _ASKS_S)
        server.shutdown()
        server.server_close()
        thread.join()
