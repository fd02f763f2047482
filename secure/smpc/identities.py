"""Certificates: an authority of one's own, a certificate a role, more clients, and renewal.

A certificate's DNS name is the role it was issued for. The authority's key stays in the folder that
`make_identities` wrote; whoever holds it can pass for any party, so that folder is the issuer's
alone, and each party gets `authority.pem` and its own two files.
"""

import datetime
import os
from pathlib import Path
from typing import Any

from cryptography import x509
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ed25519
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from secure.errors import ParameterError

ROLES = ("server", "client", "dealer")
AUTHORITY_FILE, AUTHORITY_KEY_FILE = "authority.pem", "authority.key"
MAX_DAYS = 825
_AUTHORITY_DAYS = 3650
_CLOCK_SLACK = datetime.timedelta(minutes=5)
_AUTHORITY_NAME = x509.Name(
    [x509.NameAttribute(NameOID.COMMON_NAME, "private inference authority")]
)
_UNREADABLE = (OSError, ValueError, TypeError)


def make_identities(folder: Path, days: int = 30) -> None:
    """Make an authority and one certificate a role.

    Each party needs `authority.pem` and its own pair of files, and no other's key.

    Args:
        folder: Where to write; made if missing. Existing files are not overwritten.
        days: How long the roles' certificates are valid, 1 to 825. The authority is for ten years.

    Raises:
        ParameterError: `days` is out of range, the folder has certificates already or can't be
            written.
    """
    _check_days(days)
    if (folder / AUTHORITY_FILE).exists():
        raise ParameterError(
            f"{folder} has an authority already; choose another folder, or renew its certificates"
        )
    key = ed25519.Ed25519PrivateKey.generate()
    authority = (
        _builder(_AUTHORITY_NAME, key.public_key(), _AUTHORITY_DAYS)
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .add_extension(_usage(signs=True), critical=True)
        .sign(key, None)
    )
    try:
        folder.mkdir(parents=True, exist_ok=True)
        _write(folder / AUTHORITY_KEY_FILE, _private(key), 0o600)
        _write(folder / AUTHORITY_FILE, _public(authority), 0o644)
        for role in ROLES:
            _issue(folder, role, role, key, days)
    except OSError as error:
        raise ParameterError(f"can't write certificates to {folder}: {error.strerror}") from error


def add_client(folder: Path, name: str, days: int = 30) -> Path:
    """Issue one more client's certificate, into a folder that is handed to that client.

    Limits of the dealer and the owner are for a certificate: clients that share one share them.

    Args:
        folder: From `make_identities`, with the authority's key.
        name: The client's, 1 to 64 letters, digits, `-` and `_`.
        days: How long the certificate is valid, 1 to 825.

    Returns:
        `folder/name`, with `authority.pem`, `client.pem` and `client.key`.

    Raises:
        ParameterError: A value is out of range, the client has a certificate, or the authority's
            key is missing.
    """
    _check_days(days)
    if not 0 < len(name) <= 64 or not name.replace("-", "a").replace("_", "a").isalnum():
        raise ParameterError(
            f"a client's name is 1 to 64 letters, digits, - and _; got {name!r:.80}"
        )
    key = _authority_key(folder)
    out = folder / name
    try:
        out.mkdir(exist_ok=True)
        _issue(out, "client", name, key, days)
        _write(out / AUTHORITY_FILE, (folder / AUTHORITY_FILE).read_bytes(), 0o644)
    except FileExistsError:
        raise ParameterError(f"{out} exists already; choose another name, or renew") from None
    except OSError as error:
        raise ParameterError(f"can't write certificates to {out}: {error.strerror}") from error
    return out


