"""The dealer: a process of its own that makes correlated randomness and sees no input or weight.

Two ways to hand it out, ahead of time in files or over mutual TLS while parties run:

    python -m secure.smpc.dealer identities DIR
    python -m secure.smpc.dealer files PROGRAM.json --out DIR --reveal top --labels 10 --count 5
    python -m secure.smpc.dealer serve PROGRAM.json --identity DIR --port 7301

All secrets are drawn from the operating system's entropy through AES-256-CTR
(`secure.random.SecureRandom`); CrypTen's trusted first party and its torch generators have no
part in it.
"""

import argparse
import contextlib
import socket
import sys
import threading
from dataclasses import dataclass
from pathlib import Path

from secure.errors import IntegrityError, ParameterError, SecureError
from secure.random import KEY_BYTES, SecureRandom
from secure.smpc import _material, _wire, parcels, tls
from secure.smpc._channel import SocketChannel
from secure.smpc._material import CLIENT, SERVER, Material
from secure.smpc._query import REVEALS, Query, requirements
from secure.smpc.errors import MaterialError, WireError
from secure.smpc.parcels import ID_BYTES, SETUP_BYTES, Setup
from secure.smpc.program import Program, read_program

_MAX_OPEN_PARCELS = 1024
_ROLE_NUMBERS = {"server": SERVER, "client": CLIENT}


def write_files(
    program: Program, query: Query, count: int, out: Path, random: SecureRandom | None = None
) -> list[str]:
    """Deal inferences into `out/server` and `out/client`.

    The set-up (the weight masks' key) is made on the first call and kept in `out/dealer`; hand
    `server/` to the model's owner and `client/` to the client, each over a private way.

    Args:
        program: The program.
        query: What each inference will ask.
        count: How many, 1 to 10,000.
        out: Folder.
        random: Source of secrets; the process's own by default.

    Returns:
        The parcels' identifiers.
    """
    if not 1 <= count <= 10_000:
        raise ParameterError(f"count is in [1, 10000], got {count}")
    query.check(program)
    random = random or SecureRandom()
    name = f"{program.digest[:16]}.setup"
    kept = out / "dealer" / name
    if kept.exists():
        setup = Setup.from_bytes(kept.read_bytes())
        program.require(setup.program)
    else:
        setup = Setup.draw(program, random)
        parcels.write_secret(kept, [setup.to_bytes()])
        parcels.write_secret(out / "server" / name, [setup.to_bytes()])
    return [parcels.write_parcel(out, program, query, setup, random).hex() for _ in range(count)]


@dataclass
class _Open:
    """A parcel whose halves are being handed out."""

    query: Query
    masters: tuple[bytes, bytes]
    waiting: set[str]


