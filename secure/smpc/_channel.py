"""Links between two parties: in one process, over a TLS socket, or counted without a peer.

A round is one `exchange` (both send, both receive) or one `send` met by a `receive`. Every link
counts rounds and bytes in the same way; a dead or silent peer is a `PeerError` within the timeout.
"""

import contextlib
import math
import queue
import select
import socket
import ssl
import time
from dataclasses import dataclass

from secure.errors import PeerError
from secure.smpc import _wire
from secure.smpc.errors import WireError

_PIECE = 1 << 18


@dataclass
class Traffic:
    """What crossed a link: rounds, and bytes with their frame headers (TLS's own not counted)."""

    rounds: int = 0
    sent_bytes: int = 0
    received_bytes: int = 0


class Channel:
    """A link to the other party.

    Attributes:
        traffic: What crossed it so far.
        peer: What messages call the other end.
    """

    def __init__(self, peer: str = "other party") -> None:
        self.traffic = Traffic()
        self.peer = peer
        self._ended = False
        self._sent = 0
        self._received = 0

    def _transfer(self, out: bytes, expect: tuple[int, int] | None) -> bytearray:
        """Send `out` (may be empty) while receiving one frame of (kind, most bytes)."""
        raise TypeError(f"{type(self).__name__} is abstract")

    def close(self) -> None:
        """End the link; the other side's next receive fails."""

    def exchange(self, body: bytes, length: int) -> bytearray:
        """Send a round's body and receive the peer's, of just `length` bytes."""
        self.traffic.rounds += 1
        return self._run(_wire.ROUND, body, (_wire.ROUND, length), exact=True)

    def send(self, body: bytes, kind: int = _wire.ROUND) -> None:
        """Send one frame; the peer calls `receive`."""
        self.traffic.rounds += kind == _wire.ROUND
        self._run(kind, body, None)

    def receive(self, length: int, kind: int = _wire.ROUND) -> bytearray:
        """Receive one frame: just `length` bytes for a round or blob, at most that for JSON."""
        self.traffic.rounds += kind == _wire.ROUND
        return self._run(kind, None, (kind, length), exact=kind != _wire.JSON)

    def report(self, message: str) -> None:
        """Tell the peer why this side stops; carries no secret.

        A peer that went away, fell silent or has itself said why it stops is told nothing.
        """
        if self._ended:
            return
        with contextlib.suppress(Exception):
            self._run(_wire.ERROR, message.encode()[: _wire.MAX_ERROR_BYTES], None)

    def _run(
        self,
        kind: int,
        body: bytes | None,
        expect: tuple[int, int] | None,
        exact: bool = False,
    ) -> bytearray:
        out = b""
        if body is not None:
            out = _wire.header(kind, self._sent, len(body)) + body
            self._sent = (self._sent + 1) & 0xFFFFFFFF
            self.traffic.sent_bytes += len(out)
        try:
            got = self._transfer(out, expect)
        except PeerError:
            self._ended = True
            raise
        if expect is None:
            return got
        if exact and len(got) != expect[1]:
            raise WireError("the peer sent a frame of another length than this round's")
        self.traffic.received_bytes += len(got) + _wire.HEADER_BYTES
        return got

    def _check_header(self, data: bytes, expect: tuple[int, int]) -> tuple[int, int]:
        """Return kind and length of the frame that begins, refusing what is not due."""
        kind, sequence, length = _wire.parse_header(data)
        if kind == _wire.ERROR:
            if length > _wire.MAX_ERROR_BYTES:
                raise WireError("the peer sent an error message beyond its limit")
            return kind, length
        if kind != expect[0] or sequence != self._received:
            raise WireError("the peer sent a frame out of turn")
        if length > expect[1]:
            raise WireError("the peer sent a frame longer than this round's")
        self._received = (self._received + 1) & 0xFFFFFFFF
        return kind, length

    def _reported(self, body: bytes | bytearray) -> PeerError:
        text = bytes(body).decode(errors="replace")
        printable = "".join(c if c.isprintable() else "?" for c in text)
        return PeerError(f"the {self.peer} stopped: {printable}")

    def _silent(self, timeout_s: float) -> PeerError:
        return PeerError(f"the {self.peer} was silent for {timeout_s:g} s")

    def _gone(self) -> PeerError:
        return PeerError(f"the {self.peer} went away")