def renew(folder: Path, days: int = 30) -> list[Path]:
    """Issue every certificate of a folder anew, for the keys that their parties hold already.

    Only the `.pem` files change: copy each to its party, whose key stays where it is. Dealer and
    owner read them anew at each connection.

    Args:
        folder: From `make_identities`, with the authority's key.
        days: How long the new certificates are valid, 1 to 825.

    Returns:
        The files that were written.

    Raises:
        ParameterError: `days` is out of range, the authority's key is missing, or a certificate
            can't be read.
    """
    _check_days(days)
    key = _authority_key(folder)
    written = []
    for path in sorted([*folder.glob("*.pem"), *folder.glob("*/client.pem")]):
        if path.name == AUTHORITY_FILE:
            continue
        try:
            old = x509.load_pem_x509_certificate(path.read_bytes())
            signed = _sign(path.stem, old.subject, old.public_key(), key, days)
            partial = path.with_suffix(".partial")
            partial.unlink(missing_ok=True)
            _write(partial, _public(signed), 0o644)
            partial.replace(path)
        except _UNREADABLE as error:
            raise ParameterError(f"can't renew {path}: {type(error).__name__}") from error
        written.append(path)
    return written


def expiry(path: Path) -> datetime.datetime:
    """Return when a certificate's validity ends.

    Raises:
        ParameterError: It can't be read.
    """
    try:
        return x509.load_pem_x509_certificate(path.read_bytes()).not_valid_after_utc
    except _UNREADABLE as error:
        raise ParameterError(f"{path} is not a certificate: {type(error).__name__}") from error


def _check_days(days: int) -> None:
    if type(days) is not int or not 1 <= days <= MAX_DAYS:
        raise ParameterError(f"a certificate is valid for 1 to {MAX_DAYS} days, got {days}")


def _authority_key(folder: Path) -> ed25519.Ed25519PrivateKey:
    path = folder / AUTHORITY_KEY_FILE
    if not path.is_file():
        raise ParameterError(
            f"{folder} has no {AUTHORITY_KEY_FILE}: give the folder in which the authority was "
            "made, or make new identities in another folder"
        )
    try:
        key = serialization.load_pem_private_key(path.read_bytes(), None)
    except _UNREADABLE as error:
        raise ParameterError(f"{path} is not a key: {type(error).__name__}") from error
    if not isinstance(key, ed25519.Ed25519PrivateKey):
        raise ParameterError(f"{path} is not an Ed25519 key")
    return key


def _issue(
    folder: Path, role: str, name: str, authority: ed25519.Ed25519PrivateKey, days: int
) -> None:
    key = ed25519.Ed25519PrivateKey.generate()
    subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
    certificate = _sign(role, subject, key.public_key(), authority, days)
    _write(folder / f"{role}.pem", _public(certificate), 0o644)
    _write(folder / f"{role}.key", _private(key), 0o600)


def _sign(
    role: str, subject: x509.Name, public_key: Any, authority: ed25519.Ed25519PrivateKey, days: int
) -> x509.Certificate:
    usages = [ExtendedKeyUsageOID.SERVER_AUTH, ExtendedKeyUsageOID.CLIENT_AUTH]
    return (
        _builder(subject, public_key, days)
        .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
        .add_extension(x509.SubjectAlternativeName([x509.DNSName(role)]), critical=False)
        .add_extension(x509.ExtendedKeyUsage(usages), critical=False)
        .add_extension(_usage(signs=False), critical=True)
        .sign(authority, None)
    )


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


def _builder(subject: x509.Name, public_key: Any, days: int) -> x509.CertificateBuilder:
    now = datetime.datetime.now(datetime.UTC)
    return (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(_AUTHORITY_NAME)
        .public_key(public_key)
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - _CLOCK_SLACK)
        .not_valid_after(now + datetime.timedelta(days=days))
    )


def _public(certificate: x509.Certificate) -> bytes:
    return certificate.public_bytes(serialization.Encoding.PEM)


def _private(key: ed25519.Ed25519PrivateKey) -> bytes:
    return key.private_bytes(
        serialization.Encoding.PEM,
        serialization.PrivateFormat.PKCS8,
        serialization.NoEncryption(),
    )


def _write(path: Path, data: bytes, mode: int) -> None:
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, mode)
    with os.fdopen(descriptor, "wb") as file:
        file.write(data)
