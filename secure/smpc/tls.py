"""Mutual TLS between the roles: TLS 1.3, one private authority, certificates that name a role.

A certificate's DNS name is the role it was issued for: `server`, `client` or `dealer`. A party
accepts a peer only with a certificate of its own authority for the role that is due; nothing else
identifies anyone, so the authority's key is what to guard (keep it off these machines).
"""

import contextlib
import datetime
import hashlib
import socket
import ssl
import threading
import time
from dataclasses import dataclass
from pathlib import Path

from secure.errors import IntegrityError, ParameterError, PeerError
from secure.smpc._channel import SocketChannel, wait_for
from secure.smpc.identities import AUTHORITY_FILE, ROLES, expiry

_EXPIRED, _NOT_YET = 10, 9  # X.509 verification codes
_BACKLOG = 64
_GLANCE_S = 0.1


@dataclass(frozen=True)
class Identity:
    """A role's certificate, key and authority, as files of one folder.

    Attributes:
        folder: Holds `authority.pem`, `<role>.pem` and `<role>.key`.
        role: `server`, `client` or `dealer`.
    """

    folder: Path
    role: str

    def __post_init__(self) -> None:
        if self.role not in ROLES:
            raise ParameterError(f"a role is one of {', '.join(ROLES)}, got {self.role!r}")
        for name in (AUTHORITY_FILE, f"{self.role}.pem", f"{self.role}.key"):
            if not (self.folder / name).is_file():
                raise ParameterError(
                    f"the identity folder has no {name}; make it with the dealer's "
                    "`identities` command"
                )

    def require_valid(self) -> None:
        """Check that this side's own files can be used today.

        Raises:
            ParameterError: A file is damaged, the key is another certificate's, or a certificate
                has expired; the message names it.
        """
        for name in (AUTHORITY_FILE, f"{self.role}.pem"):
            until = expiry(self.folder / name)
            if until < datetime.datetime.now(datetime.UTC):
                raise ParameterError(
                    f"{self.folder / name} expired on {until:%Y-%m-%d}; whoever issued it renews "
                    "it with: fedvlm infer dealer identities DIR --renew"
                )
        self.context(listening=True)

    def context(self, listening: bool) -> ssl.SSLContext:
        """Build the TLS context: 1.3 only, both sides show a certificate.

        Raises:
            ParameterError: A file is damaged, or the key isn't the certificate's.
        """
        side = ssl.PROTOCOL_TLS_SERVER if listening else ssl.PROTOCOL_TLS_CLIENT
        context = ssl.SSLContext(side)
        context.minimum_version = ssl.TLSVersion.TLSv1_3
        context.verify_mode = ssl.CERT_REQUIRED
        try:
            context.load_verify_locations(self.folder / AUTHORITY_FILE)
            context.load_cert_chain(
                self.folder / f"{self.role}.pem",
                self.folder / f"{self.role}.key",
                password="",  # an encrypted key is an error, not a question on the terminal
            )
        except (ssl.SSLError, OSError, ValueError) as error:
            raise ParameterError(
                f"{self.folder}: {AUTHORITY_FILE}, {self.role}.pem and {self.role}.key can't be "
                f"used ({getattr(error, 'reason', None) or type(error).__name__}); have them "
                "issued again"
            ) from error
        return context


@dataclass(frozen=True)
class Peer:
    """Who is at the other end.

    Attributes:
        role: The role that its certificate names.
        name: SHA-256 of its certificate: parties that share one are one party.
    """

    role: str
    name: bytes


def _names(sock: ssl.SSLSocket) -> set[str]:
    certificate = sock.getpeercert() or {}
    found = certificate.get("subjectAltName", ())
    return {str(each[1]) for each in found if isinstance(each, tuple) and each[0] == "DNS"}


def listen(host: str, port: int) -> socket.socket:
    """Open a listening socket (port 0 takes a free one).

    Raises:
        ParameterError: The address is no address of this machine, or in use.
    """
    try:
        listener = socket.create_server((host, port), backlog=_BACKLOG)
    except (OSError, OverflowError, UnicodeError) as error:
        reason = getattr(error, "strerror", None) or str(error)
        raise ParameterError(f"can't listen on {host}:{port}: {reason}") from error
    listener.settimeout(0.5)
    return listener


