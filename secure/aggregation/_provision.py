"""Identity files: written once, out of band, before the federation starts."""

import os
from pathlib import Path

from secure.aggregation._keys import Identity, Roster
from secure.errors import ParameterError
from secure.random import SecureRandom

ROSTER_FILE = "roster.json"


def key_file(directory: Path, partition: int) -> Path:
    """Return where `provision` puts the key of a partition."""
    return directory / f"{partition}.key"


def provision(directory: Path | str, clients: int) -> Roster:
    """Draw identities for `clients` clients, and write their keys and the roster.

    Writes `0.key`, `1.key`, … (readable by the owner alone) and `roster.json`. In a deployment
    each client makes its own key, and only public keys meet in the roster; one directory for all
    is for simulations, in which there is one machine to trust anyway.

    Args:
        directory: Made where missing.
        clients: Number of clients, at least 1; client i becomes member i + 1.

    Raises:
        ParameterError: The number is below 1, or the directory holds keys already.

    Example:
        >>> import tempfile
        >>> with tempfile.TemporaryDirectory() as directory:
        ...     roster = provision(directory, 3)
        ...     load_identity(Path(directory) / "0.key").public_key == roster.keys[1]
        True
    """
    directory = Path(directory)
    if clients < 1:
        raise ParameterError(f"clients must be at least 1, got {clients}")
    if (directory / ROSTER_FILE).exists():
        raise ParameterError(f"{directory} holds a roster already; name another directory")
    directory.mkdir(parents=True, exist_ok=True)
    rng = SecureRandom()
    keys = {}
    for partition in range(clients):
        identity = Identity.generate(rng)
        save_identity(identity, key_file(directory, partition))
        keys[partition + 1] = identity.public_key
    roster = Roster(keys)
    roster.save(directory / ROSTER_FILE)
    return roster


def save_identity(identity: Identity, path: Path) -> None:
    """Write a private key as hexadecimal text that only the owner may read."""
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    with os.fdopen(descriptor, "w") as file:
        file.write(identity.private_bytes().hex() + "\n")


def load_identity(path: Path) -> Identity:
    """Read what `save_identity` wrote.

    Raises:
        ParameterError: The file is missing or holds no key.
    """
    try:
        return Identity(bytes.fromhex(path.read_text().strip()))
    except (OSError, ValueError):
        raise ParameterError(f"{path} holds no identity key; make one with provision()") from None
