"""Frames over TLS: typed, bounded before they are read, and on a deadline."""

import socket
import ssl
import struct
import time
from enum import IntEnum
from pathlib import Path

from secure.errors import ParameterError, PeerError
from secure.he.errors import WireError

_HEAD = struct.Struct("<BQ")
_CHUNK = 1 << 16
_MAX_TEXT = 2000


class Frame(IntEnum):
    """What a frame carries."""

    HELLO = 1
    KEYS = 2
    QUERY = 3
    RESULT = 4
    ERROR = 5


def send(connection: socket.socket, frame: Frame, payload: bytes, timeout: float) -> None:
    """Send one frame.

    Raises:
        PeerError: The other side is gone, or takes longer than `timeout` seconds.
    """
    deadline = time.monotonic() + timeout
    view = memoryview(_HEAD.pack(frame, len(payload)) + payload)
    try:
        for start in range(0, len(view), _CHUNK):
            connection.settimeout(_left(deadline))
            connection.sendall(view[start : start + _CHUNK])
    except OSError as error:
        raise PeerError(f"sending failed: {error}") from error


def _left(deadline: float) -> float:
    rest = deadline - time.monotonic()
    if rest <= 0:
        raise PeerError("the other side is too slow")
    return rest


def receive(
    connection: socket.socket, wanted: dict[Frame, int], timeout: float
) -> tuple[Frame, bytes]:
    """Receive one frame.

    Args:
        connection: The socket.
        wanted: Kinds that may come, each with its largest length in bytes.
        timeout: Seconds for the whole frame.

    Raises:
        PeerError: The other side is gone, too slow, or reports an error.
        WireError: Another kind of frame, or a longer one.
    """
    deadline = time.monotonic() + timeout
    kind, length = _HEAD.unpack(_exactly(connection, _HEAD.size, deadline))
    limit = {**wanted, Frame.ERROR: _MAX_TEXT}.get(kind)
    if limit is None:
        raise WireError(f"a frame of kind {kind} came where none was due")
    if length > limit:
        raise WireError(f"a frame of {length} bytes came where at most {limit} are allowed")
    payload = _exactly(connection, length, deadline)
    if kind == Frame.ERROR:
        raise PeerError(f"the other side refused: {printable(payload)}")
    return Frame(kind), payload


def printable(text: bytes) -> str:
    """Return a peer's text without anything that a terminal would act on."""
    return "".join(c if c.isprintable() else "?" for c in text.decode("utf-8", "replace"))


def _exactly(connection: socket.socket, count: int, deadline: float) -> bytes:
    parts, left = [], count
    while left:
        connection.settimeout(_left(deadline))
        try:
            part = connection.recv(min(left, _CHUNK))
        except OSError as error:
            raise PeerError(f"receiving failed: {error}") from error
        if not part:
            raise PeerError("the other side closed the connection")
        parts.append(part)
        left -= len(part)
    return b"".join(parts)


def server_context(certificate: Path, private_key: Path, client_ca: Path | None) -> ssl.SSLContext:
    """Return a TLS 1.3 context for a server; with `client_ca`, clients must show a certificate.

    Raises:
        ParameterError: A file is not what it should be.
    """
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    _load(context, client_ca, certificate, private_key)
    if client_ca is not None:
        context.verify_mode = ssl.CERT_REQUIRED
    return context


def client_context(ca: Path, certificate: Path | None, private_key: Path | None) -> ssl.SSLContext:
    """Return a TLS 1.3 context for a client that trusts `ca` and nothing else.

    Raises:
        ParameterError: A file is not what it should be.
    """
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    _load(context, ca, certificate, private_key)
    return context


def _load(
    context: ssl.SSLContext, ca: Path | None, certificate: Path | None, private_key: Path | None
) -> None:
    context.minimum_version = ssl.TLSVersion.TLSv1_3
    try:
        if ca is not None:
            context.load_verify_locations(ca)
        if certificate is not None:
            context.load_cert_chain(certificate, private_key)
    except OSError as error:
        raise ParameterError(f"no usable PEM certificate or key: {error}") from error
