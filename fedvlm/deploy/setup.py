"""Setting a federation up: all folders at once for a rehearsal, or from what sites hand over."""

import json
import shutil
from pathlib import Path

from fedvlm.config import config_from
from fedvlm.deploy.certificates import host_name, new_authority, pem
from fedvlm.deploy.folders import (
    LEAST,
    MOST,
    PUBLIC,
    Public,
    Site,
    Terms,
    finish_node,
    new_folder,
    roster_of,
    write_authority,
    write_keys,
    write_server,
)
from fedvlm.errors import ConfigError
from fedvlm.files import write_text
from secure.aggregation import Roster, load_identity
from secure.errors import SecureError

WELCOME = "welcome.json"


def weights_of(model: str) -> str:
    """Return the hash of a base model's weights.

    Raises:
        ConfigError: There is no such model.
    """
    from fedvlm.models import load_any, weights_hash

    return weights_hash(load_any(model).vlm)


def init(folder: Path, terms: Terms, public: list[Public] | None = None) -> Roster:
    """Make the folders of a federation.

    Args:
        folder: New or empty.
        terms: What they are written from.
        public: What sites made by `join` and handed over; None makes everybody's keys here, which
            is a rehearsal.

    Returns:
        The roster.

    Raises:
        ConfigError: The folder isn't empty, a number is out of its range, or two sites have one
            number or one key.
    """
    if not LEAST <= terms.clients <= MOST:
        raise ConfigError(
            f"--clients must be in [{LEAST}, {MOST}]; got {terms.clients}: of a sum of two, each "
            "knows the other's part"
        )
    if not 1 <= terms.port < 1 << 16:
        raise ConfigError(f"--port must be in [1, 65535]; got {terms.port}")
    host_name(terms.host)
    if public is not None and len(public) != terms.clients:
        raise ConfigError(
            f"{len(public)} sites handed over keys, and --clients is {terms.clients}; give --join "
            "once for each"
        )
    if public is not None and terms.protect == "he":
        raise ConfigError(
            "the key for sums under encryption must never be where the organiser is: init with "
            "--join makes none; let the sites use secure aggregation, or rehearse without --join"
        )
    roster = None if public is None else roster_of(public)  # before anything is written
    new_folder(folder)
    authority = new_authority("fedvlm federation")
    ca = pem(authority.certificate).decode()
    rehearsal = public is None
    if public is None:
        public = []
        for number in range(1, terms.clients + 1):
            new_folder(folder / f"node-{number}")
            public.append(write_keys(folder / f"node-{number}", number))
    roster = roster or roster_of(public)
    write_authority(folder / "ca", authority)
    write_server(folder / "server", terms, authority, public, roster)
    for each in public:
        party = folder / f"node-{each.number}"
        if rehearsal:
            finish_node(
                party,
                Site(each.number, terms.clients, terms.server),
                ca,
                roster,
                protect=terms.protect,
                model=terms.model,
                weights=terms.weights,
                rehearsal=True,
            )
        else:
            _welcome(party, each.number, terms, ca, roster)
    if terms.protect == "he":
        _share_he_key(folder, terms)
    return roster


def _welcome(folder: Path, number: int, terms: Terms, ca: str, roster: Roster) -> None:
    """Write what a site needs that made its own keys: nothing of it is secret."""
    new_folder(folder)
    told = {
        "number": number,
        "clients": terms.clients,
        "server": terms.server,
        "protect": terms.protect,
        "weights": terms.weights,
    }
    write_text(folder / WELCOME, json.dumps(told, indent=1) + "\n")
    write_text(folder / "ca.crt", ca)
    roster.save(folder / "roster.json")


def _share_he_key(folder: Path, terms: Terms) -> None:
    """Draw the nodes' common key; each folder gets a copy, and the server's gets none."""
    from fedvlm.federation.terms import he_policy
    from secure.he.policy import provision_key

    config = config_from({"clients": terms.clients, "protect": "he", "data": "none"})
    first = folder / "node-1" / "keys" / "he.key"
    provision_key(first, he_policy(config))
    for number in range(2, terms.clients + 1):
        copy = folder / f"node-{number}" / "keys" / "he.key"
        shutil.copyfile(first, copy)
        copy.chmod(0o600)


def join(folder: Path, number: int) -> Public:
    """Make a site's own keys, on the site.

    Args:
        folder: New or empty.
        number: The node's number, from 1, as agreed with the organiser.

    Returns:
        The public halves; they also stand in `public.json`.

    Raises:
        ConfigError: The folder isn't empty, or the number out of its range.
    """
    if not 1 <= number <= MOST:
        raise ConfigError(f"--number must be in [1, {MOST}]; got {number}")
    new_folder(folder)
    return write_keys(folder, number)


def settle(folder: Path, welcome: Path, model: str = "embedded") -> Roster:
    """Finish a site's folder with what the organiser sent back.

    The welcome is the other side's: it is used where it can only make the node stricter, or can't
    make it take part at all. The floor's text is this library's, its least is secure aggregation
    in the active mode, and the model's hash is that of the model which lies here.

    Args:
        folder: Where `join` made the keys.
        welcome: Folder from the organiser.
        model: The site's base model.

    Returns:
        The roster, whose fingerprint the sites compare.

    Raises:
        ConfigError: The welcome isn't one, is another site's, or names another model.
    """
    own = Public.load(folder / PUBLIC)
    try:
        told = json.loads((welcome / WELCOME).read_text(encoding="utf-8"))
        ca = (welcome / "ca.crt").read_text(encoding="ascii")
        site = Site(told["number"], told["clients"], told["server"])
        roster = Roster.load(welcome / "roster.json")
        identity = load_identity(folder / "keys" / "identity.key")
    except OSError as error:
        raise ConfigError(f"{welcome} is no welcome: {error.strerror}") from None
    except SecureError as error:
        raise ConfigError(f"{welcome} is no welcome: {error}") from None
    except (ValueError, KeyError, TypeError):
        raise ConfigError(f"{welcome} is no welcome: {WELCOME} is broken") from None
    if site.number != own.number or roster.keys.get(own.number) != identity.public_key:
        raise ConfigError(
            f"{welcome} is not for this site: its roster has another key for node {own.number}; "
            f"ask the organiser for the folder node-{own.number} of the run that your "
            "public.json went into"
        )
    if type(site.clients) is not int or len(roster.keys) != site.clients:
        raise ConfigError(f"{welcome} names {site.clients!r} nodes, its roster {len(roster.keys)}")
    # It is written into a script: nothing but a host and a port may pass.
    host, _, port = str(site.server).rpartition(":")
    if not port.isdigit() or not all(c.isascii() and (c.isalnum() or c in ".-:[]") for c in host):
        raise ConfigError(f"{welcome} names no server as host:port: {site.server!r}")
    weights = weights_of(model)
    if told.get("weights") != weights:
        raise ConfigError(
            f"the base model here ({model}) is not the federation's: its weights hash to "
            f"{weights[:12]}…, the organiser's to {str(told.get('weights'))[:12]}…; name the "
            "right one by --model"
        )
    finish_node(
        folder,
        site,
        ca,
        roster,
        protect="secagg-active",
        model=model,
        weights=weights,
        rehearsal=False,
    )
    return roster