def accept(
    sock: socket.socket,
    identity: Identity,
    roles: tuple[str, ...],
    timeout_s: float,
    handshake_s: float | None = None,
    longest_s: float | None = None,
    dropped: threading.Event | None = None,
) -> tuple[SocketChannel, Peer]:
    """Shake hands with a connected peer and check its role.

    Args:
        sock: From the listener; closed where this raises.
        identity: This side's.
        roles: Roles that may connect.
        timeout_s: Longest silence of the peer afterwards.
        handshake_s: For the whole handshake, however slowly bytes come; `timeout_s` without it.
        longest_s: The link ends after so long.
        dropped: Set to give up a handshake.

    Returns:
        The link and the peer.

    Raises:
        ParameterError: This side's own files can't be used.
        IntegrityError: The peer has no certificate of this authority for one of the roles, or one
            that has expired.
        PeerError: The handshake broke or took too long.
    """
    end = time.monotonic() + (timeout_s if handshake_s is None else handshake_s)
    wrapped: socket.socket = sock
    try:
        context = identity.context(listening=True)
        sock.setblocking(False)
        wrapped = context.wrap_socket(sock, server_side=True, do_handshake_on_connect=False)
        _shake_hands(wrapped, end, dropped)
        names = _names(wrapped)
        certificate = wrapped.getpeercert(binary_form=True) or b""
    except ssl.SSLError as error:
        wrapped.close()
        raise IntegrityError(f"a peer was refused: {_refusal(error)}") from error
    except OSError as error:
        wrapped.close()
        raise PeerError(f"a peer's handshake broke: {type(error).__name__}") from error
    except BaseException:
        wrapped.close()
        raise
    role = next((each for each in roles if each in names), None)
    if role is None:
        wrapped.close()
        raise IntegrityError(f"a peer's certificate is not for {' or '.join(roles)}: refused")
    peer = Peer(role, hashlib.sha256(certificate).digest())
    return SocketChannel(wrapped, timeout_s, role, longest_s), peer


def _shake_hands(sock: ssl.SSLSocket, end: float, dropped: threading.Event | None) -> None:
    while dropped is None or not dropped.is_set():
        try:
            sock.do_handshake()
            return
        except ssl.SSLWantReadError:
            writing = False
        except ssl.SSLWantWriteError:
            writing = True
        left = end - time.monotonic()
        if left <= 0:
            raise TimeoutError("the handshake took too long")
        wait_for(sock, writing, min(left, _GLANCE_S))
    raise ConnectionAbortedError("others came meanwhile")


def _refusal(error: ssl.SSLError) -> str:
    """Say what was wrong with a certificate."""
    if isinstance(error, ssl.SSLCertVerificationError):
        if error.verify_code == _EXPIRED:
            return "its certificate has expired; have it renewed"
        if error.verify_code == _NOT_YET:
            return "its certificate isn't valid yet; compare the two machines' clocks"
        return "its certificate is not of this authority, or for another role"
    return "it showed no certificate of this authority"


def connect(
    host: str,
    port: int,
    identity: Identity,
    role: str,
    timeout_s: float,
    longest_s: float | None = None,
) -> SocketChannel:
    """Connect to a role's listener.

    Args:
        host: The listener's host.
        port: Its port.
        identity: This side's.
        role: The role that the listener must have.
        timeout_s: For the connection, and then for every silence.
        longest_s: The link ends after so long.

    Raises:
        ParameterError: This side's own files can't be used, or its certificate has expired.
        IntegrityError: The listener's certificate isn't one of this authority for the role.
        PeerError: Nobody listens, or the handshake broke or took too long.
    """
    identity.require_valid()
    context = identity.context(listening=False)
    raw = None
    try:
        raw = socket.create_connection((host, port), timeout=timeout_s)
        wrapped = context.wrap_socket(raw, server_hostname=role)
    except ssl.SSLCertVerificationError as error:
        _close(raw)
        raise IntegrityError(f"the {role} was refused: {_refusal(error)}") from error
    except (OSError, UnicodeError) as error:
        _close(raw)
        raise PeerError(f"no link to the {role}: {type(error).__name__}") from error
    return SocketChannel(wrapped, timeout_s, role, longest_s)


def _close(sock: socket.socket | None) -> None:
    if sock is not None:
        with contextlib.suppress(OSError):
            sock.close()
