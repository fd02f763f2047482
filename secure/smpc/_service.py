"""One listener and many peers, none of which can end the service or keep it from the others.

Three bounds, each counted by certificate where there is one:

- *handshakes*: a peer that has shown no certificate holds one of a few places; when they are all
  taken, the oldest is dropped for the newest, so peers that say nothing don't keep out others;
- *connections*: peers with a certificate, at work or waiting, in all and for each certificate;
- *turns*: sessions at work at once, of which one certificate has at most half.

So threads, memory and descriptors are bounded by the limits, whoever connects.
"""

import contextlib
import socket
import threading
import time
from collections import Counter, deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass

from secure.errors import ParameterError, PeerError, PolicyError, SecureError
from secure.smpc import tls
from secure.smpc._channel import SocketChannel
from secure.smpc._query import MAX_BATCH, MAX_LABELS, Query

Log = Callable[[str], None]
Handler = Callable[[SocketChannel, tls.Peer], str]
_ACCEPT_PAUSE_S = 0.1


@dataclass(frozen=True)
class Limits:
    """What a service gives at once, and what of it to one client.

    A client is a certificate here: parties that share one share its limits.

    Attributes:
        batch: Most inputs a query, 1 to 64. Memory grows with it on every side.
        labels: Most labels a query, 0 to 256. Memory grows with its square.
        at_once: Sessions at work at once; one client has at most half of them, and at least one.
        connections: Connections with a certificate, at work or waiting for their turn.
        per_client: The same of one client.
        handshakes: Connections that have shown no certificate yet.
        handshake_s: Longest handshake, in seconds.
        session_s: Longest session, in seconds, however busy the link is.

    Raises:
        ParameterError: A value is out of range.
    """

    batch: int = 1
    labels: int = MAX_LABELS
    at_once: int = 4
    connections: int = 64
    per_client: int = 16
    handshakes: int = 32
    handshake_s: float = 10.0
    session_s: float = 600.0

    def __post_init__(self) -> None:
        ranges = {"batch": (1, MAX_BATCH), "labels": (0, MAX_LABELS)}
        for name in ("at_once", "connections", "per_client", "handshakes"):
            ranges[name] = (1, 512)
        for name, (least, most) in ranges.items():
            value = getattr(self, name)
            if type(value) is not int or not least <= value <= most:
                raise ParameterError(f"{name} is an integer in [{least}, {most}], got {value!r}")
        for name in ("handshake_s", "session_s"):
            value = getattr(self, name)
            if not 0 < value <= 1e6:
                raise ParameterError(f"{name} is in (0, 1e6] seconds, got {value!r}")

    def check(self, query: Query) -> None:
        """Refuse a query that is larger than this side gives.

        Raises:
            PolicyError: More inputs or labels than the limits allow.
        """
        if query.batch > self.batch:
            raise PolicyError(
                f"a query has at most {self.batch} inputs here, this one has {query.batch}; ask "
                "in parts, or ask for a higher --max-batch"
            )
        if query.labels > self.labels:
            raise PolicyError(
                f"a query has at most {self.labels} labels here, this one has {query.labels}; "
                "ask for a higher --max-labels"
            )


