"""Mutual TLS between the roles: TLS 1.3, one private authority, certificates that name a role.

A certificate's DNS name is the role it was issued for: `server`, `client` or `dealer`. A party
accepts a peer only with a certificate of its own authority for the role that is due; nothing else
identifies anyone, so the authority's key is what to guard (keep it off these machines).
"""

import contextlib
import datetime
import os
import socket
import ssl
from dataclasses import dataclass
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ed25519
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from secure.errors import IntegrityError, ParameterError, PeerError
from secure.smpc._channel import SocketChannel

ROLES = ("server", "client", "dealer")
_CLOCK_SLACK = datetime.timedelta(minutes=5)


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
        for name in ("authority.pem", f"{self.role}.pem", f"{self.role}.key"):
            if not (self.folder / name).is_file():
                raise ParameterError(
                    f"the identity folder has no {name}; make it with the dealer's "
                    "`identities` command"
                )

    def context(self, listening: bool) -> ssl.SSLContext:
        """Build the TLS context: 1.3 only, both sides show a certificate."""
        side = ssl.PROTOCOL_TLS_SERVER if listening else ssl.PROTOCOL_TLS_CLIENT
        context = ssl.SSLContext(side)
        context.minimum_version = ssl.TLSVersion.TLSv1_3
        context.verify_mode = ssl.CERT_REQUIRED
        context.load_verify_locations(self.folder / "authority.pem")
        context.load_cert_chain(self.folder / f"{self.role}.pem", self.folder / f"{self.role}.key")
        return context


def make_identities(folder: Path, days: int = 30) -> None:
    """Make an authority and one certificate a role, for a test bed or a tutorial.

    Each party needs `authority.pem` and its own pair of files, and no other's key. The
    authority's own key is used here and never written.

    Args:
        folder: Where to write; made if missing. Existing files are not overwritten.
        days: Validity, 1 to 825.

    Raises:
        ParameterError: `days` is out of range, or the folder has certificates already.
    """
    if not 1 <= days <= 825:
        raise ParameterError(f"a certificate is valid for 1 to 825 days, got {days}")
    folder.mkdir(parents=True, exist_ok=True)
    if (folder / "authority.pem").exists():
        raise ParameterError("the folder has an authority already; choose another")
    until = datetime.timedelta(days=days)
    authority_key = ed25519.Ed25519PrivateKey.generate()
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "private inference authority")])
    authority = (
        _builder(name, name, authority_key.public_key(), until)
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .add_extension(_usage(signs=True), critical=True)
        .sign(authority_key, None)
    )
    _write(folder / "authority.pem", authority.public_bytes(serialization.Encoding.PEM), 0o644)
    for role in ROLES:
        key = ed25519.Ed25519PrivateKey.generate()
        subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, role)])
        usages = [ExtendedKeyUsageOID.SERVER_AUTH, ExtendedKeyUsageOID.CLIENT_AUTH]
        certificate = (
            _builder(subject, name, key.public_key(), until)
            .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
            .add_extension(x509.SubjectAlternativeName([x509.DNSName(role)]), critical=False)
            .add_extension(x509.ExtendedKeyUsage(usages), critical=False)
            .add_extension(_usage(signs=False), critical=True)
            .sign(authority_key, None)
        )
        private = key.private_bytes(
            serialization.Encoding.PEM,
            serialization.PrivateFormat.PKCS8,
            serialization.NoEncryption(),
        )
        _write(folder / f"{role}.pem", certificate.public_bytes(serialization.Encoding.PEM), 0o644)
        _write(folder / f"{role}.key", private, 0o600)


def _usage(signs: bool) -> x509.KeyUsage:
    return x509.KeyUsage(
        digital_signature=not signs,
        key_cert_sign=signs,
        crl_sign=signs,
        content_commitment=False,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=False,
        encipher_only=False,
        decipher_only=False,
    )


def _builder(subject, issuer, public_key, until: datetime.timedelta) -> x509.CertificateBuilder:
    now = datetime.datetime.now(datetime.UTC)
    return (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issuer)
        .public_key(public_key)
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - _CLOCK_SLACK)
        .not_valid_after(now + until)
    )


def _write(path: Path, data: bytes, mode: int) -> None:
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, mode)
    with os.fdopen(descriptor, "wb") as file:
        file.write(data)


def _names(sock: ssl.SSLSocket) -> set[str]:
    certificate = sock.getpeercert() or {}
    found = certificate.get("subjectAltName", ())
    return {str(each[1]) for each in found if isinstance(each, tuple) and each[0] == "DNS"}


def listen(host: str, port: int) -> socket.socket:
    """Open a listening socket (port 0 takes a free one)."""
    listener = socket.create_server((host, port), backlog=8)
    listener.settimeout(0.5)
    return listener


def accept(
    sock: socket.socket, identity: Identity, roles: tuple[str, ...], timeout_s: float
) -> tuple[SocketChannel, str]:
    """Shake hands with a connected peer and check its role.

    Args:
        sock: From the listener.
        identity: This side's.
        roles: Roles that may connect.
        timeout_s: For the handshake, and then for every silence.

    Returns:
        The link and the peer's role.

    Raises:
        IntegrityError: The peer has no certificate of this authority for one of the roles.
        PeerError: The handshake broke or took too long.
    """
    try:
        sock.settimeout(timeout_s)
        wrapped = identity.context(listening=True).wrap_socket(sock, server_side=True)
    except ssl.SSLError as error:
        sock.close()
        raise IntegrityError(
            "a peer without a valid certificate of this authority was refused"
        ) from error
    except OSError as error:
        sock.close()
        raise PeerError(f"a peer's handshake broke: {type(error).__name__}") from error
    role = next((each for each in roles if each in _names(wrapped)), None)
    if role is None:
        wrapped.close()
        raise IntegrityError(f"a peer's certificate is not for {' or '.join(roles)}: refused")
    return SocketChannel(wrapped, timeout_s), role


def connect(host: str, port: int, identity: Identity, role: str, timeout_s: float) -> SocketChannel:
    """Connect to a role's listener.

    Raises:
        IntegrityError: The listener's certificate isn't one of this authority for the role.
        PeerError: Nobody listens, or the handshake broke or took too long.
    """
    raw = None
    try:
        raw = socket.create_connection((host, port), timeout=timeout_s)
        wrapped = identity.context(listening=False).wrap_socket(raw, server_hostname=role)
    except ssl.SSLCertVerificationError as error:
        _close(raw)
        raise IntegrityError(
            f"the {role}'s certificate is not of this authority: refused"
        ) from error
    except (ssl.SSLError, OSError) as error:
        _close(raw)
        raise PeerError(f"no link to the {role}: {type(error).__name__}") from error
    return SocketChannel(wrapped, timeout_s)


def _close(sock: socket.socket | None) -> None:
    if sock is not None:
        with contextlib.suppress(OSError):
            sock.close()
