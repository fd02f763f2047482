"""`deploy check`: on a party's own machine, before a run. Nothing of the data leaves it."""

import stat
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import load_ssh_private_key

from fedvlm.config import load_config
from fedvlm.deploy.bundle import app_files
from fedvlm.deploy.folders import PUBLIC, Public, Site, roster_fingerprint
from fedvlm.deploy.server_check import Line, check_server
from fedvlm.errors import ConfigError, FedVLMError
from fedvlm.federation.floor import Floor
from fedvlm.federation.node import Node, read_node
from secure.aggregation import Roster, load_identity
from secure.errors import SecureError

_SECRETS = ("identity.key", "supernode.key", "local.key", "he.key")


def check(folder: Path, *, offline: bool = False) -> list[Line]:
    """Look at a party's folder, a node's or the server's.

    Args:
        folder: The folder.
        offline: Whether not to call the server.

    Raises:
        ConfigError: The folder is neither.
    """
    if (folder / "run.toml").exists():
        return check_server_folder(folder)
    if (folder / "node.toml").exists() or (folder / PUBLIC).exists():
        return check_node(folder, offline=offline)
    raise ConfigError(f"{folder} is no party's folder: it has neither node.toml nor run.toml")


def check_node(folder: Path, *, offline: bool = False) -> list[Line]:
    """Look at a node's folder; a line that fails keeps the others from nothing."""
    lines = [_line("keys", lambda: _keys(folder))]
    found: list[Node] = []

    def node_file() -> str:
        found.append(read_node(folder / "node.toml"))
        return "node.toml is read"

    lines.append(_line("node.toml", node_file))
    if found:
        node = found[0]
        lines.append(_line("data", lambda: _data(node)))
        lines.append(_line("model", lambda: _model(node)))
        lines.append(_line("roster", lambda: _roster(folder, node)))
        lines.append(Line("floor", True, floor_in_words(node.floor)))
    site: list[Site] = []
    lines.append(_line("federation", lambda: _site(folder, site)))
    if site and not offline:
        lines += check_server(site[0].server, folder / "tls" / "ca.crt")
    return lines


def check_server_folder(folder: Path) -> list[Line]:
    """Look at the server's folder; it needs no data."""
    return [
        _line("certificate", lambda: _certificate(folder)),
        _line("nodes", lambda: _registered(folder)),
        _line("app", lambda: _app(folder)),
        _line("run.toml", lambda: _run(folder)),
    ]


def _line(what: str, look: Callable[[], str]) -> Line:
    try:
        return Line(what, True, look())
    except (FedVLMError, SecureError) as error:
        return Line(what, False, str(error))
    except OSError as error:
        return Line(what, False, f"{error.filename}: {error.strerror}")


def require_private(path: Path) -> None:
    """Refuse a secret file that is missing, or that others can read.

    Raises:
        ConfigError: With what to do.
    """
    if not path.is_file():
        raise ConfigError(f"{path} isn't there; it comes with deploy init or deploy join")
    mode = path.stat().st_mode
    if mode & (stat.S_IRWXG | stat.S_IRWXO):
        raise ConfigError(f"{path} can be read by others; chmod 600 {path}")


def _keys(folder: Path) -> str:
    keys = folder / "keys"
    for name in _SECRETS:
        if name != "he.key" or (keys / name).exists():
            require_private(keys / name)
    path = keys / "supernode.key"
    try:
        key = load_ssh_private_key(path.read_bytes(), password=None)
    except (ValueError, TypeError):
        raise ConfigError(f"{path} holds no key of a SuperNode; run deploy join anew") from None
    if not isinstance(key, ec.EllipticCurvePrivateKey):
        raise ConfigError(f"{path} is of another kind than P-384; run deploy join anew")
    return "private, and readable by this user alone"


def _data(node: Node) -> str:
    from fedvlm.data import load_folder
    from fedvlm.federation.own_data import own_splits

    if node.data is None:
        raise ConfigError('node.toml names no data; add data = "FOLDER"')
    data = load_folder(node.data)
    splits = own_splits(data)
    return (
        f"{len(data)} pairs in {node.data}: {len(splits.clients[0])} to train on, "
        f"{len(splits.test)} held out for this site's own evaluation"
    )


def _model(node: Node) -> str:
    from fedvlm.models import load_any, weights_hash
    from fedvlm.models.placement import resolve_device

    resolve_device(node.device)
    name = node.model or "embedded"
    weights = weights_hash(load_any(name).vlm)
    node.floor.check_model(weights)
    held = "as the floor names it" if node.floor.model else "the floor names none"
    return f"{name}, weights {weights[:12]}…, {held}"


