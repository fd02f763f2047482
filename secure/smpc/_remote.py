"""A party's material from the dealer's process, over mutual TLS."""

import contextlib

from secure.errors import ParameterError
from secure.random import KEY_BYTES
from secure.smpc import _wire, tls
from secure.smpc._channel import Channel
from secure.smpc._material import CLIENT, SERVER, Material
from secure.smpc._open_parcels import ID_BYTES
from secure.smpc._query import Query, requirements
from secure.smpc.errors import MaterialError, SetupChangedError, WireError
from secure.smpc.parcels import SETUP_BYTES, Setup
from secure.smpc.program import Program

MAX_REQUEST_BYTES = 1 << 12


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
        if identity.role not in ("server", "client"):
            raise ParameterError("only the server and the client take material")
        self._host, self._port = host, port
        self._identity, self._timeout_s = identity, timeout_s
        self._held: dict[bytes, tuple[Query, bytes, bytes]] = {}

    def _ask(self, request: dict) -> Channel:
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
        """Take the client's half of a new parcel, and return its identifier (client only)."""
        request = {"ask": "open", "program": program.digest, "query": query.to_wire()}
        channel = self._ask(request)
        try:
            got = bytes(channel.receive(2 * ID_BYTES + KEY_BYTES, _wire.BLOB))
        finally:
            channel.close()
        setup, parcel = got[:ID_BYTES], got[ID_BYTES : 2 * ID_BYTES]
        self._held[parcel] = (query, setup, got[2 * ID_BYTES :])
        return parcel

    def claim(self, program: Program, query: Query, setup: bytes, parcel: bytes) -> Material:
        """Take this party's half of a parcel, once; derived shares stream in as they are used.

        Raises:
            SetupChangedError: The dealer has another set-up by now: ask for it (server only).
            MaterialError: The parcel was used before, or the owner uses another dealer's set-up.
        """
        items = requirements(program, query).items
        if self._identity.role == "client":
            asked, dealt, master = self._held.pop(parcel, (None, b"", b""))
            if asked != query:
                raise MaterialError(f"the parcel {parcel.hex()[:8]} was used before")
            if dealt != setup:
                raise MaterialError(
                    "the owner uses another set-up than the dealer; are both with one dealer?"
                )
            return Material(CLIENT, master, items)
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
            reply = _wire.unpack_json(channel.receive(MAX_REQUEST_BYTES, _wire.JSON))
            if reply.get("setup") != setup.hex():
                raise SetupChangedError("the dealer has another set-up by now, as after a restart")
            master = bytes(channel.receive(KEY_BYTES, _wire.BLOB))
        except BaseException:
            channel.close()
            raise
        return Material(
            SERVER, master, items, lambda count: channel.receive(count, _wire.BLOB), channel.close
        )

    def discard(self, parcel: bytes) -> None:
        """Forget a parcel whose session has failed; the dealer's half expires."""
        self._held.pop(parcel, None)
