"""What a node brings to secure aggregation: all of it its owner's, none of it the server's."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from secure.aggregation._keys import Identity, Roster
from secure.aggregation._policy import Policy
from secure.aggregation._provision import ROSTER_FILE, key_file, load_identity
from secure.errors import ParameterError
from secure.flower._refusals import KeysError
from secure.flower._store import Spent, Store


@dataclass(frozen=True)
class Node:
    """A node's own terms and keys.

    Attributes:
        identity: Its long-lived key.
        roster: Whom it trusts.
        policy: Floor below which it refuses.
        state: Folder of its own, in which spent rounds and stages are recorded before an answer
            leaves; None counts in Flower's `Context` alone.
        sessions: Most sessions that it ever opens, over all runs; None for no limit.

    Raises:
        ParameterError: A limit without a folder, in which it could be kept.
    """

    identity: Identity
    roster: Roster
    policy: Policy
    state: Path | None = None
    sessions: int | None = None

    def __post_init__(self) -> None:
        """Refuse a limit that would be forgotten."""
        if self.sessions is not None and self.state is None:
            raise ParameterError("a limit of sessions needs the node's folder `state`")

    def spent(self) -> Spent | None:
        """Return the node's durable record, or None without a folder."""
        if self.state is None:
            return None
        name = self.identity.public_key.hex()[:32]
        return Spent(Store(self.state, name), self.sessions)


def node_of(node_config: Mapping[str, object], directory: Path | None, policy: Policy) -> Node:
    """Read a node's keys from the files that its own configuration names.

    Args:
        node_config: The node's configuration: `secagg-identity`, `secagg-roster`, and where it
            likes `secagg-state`, the folder for the record of what is spent (beside the identity,
            where it names none); with a directory, `partition-id`.
        directory: What `provision` wrote, for simulations, which keep no record.
        policy: The node's floor.

    Raises:
        KeysError: The configuration lacks an entry, or a file is not what it should be.
    """
    try:
        if directory is not None:
            partition = node_config.get("partition-id")
            if type(partition) is not int:
                raise KeysError("the node's configuration lacks a partition-id")
            identity = load_identity(key_file(directory, partition))
            return Node(identity, Roster.load(directory / ROSTER_FILE), policy)
        key, roster = node_config.get("secagg-identity"), node_config.get("secagg-roster")
        if not isinstance(key, str) or not isinstance(roster, str):
            raise KeysError(
                "the node's configuration lacks secagg-identity or secagg-roster; make them with "
                "`python -m secure.aggregation keys`, and start the node with both paths in "
                "--node-config"
            )
        state = node_config.get("secagg-state") or f"{key}.state"
        return Node(load_identity(Path(key)), Roster.load(Path(roster)), policy, Path(str(state)))
    except KeysError:
        raise
    except ParameterError as error:
        raise KeysError(str(error)) from None
