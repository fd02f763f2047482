"""The places of a server that serves a bounded number of clients at a time."""

import contextlib
import select
import socket
import ssl
import time
from collections.abc import Callable, Iterable

from secure.errors import ParameterError

# Seconds after an `accept` that failed, as where no file descriptor is left.
_PAUSE_S = 0.2


class Place:
    """One of the connections that are open at a time, and how long it has been waited for.

    Args:
        raw: The connection, before TLS.
        address: Where from.
    """

    def __init__(self, raw: socket.socket, address: str) -> None:
        self.raw, self.address = raw, address
        self._socket: socket.socket = raw
        self._since: float | None = time.monotonic()

    def over_tls(self, context: ssl.SSLContext) -> ssl.SSLSocket:
        """Return the TLS side, before its handshake."""
        wrapped = context.wrap_socket(self.raw, server_side=True, do_handshake_on_connect=False)
        self._socket = wrapped
        return wrapped

    def waits(self, waiting: bool) -> None:
        """Say whether the server waits for this client, from now on."""
        self._since = time.monotonic() if waiting else None

    def idle(self) -> float:
        """Return the seconds that the server has waited for."""
        since = self._since
        return 0.0 if since is None else time.monotonic() - since

    def end(self) -> None:
        """Cut the connection off; its thread notices."""
        with contextlib.suppress(OSError):
            # Not TLS's own: that is in the hands of the other thread.
            socket.socket.shutdown(self._socket, socket.SHUT_RDWR)


def listen(host: str, port: int) -> socket.socket:
    """Listen.

    Raises:
        ParameterError: The port is taken, or host and port are none of this machine's.
    """
    try:
        return socket.create_server((host, port))
    except (OSError, OverflowError) as error:
        reason = getattr(error, "strerror", None) or error
        raise ParameterError(f"can't listen on {host}:{port}: {reason}") from None


def accept(listener: socket.socket, timeout: float, log: Callable[[str], None]) -> Place | None:
    """Take the next connection; None where none came in time, or it could not be taken."""
    listener.settimeout(timeout)
    try:
        raw, address = listener.accept()
    except TimeoutError:
        return None
    except OSError as error:
        # One that went away again, or no file descriptor left: neither ends the others.
        log(f"a connection could not be taken: {error.strerror or error}")
        time.sleep(_PAUSE_S)
        return None
    return Place(raw, address[0])


def make_room(listener: socket.socket, places: Iterable[Place], patience: float) -> None:
    """End the connection that has been waited for longest, if somebody wants its place."""
    waiting = select.poll()
    waiting.register(listener, select.POLLIN)
    if not waiting.poll(0):
        return
    longest = max(places, key=Place.idle)
    if longest.idle() > patience:
        longest.end()
