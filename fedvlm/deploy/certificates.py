"""Certificates and keys of the connections: a CA, leaves for servers, keys for SuperNodes.

Made by `cryptography` alone, so that neither openssl nor ssh-keygen need be there.
"""

import datetime
import ipaddress
import os
from dataclasses import dataclass
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from fedvlm.errors import ConfigError

DAYS = 825
"""How long certificates hold: the longest that common TLS clients accept of a leaf."""
_LOCAL = ("localhost", "127.0.0.1")
_EARLY = datetime.timedelta(minutes=5)  # clocks that are a little behind


@dataclass(frozen=True)
class Authority:
    """A certificate authority of a federation's own.

    Attributes:
        key: Its private key.
        certificate: What the parties trust.
    """

    key: ec.EllipticCurvePrivateKey
    certificate: x509.Certificate


def new_authority(name: str) -> Authority:
    """Make a CA that signs servers and no further CA.

    Args:
        name: Its common name.
    """
    key = ec.generate_private_key(ec.SECP384R1())
    builder = _builder(name, name, key.public_key())
    builder = builder.add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
    builder = builder.add_extension(_usage(signs_certificates=True), critical=True)
    return Authority(key, builder.sign(key, hashes.SHA384()))


def new_server(
    authority: Authority, host: str
) -> tuple[ec.EllipticCurvePrivateKey, x509.Certificate]:
    """Make a server's key and its certificate for a host, and for this machine's own programs.

    Args:
        authority: Who signs.
        host: Name or address under which others reach the server.

    Raises:
        ConfigError: The host is neither a name nor an address.
    """
    key = ec.generate_private_key(ec.SECP384R1())
    issuer = authority.certificate.subject.get_attributes_for_oid(NameOID.COMMON_NAME)[0].value
    builder = _builder(host, str(issuer), key.public_key())
    names = x509.SubjectAlternativeName(
        [host_name(each) for each in dict.fromkeys((host, *_LOCAL))]
    )
    usage = x509.ExtendedKeyUsage([ExtendedKeyUsageOID.SERVER_AUTH])
    builder = builder.add_extension(names, critical=False)
    builder = builder.add_extension(x509.BasicConstraints(ca=False, path_length=None), True)
    builder = builder.add_extension(_usage(signs_certificates=False), critical=True)
    builder = builder.add_extension(usage, critical=False)
    return key, builder.sign(authority.key, hashes.SHA384())


def new_node_key() -> ec.EllipticCurvePrivateKey:
    """Draw the key by which a SuperNode shows the SuperLink who it is: P-384."""
    return ec.generate_private_key(ec.SECP384R1())


def openssh_public(key: ec.EllipticCurvePrivateKey) -> str:
    """Return the public half of a SuperNode's key, one line as OpenSSH writes it."""
    form = serialization.PublicFormat.OpenSSH
    return key.public_key().public_bytes(serialization.Encoding.OpenSSH, form).decode()


def openssh_private(key: ec.EllipticCurvePrivateKey) -> bytes:
    """Return a SuperNode's private key as OpenSSH writes it: what Flower reads."""
    return _private(key, serialization.PrivateFormat.OpenSSH)


def pem_private(key: ec.EllipticCurvePrivateKey) -> bytes:
    """Return a private key as PEM."""
    return _private(key, serialization.PrivateFormat.PKCS8)


def pem(certificate: x509.Certificate) -> bytes:
    """Return a certificate as PEM."""
    return certificate.public_bytes(serialization.Encoding.PEM)


def write_secret(path: Path, data: bytes) -> None:
    """Write a file, new, that its owner alone can read.

    Raises:
        ConfigError: It is there already, or can't be written.
    """
    try:
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    except FileExistsError:
        raise ConfigError(f"{path} is there already; name another folder") from None
    except OSError as error:
        raise ConfigError(f"can't write {path}: {error.strerror}") from None
    with os.fdopen(descriptor, "wb") as file:
        file.write(data)


def _private(key: ec.EllipticCurvePrivateKey, form: serialization.PrivateFormat) -> bytes:
    return key.private_bytes(serialization.Encoding.PEM, form, serialization.NoEncryption())


def _builder(name: str, issuer: str, key: ec.EllipticCurvePublicKey) -> x509.CertificateBuilder:
    now = datetime.datetime.now(datetime.UTC)

    def named(text: str) -> x509.Name:
        return x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, text[:64])])

    return (
        x509.CertificateBuilder()
        .subject_name(named(name))
        .issuer_name(named(issuer))
        .public_key(key)
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - _EARLY)
        .not_valid_after(now + datetime.timedelta(days=DAYS))
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key), critical=False)
    )


def _usage(signs_certificates: bool) -> x509.KeyUsage:
    return x509.KeyUsage(
        digital_signature=not signs_certificates,
        content_commitment=False,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=False,
        key_cert_sign=signs_certificates,
        crl_sign=signs_certificates,
        encipher_only=False,
        decipher_only=False,
    )


def host_name(host: str) -> x509.GeneralName:
    """Return a host as a certificate names it.

    Raises:
        ConfigError: It is neither a name nor an address.
    """
    try:
        return x509.IPAddress(ipaddress.ip_address(host))
    except ValueError:
        pass
    fine = host.isascii() and 0 < len(host) < 254 and all(c.isalnum() or c in "-." for c in host)
    if not fine:
        raise ConfigError(f"--host takes a name or an address without a port; got {host!r}")
    return x509.DNSName(host)
