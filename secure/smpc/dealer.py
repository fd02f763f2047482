"""The dealer: a process of its own that makes correlated randomness and sees no input or weight.

Two ways to hand it out, ahead of time in files or over mutual TLS while parties run:

    python -m secure.smpc.dealer identities DIR --days 90
    python -m secure.smpc.dealer files PROGRAM.json --out DIR --reveal top --labels 10 --count 5
    python -m secure.smpc.dealer serve PROGRAM.json --identity DIR --port 7301

All secrets are drawn from the operating system's entropy through AES-256-CTR
(`secure.random.SecureRandom`); CrypTen's trusted first party and its torch generators have no
part in it.
"""

import argparse
import socket
import sys
import threading
from pathlib import Path

from secure.errors import IntegrityError, ParameterError, SecureError
from secure.random import SecureRandom
from secure.smpc import _material, _wire, identities, parcels, tls
from secure.smpc._channel import Channel
from secure.smpc._material import CLIENT, SERVER
from secure.smpc._open_parcels import OpenParcels
from secure.smpc._query import MAX_LABELS, REVEALS, Query, requirements
from secure.smpc._remote import MAX_REQUEST_BYTES, Remote, parse_identifier
from secure.smpc._service import Limits, Log, Service
from secure.smpc.errors import WireError
from secure.smpc.parcels import Setup
from secure.smpc.program import Program, read_program

__all__ = ["Dealer", "Remote", "add_query_arguments", "main", "parse_identifier", "write_files"]


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


class Dealer:
    """Deals over the network: to a client a parcel of its own, to the server the other half, once.

    Args:
        program: The program that it deals for.
        random: Source of secrets.
        limits: What it gives at once, and of it to one client.
        lifetime_s: How long a client's half waits for the server's; then neither is given again.
    """

    def __init__(
        self,
        program: Program,
        random: SecureRandom | None = None,
        limits: Limits | None = None,
        lifetime_s: float = 120.0,
    ) -> None:
        random = random or SecureRandom()
        self._program = program
        self._limits = limits or Limits()
        self._setup = Setup.draw(program, random)
        self._masks = self._setup.masks(program)
        self.waiting = OpenParcels(random, lifetime_s)

    def answer(self, channel: Channel, role: str, name: bytes = b"") -> None:
        """Answer one request of a connected party.

        Args:
            channel: The link.
            role: The party's role.
            name: What its certificate is called.

        Raises:
            SecureError: The request isn't one, or asks for what was handed out.
        """
        request = _wire.unpack_json(channel.receive(MAX_REQUEST_BYTES, _wire.JSON))
        self._program.require(str(request.get("program")))
        ask = request.get("ask")
        if ask not in ("setup", "open", "parcel"):
            raise WireError("the peer asked the dealer for nothing it deals")
        if role != ("client" if ask == "open" else "server"):
            raise IntegrityError(
                "only the server is given the weight masks and its halves, and only a client "
                "opens parcels"
            )
        if ask == "setup":
            channel.send(self._setup.to_bytes(), _wire.BLOB)
            return
        query = Query.from_wire(request.get("query"))
        self._limits.check(query)
        query.check(self._program)
        if ask == "open":
            parcel, opened = self.waiting.open(query, name)
            channel.send(self._setup.identifier + parcel + opened.masters[CLIENT], _wire.BLOB)
            return
        parcel = parse_identifier(request.get("parcel"))
        channel.send(_wire.pack_json({"setup": self._setup.identifier.hex()}), _wire.JSON)
        if request.get("setup") != self._setup.identifier.hex():
            return
        masters = self.waiting.take(parcel, query).masters
        channel.send(masters[SERVER], _wire.BLOB)
        items = requirements(self._program, query).items
        for chunk in _material.deal(items, masters, self._masks):
            channel.send(chunk, _wire.BLOB)

    def serve(
        self,
        listener: socket.socket,
        identity: tls.Identity,
        stop: threading.Event,
        timeout_s: float = 60.0,
        log: Log = lambda text: None,
    ) -> None:
        """Answer parties until `stop` is set; no single one ends or blocks it (see `Limits`).

        Args:
            listener: From `tls.listen`.
            identity: The dealer's.
            stop: Set to end.
            timeout_s: Longest silence of a party.
            log: Called with a line for every request and every refusal; no secret is in it.
        """

        def handle(channel: Channel, peer: tls.Peer) -> str:
            self.answer(channel, peer.role, peer.name)
            return f"dealt to a {peer.role}"

        Service(identity, ("server", "client"), handle, self._limits, timeout_s, log).serve(
            listener, stop
        )


def add_query_arguments(parser: argparse.ArgumentParser) -> None:
    """Add `--reveal`, `--k`, `--labels` and `--batch` to a parser."""
    parser.add_argument("--reveal", choices=REVEALS, default="top")
    parser.add_argument("--k", type=int, default=1)
    parser.add_argument("--labels", type=int, default=0, help="number of labels, 0 for none")
    parser.add_argument("--batch", type=int, default=1)


def _say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)  # noqa: T201


def _identities(options: argparse.Namespace) -> None:
    if options.renew:
        for path in identities.renew(options.folder, options.days):
            print(path)  # noqa: T201
    elif options.client is not None:
        print(identities.add_client(options.folder, options.client, options.days))  # noqa: T201
    else:
        identities.make_identities(options.folder, options.days)


def _serve(options: argparse.Namespace) -> None:
    if not 1 <= options.timeout <= 1e6:
        raise ParameterError(f"--timeout is in [1, 1e6] seconds, got {options.timeout}")
    identity = tls.Identity(options.identity, "dealer")
    identity.require_valid()
    limits = Limits(batch=options.max_batch, labels=options.max_labels)
    dealer = Dealer(read_program(options.program), limits=limits)
    listener = tls.listen(options.host, options.port)
    print(f"listening on port {listener.getsockname()[1]}", flush=True)  # noqa: T201
    dealer.serve(listener, identity, threading.Event(), options.timeout, _say)


def main(arguments: list[str] | None = None, name: str = "python -m secure.smpc.dealer") -> int:
    """Run the command line, called by a name; returns 0 done, 2 wrong usage, 3 refused."""
    parser = argparse.ArgumentParser(prog=name)
    commands = parser.add_subparsers(dest="command", required=True)
    make = commands.add_parser(
        "identities", help="make an authority and a certificate a role; or renew, or add a client"
    )
    make.add_argument("folder", type=Path)
    make.add_argument("--days", type=int, default=30, help="how long certificates are valid")
    more = make.add_mutually_exclusive_group()
    more.add_argument("--renew", action="store_true", help="issue the certificates anew")
    more.add_argument("--client", metavar="NAME", help="issue one more client's, into DIR/NAME")
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
    serve.add_argument("--max-batch", type=int, default=1, help="most inputs a query")
    serve.add_argument("--max-labels", type=int, default=MAX_LABELS, help="most labels a query")
    serve.add_argument("--timeout", type=float, default=60.0, help="longest silence, seconds")
    options = parser.parse_args(arguments)
    try:
        if options.command == "identities":
            _identities(options)
        elif options.command == "files":
            query = Query(options.reveal, options.k, options.labels, options.batch)
            program = read_program(options.program)
            for parcel in write_files(program, query, options.count, options.out):
                print(parcel)  # noqa: T201
        else:
            _serve(options)
    except ParameterError as error:
        _say(str(error))
        return 2
    except SecureError as error:
        _say(str(error))
        return 3
    except KeyboardInterrupt:
        return 0
    return 0


if __name__ == "__main__":
    sys.exit(main())