class Turns:
    """Lets so many sessions work at once; the others wait.

    Args:
        limits: The bounds.
    """

    def __init__(self, limits: Limits) -> None:
        self._limits = limits
        self._most_each = max(1, limits.at_once // 2)
        self._here: Counter[bytes] = Counter()
        self._working: Counter[bytes] = Counter()
        self._changed = threading.Condition()

    @contextlib.contextmanager
    def turn(self, who: bytes, wait_s: float) -> Iterator[None]:
        """Wait for a turn, and hold it.

        Raises:
            PolicyError: This client, or all together, have too many connections.
            PeerError: No turn came in `wait_s`.
        """
        with self._changed:
            if self._here[who] >= self._limits.per_client:
                raise PolicyError("too many connections with this certificate; try again later")
            if self._here.total() >= self._limits.connections:
                raise PolicyError("too many connections; try again later")
            self._here[who] += 1
        try:
            self._begin(who, wait_s)
            try:
                yield
            finally:
                self._end(self._working, who)
        finally:
            self._end(self._here, who)

    def _begin(self, who: bytes, wait_s: float) -> None:
        def free() -> bool:
            mine, all_ = self._working[who], self._working.total()
            return mine < self._most_each and all_ < self._limits.at_once

        with self._changed:
            if not self._changed.wait_for(free, wait_s):
                raise PeerError("busy with others for too long; try again later")
            self._working[who] += 1

    def _end(self, counts: "Counter[bytes]", who: bytes) -> None:
        with self._changed:
            counts[who] -= 1
            if not counts[who]:
                del counts[who]
            self._changed.notify_all()


class Service:
    """Answers peers of some roles, each connection in a thread of its own.

    Args:
        identity: This side's.
        roles: Roles that may connect.
        handle: Answers a peer, and returns a line for the log.
        limits: The bounds.
        timeout_s: Longest silence of a peer, and longest wait for a turn.
        log: Called with a line for every session and every refusal; no secret is in it.
    """

    def __init__(
        self,
        identity: tls.Identity,
        roles: tuple[str, ...],
        handle: Handler,
        limits: Limits,
        timeout_s: float = 60.0,
        log: Log = lambda text: None,
    ) -> None:
        self._identity, self._roles, self._handle = identity, roles, handle
        self._limits, self._timeout_s, self._log = limits, timeout_s, log
        self._turns = Turns(limits)
        self._places = threading.Semaphore(limits.handshakes)
        self._pending: deque[threading.Event] = deque()
        self._lock = threading.Lock()
        self._left: int | None = None

    def serve(
        self, listener: socket.socket, stop: threading.Event, sessions: int | None = None
    ) -> None:
        """Answer peers until `stop` is set, or so many with a certificate have come.

        Raises:
            ParameterError: This side's own certificate can't be used.
        """
        self._identity.require_valid()
        self._left = sessions
        threads: list[threading.Thread] = []
        with listener:
            while not stop.is_set() and (self._left is None or self._left > 0):
                sock = self._accept(listener)
                if sock is None:
                    continue
                place = self._place(stop)
                thread = threading.Thread(target=self._one, args=(sock, place), daemon=True)
                try:
                    thread.start()
                except RuntimeError:  # the machine has no thread left
                    self._leave(place)
                    sock.close()
                    self._log("refused: no thread is left")
                    continue
                threads = [each for each in threads if each.is_alive()] + [thread]
        end = time.monotonic() + self._timeout_s
        for thread in threads:
            thread.join(max(0.0, end - time.monotonic()))

    def _accept(self, listener: socket.socket) -> socket.socket | None:
        try:
            return listener.accept()[0]
        except TimeoutError:
            return None
        except OSError as error:
            # No descriptor or buffer is left, or the peer went away meanwhile: others end, too.
            if listener.fileno() < 0:
                raise
            self._log(f"refused: {error.strerror or type(error).__name__}")
            self._drop_oldest()
            time.sleep(_ACCEPT_PAUSE_S)
            return None

    def _place(self, stop: threading.Event) -> threading.Event:
        """Take a place for a handshake; where none is free, the oldest ends."""
        while not self._places.acquire(timeout=0):
            self._drop_oldest()
            if self._places.acquire(timeout=_ACCEPT_PAUSE_S) or stop.is_set():
                break
        place = threading.Event()
        with self._lock:
            self._pending.append(place)
        return place

    def _drop_oldest(self) -> None:
        with self._lock:
            for place in self._pending:
                if not place.is_set():
                    place.set()
                    return

    def _leave(self, place: threading.Event) -> None:
        with self._lock:
            self._pending.remove(place)
        self._places.release()

    def _count(self) -> bool:
        """Count a session; False where there have been enough."""
        with self._lock:
            if self._left is not None:
                if self._left <= 0:
                    return False
                self._left -= 1
            return True

    def _one(self, sock: socket.socket, place: threading.Event) -> None:
        try:
            channel, peer = tls.accept(
                sock,
                self._identity,
                self._roles,
                self._timeout_s,
                min(self._timeout_s, self._limits.handshake_s),
                self._limits.session_s,
                place,
            )
        except SecureError as error:
            self._log(f"refused: {error}")
            return
        except Exception as error:
            self._log(f"refused: {type(error).__name__}")
            return
        finally:
            self._leave(place)
        try:
            if not self._count():
                raise PolicyError("this service has ended")
            with self._turns.turn(peer.name, self._timeout_s):
                self._log(self._handle(channel, peer))
        except SecureError as error:
            channel.report(str(error))
            self._log(f"stopped: {error}")
        except Exception as error:
            # The peer and the log get the kind alone: a message could quote a value.
            channel.report("internal error")
            self._log(f"stopped: {type(error).__name__}")
        finally:
            channel.close()