class Dealer:
    """Deals over the network, each half of each parcel once.

    Args:
        program: The program that it deals for.
        random: Source of secrets.
    """

    def __init__(self, program: Program, random: SecureRandom | None = None) -> None:
        self._program = program
        self._random = random or SecureRandom()
        self._setup = Setup.draw(program, self._random)
        self._masks = self._setup.masks(program)
        self._open: dict[bytes, _Open] = {}
        self._given: set[bytes] = set()
        self._lock = threading.Lock()

    def _half(self, parcel: bytes, query: Query, role: str) -> tuple[bytes, tuple[bytes, bytes]]:
        """Return a role's key of a parcel, once, and both keys for dealing."""
        with self._lock:
            if parcel in self._given:
                raise MaterialError(f"the parcel {parcel.hex()[:8]} was used before")
            entry = self._open.get(parcel)
            if entry is None:
                if len(self._open) >= _MAX_OPEN_PARCELS:
                    raise MaterialError("too many parcels are half handed out")
                masters = (self._random.token(KEY_BYTES), self._random.token(KEY_BYTES))
                entry = self._open[parcel] = _Open(query, masters, {"server", "client"})
            if entry.query != query:
                raise MaterialError("the two halves were asked for different queries")
            if role not in entry.waiting:
                raise MaterialError(f"the parcel {parcel.hex()[:8]} was used before")
            entry.waiting.discard(role)
            if not entry.waiting:
                del self._open[parcel]
                self._given.add(parcel)
            return entry.masters[_ROLE_NUMBERS[role]], entry.masters

    def answer(self, channel: SocketChannel, role: str) -> None:
        """Answer one request of a connected party.

        Raises:
            SecureError: The request isn't one, or asks for what was handed out.
        """
        request = _wire.unpack_json(channel.receive(_wire.MAX_JSON_BYTES, _wire.JSON))
        self._program.require(str(request.get("program")))
        if request.get("ask") == "setup":
            if role != "server":
                raise IntegrityError("only the server is given the weight masks")
            channel.send(self._setup.to_bytes(), _wire.BLOB)
            return
        if request.get("ask") != "parcel":
            raise WireError("the peer asked the dealer for nothing it deals")
        query = Query.from_wire(request.get("query"))
        query.check(self._program)
        parcel = parse_identifier(request.get("parcel"))
        if request.get("setup") != self._setup.identifier.hex():
            raise MaterialError("the parties use another set-up than this dealer's")
        own, masters = self._half(parcel, query, role)
        channel.send(own, _wire.BLOB)
        if role == "server":
            items = requirements(self._program, query).items
            for chunk in _material.deal(items, masters, self._masks):
                channel.send(chunk, _wire.BLOB)

    def serve(
        self,
        listener: socket.socket,
        identity: tls.Identity,
        stop: threading.Event,
        timeout_s: float = 60.0,
    ) -> None:
        """Answer parties until `stop` is set; each connection in a thread of its own.

        Args:
            listener: From `tls.listen`.
            identity: The dealer's.
            stop: Set to end.
            timeout_s: Longest silence of a party.
        """
        threads: list[threading.Thread] = []
        with listener:
            while not stop.is_set():
                try:
                    sock, _ = listener.accept()
                except TimeoutError:
                    continue
                thread = threading.Thread(
                    target=self._one, args=(sock, identity, timeout_s), daemon=True
                )
                thread.start()
                threads = [each for each in threads if each.is_alive()] + [thread]
        for thread in threads:
            thread.join(timeout_s)

    def _one(self, sock: socket.socket, identity: tls.Identity, timeout_s: float) -> None:
        try:
            channel, role = tls.accept(sock, identity, ("server", "client"), timeout_s)
        except SecureError as error:
            print(f"refused: {error}", file=sys.stderr)  # noqa: T201
            return
        try:
            self.answer(channel, role)
        except SecureError as error:
            channel.report(str(error))
            print(f"stopped: {error}", file=sys.stderr)  # noqa: T201
        finally:
            channel.close()


def parse_identifier(value: object) -> bytes:
    """Read a parcel's or set-up's identifier from the wire.

    Raises:
        WireError: Not 16 bytes in hexadecimal.
    """
    with contextlib.suppress(ValueError, TypeError):
        # `fromhex` passes over spaces.
        if isinstance(value, str) and len(value) == 2 * ID_BYTES and value.isalnum():
            return bytes.fromhex(value)
    raise WireError("the peer sent an identifier that is not one")


