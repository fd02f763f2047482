"""The parties' folders: what is in them, written so that each can be handed over by itself."""

import hashlib
import json
import re
from dataclasses import asdict, dataclass, fields
from pathlib import Path

from fedvlm.deploy import texts
from fedvlm.deploy.bundle import toml_value, write_app
from fedvlm.deploy.certificates import (
    DAYS,
    Authority,
    new_authority,
    new_node_key,
    new_server,
    openssh_private,
    openssh_public,
    pem,
    pem_private,
    write_secret,
)
from fedvlm.errors import ConfigError
from fedvlm.files import write_text
from secure.aggregation import Identity, Roster
from secure.errors import ParameterError
from secure.random import SecureRandom

PORT, NODE_PORT = 8000, 9100
LEAST, MOST = 3, 1_000
PUBLIC = "public.json"
SITE = "site.json"


@dataclass(frozen=True)
class Public:
    """The public halves of a site's keys: all that it hands over.

    Attributes:
        number: The node's number, from 1.
        identity: Ed25519 public key for secure aggregation, in hex.
        supernode: P-384 public key of its SuperNode, one line as OpenSSH writes it.
    """

    number: int
    identity: str
    supernode: str

    def __post_init__(self) -> None:
        if type(self.number) is not int or not 1 <= self.number <= MOST:
            raise ConfigError(f"number must be in [1, {MOST}]; got {self.number!r}")
        if not isinstance(self.identity, str) or not re.fullmatch(r"[0-9a-f]{64}", self.identity):
            raise ConfigError("identity is no Ed25519 public key in hex")
        line = r"ecdsa-sha2-nistp384 [A-Za-z0-9+/=]{100,400}"
        if not isinstance(self.supernode, str) or not re.fullmatch(line, self.supernode):
            raise ConfigError("supernode is no P-384 public key as OpenSSH writes it")

    @classmethod
    def load(cls, path: Path) -> "Public":
        """Read what a site handed over.

        Raises:
            ConfigError: It is none.
        """
        return cls(**_fields(path, {field.name for field in fields(cls)}, "deploy join"))


@dataclass(frozen=True)
class Site:
    """What a node's folder knows of its federation.

    Attributes:
        number: The node's number, from 1.
        clients: How many nodes there are.
        server: The server as host:port.
    """

    number: int
    clients: int
    server: str

    @classmethod
    def load(cls, folder: Path) -> "Site":
        """Read it from a node's folder.

        Raises:
            ConfigError: The folder is no node's, or isn't finished.
        """
        path = folder / SITE
        if not path.exists() and (folder / PUBLIC).exists():
            raise ConfigError(
                f"{folder} has keys and no federation yet: hand {folder / PUBLIC} to the "
                f"organiser, and finish with fedvlm deploy join {folder} --welcome FOLDER"
            )
        return cls(**_fields(path, {field.name for field in fields(cls)}, "deploy init"))


def _fields(path: Path, names: set[str], maker: str) -> dict:
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise ConfigError(f"can't read {path}: {error.strerror}; {maker} writes it") from None
    except ValueError:
        raise ConfigError(f"{path} is not JSON; {maker} writes it") from None
    if not isinstance(found, dict) or set(found) != names:
        raise ConfigError(f"{path} doesn't hold {', '.join(sorted(names))}; {maker} writes it")
    return found


def roster_fingerprint(roster: Roster) -> str:
    """Return what two people can compare by telephone: sixteen hex digits in fours."""
    text = json.dumps({str(m): key.hex() for m, key in sorted(roster.keys.items())})
    digest = hashlib.sha256(text.encode()).hexdigest()
    return " ".join(digest[k : k + 4] for k in range(0, 16, 4))


def roster_of(public: list[Public]) -> Roster:
    """Return the roster of public halves.

    Raises:
        ConfigError: Two sites have one number or one key, or a number is missing.
    """
    numbers = sorted(each.number for each in public)
    if numbers != list(range(1, len(public) + 1)):
        raise ConfigError(
            f"the nodes are numbered {', '.join(map(str, numbers))}; each of 1 to {len(public)} "
            "is needed once: the site that is wrong runs deploy join again with its --number"
        )
    for what in ("identity", "supernode"):
        seen: dict[str, int] = {}
        for each in sorted(public, key=lambda one: one.number):
            first = seen.setdefault(getattr(each, what), each.number)
            if first != each.number:
                raise ConfigError(
                    f"nodes {first} and {each.number} have the same {what} key; one of them was "
                    "copied: that site runs deploy join in a new folder"
                )
    try:
        return Roster({each.number: bytes.fromhex(each.identity) for each in public})
    except ParameterError as error:
        raise ConfigError(str(error)) from error


def new_folder(folder: Path) -> None:
    """Make a folder for its owner alone.

    Raises:
        ConfigError: It isn't empty, or can't be made.
    """
    try:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        if any(folder.iterdir()):
            raise ConfigError(f"{folder} is not empty; name another folder")
        folder.chmod(0o700)
    except OSError as error:
        raise ConfigError(f"can't make {folder}: {error.strerror}") from None


