"""What each party saw, kept for an audit.

Switched on by `transcript = true`. Under plain aggregation the server sees every client's
adapter; every client sees the global adapter that it is sent.
"""

import json
from pathlib import Path

import numpy as np
from flwr.app import Message
from numpy.typing import NDArray

from fedvlm.files import whole_file, write_text


class Transcript:
    """Writes what was seen in a run to `DIR/transcript/`.

    One `round-NNN.npz` a round: `global_adapter` (P,) float32, which every party saw, and
    `updates` (K, P) float32, the adapters that the server saw one by one, with `clients` (K,)
    their node ids and `num_examples` (K,). `index.json` says which party saw which.

    Args:
        folder: The run's folder.
        protection: Name of the protection in force.
        schema: Hash of the adapter's schema.
    """

    def __init__(self, folder: Path, protection: str, schema: str) -> None:
        self._folder = folder / "transcript"
        self._current: NDArray[np.float32] | None = None
        seen = {
            "global_adapter": ["server", "client", "holder of the released adapter"],
            "updates": ["server"],
        }
        index = {"protection": protection, "schema": schema, "seen_by": seen}
        write_text(self._folder / "index.json", json.dumps(index, indent=2) + "\n")

    def global_adapter(self, server_round: int, vector: NDArray[np.float32]) -> None:
        """Keep the adapter that a round starts from."""
        self._current = vector

    def updates(self, server_round: int, replies: list[Message]) -> None:
        """Keep the adapters that the server received in a round."""
        vectors, examples = [], []
        for reply in replies:
            vectors.append(reply.content.array_records["arrays"]["adapter"].numpy())
            examples.append(reply.content.metric_records["metrics"]["num-examples"])
        with (
            whole_file(self._folder / f"round-{server_round:03d}.npz") as temporary,
            temporary.open("wb") as file,
        ):
            np.savez(
                file,
                global_adapter=self._current if self._current is not None else np.empty(0),
                updates=np.stack(vectors),
                clients=np.array([reply.metadata.src_node_id for reply in replies]),
                num_examples=np.array(examples),
            )