class Remote:
    """A party's material from the dealer's process.

    Args:
        host: The dealer's host.
        port: Its port.
        identity: The party's.
        timeout_s: Longest silence of the dealer.
    """

    def __init__(
        self, host: str, port: int, identity: tls.Identity, timeout_s: float = 60.0
    ) -> None:
        if identity.role not in _ROLE_NUMBERS:
            raise ParameterError("only the server and the client take material")
        self._host, self._port = host, port
        self._identity, self._timeout_s = identity, timeout_s

    def _ask(self, request: dict) -> SocketChannel:
        channel = tls.connect(self._host, self._port, self._identity, "dealer", self._timeout_s)
        channel.send(_wire.pack_json(request), _wire.JSON)
        return channel

    def setup(self, program: Program) -> Setup:
        """Ask for the program's set-up (server only)."""
        channel = self._ask({"ask": "setup", "program": program.digest})
        try:
            setup = Setup.from_bytes(channel.receive(SETUP_BYTES, _wire.BLOB))
        finally:
            channel.close()
        program.require(setup.program)
        return setup

    def choose(self, program: Program, query: Query) -> bytes:
        """Draw the identifier of a new parcel (client only)."""
        return SecureRandom().token(ID_BYTES)

    def claim(self, program: Program, query: Query, setup: bytes, parcel: bytes) -> Material:
        """Take this party's half of a parcel; derived shares stream in as they are used."""
        role = _ROLE_NUMBERS[self._identity.role]
        channel = self._ask(
            {
                "ask": "parcel",
                "program": program.digest,
                "query": query.to_wire(),
                "setup": setup.hex(),
                "parcel": parcel.hex(),
            }
        )
        try:
            master = bytes(channel.receive(KEY_BYTES, _wire.BLOB))
        except BaseException:
            channel.close()
            raise
        items = requirements(program, query).items
        if role == CLIENT:
            channel.close()
            return Material(role, master, items)
        return Material(
            role, master, items, lambda count: channel.receive(count, _wire.BLOB), channel.close
        )

    def discard(self, parcel: bytes) -> None:
        """Do nothing: every session draws a new identifier."""


def add_query_arguments(parser: argparse.ArgumentParser) -> None:
    """Add `--reveal`, `--k`, `--labels` and `--batch` to a parser."""
    parser.add_argument("--reveal", choices=REVEALS, default="top")
    parser.add_argument("--k", type=int, default=1)
    parser.add_argument("--labels", type=int, default=0, help="number of labels, 0 for none")
    parser.add_argument("--batch", type=int, default=1)


def main(arguments: list[str] | None = None, name: str = "python -m secure.smpc.dealer") -> int:
    """Run the command line, called by a name; returns 0 done, 2 wrong usage, 3 refused."""
    parser = argparse.ArgumentParser(prog=name)
    commands = parser.add_subparsers(dest="command", required=True)
    make = commands.add_parser("identities", help="make an authority and a certificate a role")
    make.add_argument("folder", type=Path)
    files = commands.add_parser("files", help="deal inferences into files")
    files.add_argument("program", type=Path)
    files.add_argument("--out", type=Path, required=True)
    files.add_argument("--count", type=int, default=1)
    add_query_arguments(files)
    serve = commands.add_parser("serve", help="deal over mutual TLS")
    serve.add_argument("program", type=Path)
    serve.add_argument("--identity", type=Path, required=True)
    serve.add_argument("--host", default="127.0.0.1")
    serve.add_argument("--port", type=int, default=7301)
    options = parser.parse_args(arguments)
    try:
        if options.command == "identities":
            tls.make_identities(options.folder)
        elif options.command == "files":
            query = Query(options.reveal, options.k, options.labels, options.batch)
            for parcel in write_files(
                read_program(options.program), query, options.count, options.out
            ):
                print(parcel)  # noqa: T201
        else:
            dealer = Dealer(read_program(options.program))
            listener = tls.listen(options.host, options.port)
            print(f"listening on port {listener.getsockname()[1]}", flush=True)  # noqa: T201
            dealer.serve(listener, tls.Identity(options.identity, "dealer"), threading.Event())
    except ParameterError as error:
        print(error, file=sys.stderr)  # noqa: T201
        return 2
    except SecureError as error:
        print(error, file=sys.stderr)  # noqa: T201
        return 3
    except KeyboardInterrupt:
        return 0
    return 0


if __name__ == "__main__":
    sys.exit(main())