class PairChannel(Channel):
    """One end of a link inside a process; make both with `PairChannel.pair`."""

    def __init__(self, inbox: queue.Queue, outbox: queue.Queue, timeout_s: float) -> None:
        super().__init__()
        self._inbox, self._outbox, self._timeout_s = inbox, outbox, timeout_s
        self._closed = False

    @classmethod
    def pair(cls, timeout_s: float = 60.0) -> tuple["PairChannel", "PairChannel"]:
        """Return the two ends of a link."""
        left: queue.Queue = queue.Queue()
        right: queue.Queue = queue.Queue()
        return cls(left, right, timeout_s), cls(right, left, timeout_s)

    def _transfer(self, out: bytes, expect: tuple[int, int] | None) -> bytearray:
        if self._closed:
            raise PeerError("this link is closed")
        if out:
            self._outbox.put(out)
        if expect is None:
            return bytearray()
        try:
            frame = self._inbox.get(timeout=self._timeout_s)
        except queue.Empty:
            raise self._silent(self._timeout_s) from None
        if frame is None:
            self._inbox.put(None)
            raise self._gone()
        if len(frame) < _wire.HEADER_BYTES:
            raise WireError("the peer sent bytes that are not a frame of this protocol")
        kind, length = self._check_header(frame[: _wire.HEADER_BYTES], expect)
        body = bytearray(frame[_wire.HEADER_BYTES :])
        if len(body) != length:
            raise WireError("the peer sent a frame whose length is not the one announced")
        if kind == _wire.ERROR:
            raise self._reported(body)
        return body

    def close(self) -> None:
        """End the link."""
        if not self._closed:
            self._closed = True
            self._outbox.put(None)


def wait_for(sock: socket.socket, writing: bool, timeout_s: float) -> None:
    """Wait until a socket can be read (or written, too), or for so long."""
    if not hasattr(select, "poll"):
        select.select([sock], [sock] if writing else [], [], timeout_s)
        return
    # `select` takes no descriptor above 1023, which a process with many links has.
    waiter = select.poll()
    waiter.register(sock, select.POLLIN | (select.POLLOUT if writing else 0))
    waiter.poll(math.ceil(1000 * timeout_s))


def _reason(error: Exception) -> str:
    """Say why a link broke; a refused certificate is told of by an alert."""
    alert = str(getattr(error, "reason", "") or "")
    if "CERTIFICATE_EXPIRED" in alert:
        return "it says that this side's certificate has expired; have it renewed"
    if "ALERT" in alert and ("CERTIFICATE" in alert or "UNKNOWN_CA" in alert):
        return "it refuses this side's certificate"
    return type(error).__name__


class SocketChannel(Channel):
    """A link over a connected TLS socket, both directions at once and without threads.

    Args:
        sock: Connected, TLS already shaken hands.
        timeout_s: Longest silence of the peer, and longest stall of a send.
        peer: What messages call the other end.
        longest_s: The link ends after so long, however busy it is; None for no end.
    """

    def __init__(
        self,
        sock: ssl.SSLSocket,
        timeout_s: float = 60.0,
        peer: str = "other party",
        longest_s: float | None = None,
    ) -> None:
        super().__init__(peer)
        self._sock = sock
        self._timeout_s = timeout_s
        self._longest_s = longest_s
        self._end = math.inf if longest_s is None else time.monotonic() + longest_s
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        sock.setblocking(False)

    def _transfer(self, out: bytes, expect: tuple[int, int] | None) -> bytearray:
        try:
            return self._pump(memoryview(out), expect)
        except (ssl.SSLError, OSError) as error:
            raise PeerError(f"the link to the {self.peer} broke: {_reason(error)}") from error

    def _pump(self, out: memoryview, expect: tuple[int, int] | None) -> bytearray:
        sent, kind = 0, None
        into = bytearray(_wire.HEADER_BYTES if expect else 0)
        got = 0
        last = time.monotonic()
        while sent < len(out) or got < len(into):
            if time.monotonic() > self._end:
                raise PeerError(f"the {self.peer} took over {self._longest_s:g} s for one session")
            moved = False
            if got < len(into):
                count = self._receive_some(memoryview(into)[got:])
                got, moved = got + count, count > 0
                if got == len(into) and kind is None and expect is not None:
                    kind, length = self._check_header(bytes(into), expect)
                    into, got = bytearray(length), 0
                if got == len(into) and kind == _wire.ERROR:
                    raise self._reported(into)
            if sent < len(out):
                count = self._send_some(out[sent : sent + _PIECE])
                sent, moved = sent + count, moved or count > 0
            if moved:
                last = time.monotonic()
                continue
            if time.monotonic() - last > self._timeout_s:
                raise self._silent(self._timeout_s)
            wait_for(self._sock, sent < len(out), min(1.0, self._timeout_s))
        return into

    def _receive_some(self, into: memoryview) -> int:
        try:
            count = self._sock.recv_into(into)
        except (ssl.SSLWantReadError, ssl.SSLWantWriteError, BlockingIOError):
            return 0
        if count == 0:
            raise self._gone()
        return count

    def _send_some(self, piece: memoryview) -> int:
        try:
            return self._sock.send(piece)
        except (ssl.SSLWantReadError, ssl.SSLWantWriteError, BlockingIOError):
            return 0

    def close(self) -> None:
        """End the link."""
        with contextlib.suppress(OSError):
            self._sock.close()


class CountingChannel(Channel):
    """No peer: counts what a run would send and receive, and hands back nothing."""

    def _transfer(self, out: bytes, expect: tuple[int, int] | None) -> bytearray:
        raise TypeError("a counting link carries no data")

    def count(self, sent: int | None, received: int | None) -> None:
        """Count one round of body lengths, None for no frame."""
        self.traffic.rounds += 1
        if sent is not None:
            self.traffic.sent_bytes += sent + _wire.HEADER_BYTES
        if received is not None:
            self.traffic.received_bytes += received + _wire.HEADER_BYTES
