"""What each party saw, kept for an audit.

Switched on by `transcript = true`. Under plain aggregation the server sees every client's
adapter; under secure aggregation it sees the aggregate alone, which is the next round's global
adapter. Every client sees the global adapter that it is sent.
"""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fedvlm.files import whole_file, write_text


@dataclass(frozen=True, eq=False)
class Seen:
    """What the server saw of a client in a round.

    Attributes:
        node: Flower's id.
        number: The client's number, from 0.
        vector: Shape (P,), float32: its adapter.
        examples: What it says of its number of pairs.
    """

    node: int
    number: int
    vector: NDArray[np.float32]
    examples: float


class Transcript:
    """Writes what was seen in a run to `DIR/transcript/`.

    One `round-NNN.npz` a round: `global_adapter` (P,) float32, which every party saw, and, only
    where aggregation is plain, `updates` (K, P) float32, the adapters that the server saw one by
    one, with `clients` (K,) int64, each client's number from 1 whatever engine ran it, `node_ids`
    (K,) uint64, Flower's, and `num_examples` (K,). `index.json` says which
    party saw which, and names the canaries, which nobody but their planter knows. The last global
    adapter is the released one, in `adapter/`.

    Args:
        folder: The run's folder.
        protection: Name of the protection in force.
        schema: Hash of the adapter's schema.
        nodes: All that may take part, whether they are drawn or not.
        canaries: What identifies the canaries that are planted, or None.
    """

    def __init__(
        self,
        folder: Path,
        protection: str,
        schema: str,
        nodes: int,
        canaries: dict[str, Any] | None = None,
    ) -> None:
        self._folder = folder / "transcript"
        self._current: NDArray[np.float32] | None = None
        self._plain = protection == "plain"
        seen = {"global_adapter": ["server", "client"]}
        if self._plain:
            seen["updates"] = ["server"]
        index = {
            "protection": protection,
            "schema": schema,
            "nodes": nodes,
            "seen_by": seen,
            "canaries": canaries,
        }
        write_text(self._folder / "index.json", json.dumps(index, indent=2) + "\n")

    def global_adapter(self, server_round: int, vector: NDArray[np.float32]) -> None:
        """Keep the adapter that a round starts from."""
        self._current = vector

    def replies(self, server_round: int, seen: list[Seen]) -> None:
        """Keep what the server received in a round; nothing where nobody was drawn.

        Args:
            server_round: Round, from 1.
            seen: What it could read, a client each.
        """
        columns: dict[str, NDArray] = {}
        if self._current is not None:
            columns["global_adapter"] = self._current
        if self._plain and seen:
            columns["updates"] = np.stack([each.vector for each in seen])
            columns["num_examples"] = np.array([each.examples for each in seen])
            columns["clients"] = np.array([each.number + 1 for each in seen], dtype=np.int64)
            columns["node_ids"] = np.array([each.node for each in seen], dtype=np.uint64)
        path = self._folder / f"round-{server_round:03d}.npz"
        with whole_file(path) as temporary, temporary.open("wb") as file:
            np.savez(file, **columns)  # pyright: ignore[reportArgumentType]