def write_keys(folder: Path, number: int) -> Public:
    """Draw a site's own keys into its folder; returns the public halves."""
    identity, supernode = Identity.generate(SecureRandom()), new_node_key()
    write_secret(folder / "keys" / "identity.key", (identity.private_bytes().hex() + "\n").encode())
    write_secret(folder / "keys" / "supernode.key", openssh_private(supernode))
    # The SuperNode's own helpers talk to it over loopback: certificates of this machine's own.
    local = new_authority("this machine")
    key, certificate = new_server(local, "localhost")
    write_secret(folder / "keys" / "local.key", pem_private(key))
    write_text(folder / "tls" / "local-ca.crt", pem(local.certificate).decode())
    write_text(folder / "tls" / "local.crt", pem(certificate).decode())
    public = Public(number, identity.public_key.hex(), openssh_public(supernode))
    write_text(folder / PUBLIC, json.dumps(asdict(public), indent=1) + "\n")
    return public


@dataclass(frozen=True)
class Terms:
    """What the files of a federation are written from.

    Attributes:
        host: Name or address of the server.
        port: Its port.
        clients: Nodes.
        protect: How updates are summed.
        model: Base model: "embedded", or a folder on every machine.
        weights: Hash of its weights, for the floors.
    """

    host: str
    port: int
    clients: int
    protect: str
    model: str
    weights: str

    @property
    def server(self) -> str:
        """The server as host:port."""
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"


def finish_node(
    folder: Path,
    site: Site,
    ca: str,
    roster: Roster,
    *,
    protect: str,
    model: str,
    weights: str,
    rehearsal: bool,
) -> None:
    """Write what a node's folder needs beside its keys; all of it is public or the node's own."""
    write_text(folder / SITE, json.dumps(asdict(site), indent=1) + "\n")
    write_text(folder / "tls" / "ca.crt", ca)
    roster.save(folder / "roster.json")
    (folder / "data").mkdir(exist_ok=True)
    settings = texts.NODE_TOML.format(
        number=site.number - 1,
        model=toml_value(model),
        protect=protect,
        weights=weights,
        keys=texts.KEYS["he" if protect == "he" else "secagg"],
    )
    write_text(folder / "node.toml", settings)
    port = NODE_PORT + site.number
    write_script(
        folder / "start-node.sh",
        texts.START_NODE.format_map({"server": site.server, "node_port": port}),
    )
    compose = texts.COMPOSE.format(
        title="One site's node", service="node", script="start-node.sh", more=""
    )
    write_text(folder / "compose.yaml", compose)
    readme = texts.README_NODE.format(
        number=site.number,
        server=site.server,
        roster=roster_fingerprint(roster),
        origin=texts.REHEARSAL if rehearsal else texts.OWN_KEYS,
    )
    write_text(folder / "README.md", readme)


def write_server(
    folder: Path, terms: Terms, authority: Authority, public: list[Public], roster: Roster
) -> None:
    """Write the server's folder: its own key, and public things of others."""
    new_folder(folder)
    key, certificate = new_server(authority, terms.host)
    write_secret(folder / "tls" / "server.key", pem_private(key))
    write_text(folder / "tls" / "server.crt", pem(certificate).decode())
    write_text(folder / "tls" / "ca.crt", pem(authority.certificate).decode())
    for each in public:
        write_text(folder / "nodes" / f"node-{each.number}.pub", each.supernode + "\n")
    roster.save(folder / "roster.json")
    write_app(folder / "app")
    settings = {
        "clients": terms.clients,
        "protect": terms.protect,
        "model": toml_value(terms.model),
        "scores": "none" if terms.protect == "he" else "last",
    }
    write_text(folder / "run.toml", texts.RUN_TOML.format_map(settings))
    write_text(folder / "server.json", json.dumps({"server": terms.server}) + "\n")
    write_script(folder / "start-server.sh", texts.START_SERVER.format(port=terms.port))
    compose = texts.COMPOSE.format(
        title="The server",
        service="server",
        script="start-server.sh",
        more=texts.COMPOSE_SERVER.format(port=terms.port),
    )
    write_text(folder / "compose.yaml", compose)
    readme = texts.README_SERVER.format(
        host=terms.host, port=terms.port, clients=terms.clients, roster=roster_fingerprint(roster)
    )
    write_text(folder / "README.md", readme)


def write_authority(folder: Path, authority: Authority) -> None:
    """Write the CA's folder, which no party needs to run."""
    new_folder(folder)
    write_secret(folder / "ca.key", pem_private(authority.key))
    write_text(folder / "ca.crt", pem(authority.certificate).decode())
    write_text(folder / "README.md", texts.README_CA.format(days=DAYS))


def write_script(path: Path, text: str) -> None:
    """Write a script that its owner can run."""
    write_text(path, text)
    path.chmod(0o755)