def _roster(folder: Path, node: Node) -> str:
    if node.identity is None or node.roster is None:
        return "none: node.toml names no identity"
    roster = Roster.load(node.roster)
    public = load_identity(node.identity).public_key
    site = Site.load(folder)
    listed = {number for number, key in roster.keys.items() if key == public}
    if not listed:
        raise ConfigError(
            f"{node.roster} doesn't list this node's key: it is of another federation; ask the "
            "organiser for the right one"
        )
    if listed != {site.number} or node.number != site.number - 1:
        raise ConfigError(
            f"{node.roster} lists this node's key as node {min(listed)}, {folder / 'site.json'} "
            f"says {site.number}, node.toml {node.number + 1}; ask the organiser for the right ones"
        )
    return f"{len(roster.keys)} nodes, this is node {site.number}; {roster_fingerprint(roster)}"


def _site(folder: Path, out: list[Site]) -> str:
    out.append(Site.load(folder))
    return f"node {out[0].number} of {out[0].clients}, server {out[0].server}"


def floor_in_words(floor: Floor) -> str:
    """Say what a floor allows, in a line."""
    words = [f"sums by {floor.protect} or better", f"at least {floor.min_clients} nodes a round"]
    words.append(f"{floor.rounds} answers in all" if floor.rounds else "any number of answers")
    if floor.bounded:
        words.append(f"ε up to {floor.epsilon:g} at δ {floor.delta:g} in all, never without noise")
    else:
        words.append("runs without noise too")
    words.append("adapters " + ", ".join(floor.adapters))
    words.append("this base model only" if floor.model else "any base model")
    words.append("mitigations " + (", ".join(floor.mitigations) or "none"))
    words.append("columns for an adversary " + (", ".join(floor.attributes) or "none"))
    tells = floor.scores and not floor.bounded
    words.append("its score in a sum" if tells else "no score, in no sum")
    return "; ".join(words)


def _certificate(folder: Path) -> str:
    tls = folder / "tls"
    for name in ("ca.crt", "server.crt"):
        if not (tls / name).is_file():
            raise ConfigError(
                f"{tls / name} isn't there, and a SuperLink without a certificate is not started; "
                "deploy init writes it"
            )
    require_private(tls / "server.key")
    try:
        found = x509.load_pem_x509_certificate((tls / "server.crt").read_bytes())
        ca = x509.load_pem_x509_certificate((tls / "ca.crt").read_bytes())
        found.verify_directly_issued_by(ca)
    except Exception as error:  # ValueError, TypeError, InvalidSignature: each another fault of it
        kind = type(error).__name__
        raise ConfigError(
            f"{tls / 'server.crt'} is no certificate by {tls / 'ca.crt'} ({kind}); deploy init "
            "writes both"
        ) from None
    import datetime

    now = datetime.datetime.now(datetime.UTC)
    if not found.not_valid_before_utc <= now <= found.not_valid_after_utc:
        raise ConfigError(
            f"{tls / 'server.crt'} holds from {found.not_valid_before_utc:%Y-%m-%d} to "
            f"{found.not_valid_after_utc:%Y-%m-%d}; set the clock, or make new ones by deploy init"
        )
    return f"holds until {found.not_valid_after_utc:%Y-%m-%d}"


def _registered(folder: Path) -> str:
    keys = sorted((folder / "nodes").glob("*.pub"))
    if not keys:
        raise ConfigError(f"{folder / 'nodes'} holds no public key, so that no node can take part")
    if len({path.read_text(encoding="ascii").strip() for path in keys}) != len(keys):
        raise ConfigError(f"two nodes in {folder / 'nodes'} have the same key; one was copied")
    return f"{len(keys)} nodes may take part, once deploy register has told the SuperLink"


def _app(folder: Path) -> str:
    for name, data in app_files().items():
        path = folder / "app" / name
        if not path.is_file() or path.read_bytes() != data:
            raise ConfigError(
                f"{path} is not this version's, and nodes run no other app; deploy run writes it "
                "anew"
            )
    return "as this installation's"


def _run(folder: Path) -> str:
    config = load_config(folder / "run.toml")
    keys = len(list((folder / "nodes").glob("*.pub")))
    if keys != config.data.clients:
        raise ConfigError(
            f"{folder / 'run.toml'} has data.clients = {config.data.clients}, and nodes/ holds "
            f"{keys} keys"
        )
    told = f"{config.training.rounds} rounds, {config.protection.protect}, dp = {config.privacy.dp}"
    return f"{told}, data = {config.data.source}"


def public_of(paths: list[Path]) -> list[Public]:
    """Read what sites handed over; numbers stay theirs."""
    return [replace(Public.load(path)) for path in paths]
