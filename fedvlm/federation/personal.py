"""The part of an adapter that never leaves its node: kept on the node's own disk.

In the node's state folder where it has one; else in Flower's state of the client, which lasts as
long as its process. A round's part is kept beside the one before it, so that a round that is run
again after an interruption starts from where it started.
"""

import base64
import binascii
import hashlib
import json
from typing import Any

import numpy as np
from flwr.app import ConfigRecord, RecordDict
from numpy.typing import NDArray

from fedvlm.config.whole import UNDECIDED, Config
from fedvlm.errors import IntegrityError
from fedvlm.federation.node import Node
from fedvlm.files import one_at_a_time, write_durably

FOLDER = "personal"
_RECORD = "personal-part"
_VERSION = 1
# What may change between two starts of one run, or says how it is run and not what.
_FREE = {"training.rounds", *UNDECIDED}


class PersonalPart:
    """A node's own part of the adapter, by round, and its scores.

    Args:
        node: The node.
        state: Flower's state of the client, used where the node has no folder.
        config: The run's configuration: each run has a part of its own.
        schema: Hash of the adapter's schema.
        size: Length of the personal part.

    Guarantees:
        What `keep` was given is on the disk when it returns, in a file that only the node's owner
        may read. A file that can't be read is an error, and never a fresh start.
    """

    def __init__(
        self, node: Node, state: RecordDict, config: Config, schema: str, size: int
    ) -> None:
        told = {name: value for name, value in config.by_name().items() if name not in _FREE}
        text = json.dumps([told, schema], sort_keys=True, default=str)
        name = hashlib.sha256(text.encode()).hexdigest()[:16]
        self.path = None if node.state is None else node.state / FOLDER / f"{name}.json"
        self._name, self._state, self._size = name, state, size

    def before(self, number: int) -> NDArray[np.float32] | None:
        """Return the part that a round starts from: of the last round before it that was kept.

        Args:
            number: Round, from 1.

        Returns:
            Shape (size,); None where no earlier round was kept.

        Raises:
            IntegrityError: What is kept is broken, or of another adapter.
        """
        earlier = [each for each in self._read()["parts"] if each["round"] < number]
        return _vector(max(earlier, key=lambda e: e["round"])["vector"]) if earlier else None

    def keep(self, number: int, vector: NDArray[np.float32], score: float | None = None) -> None:
        """Keep a round's part, and the node's own score of the adapter, where it has one."""
        kept = self._read()
        earlier = [each for each in kept["parts"] if each["round"] < number]
        earlier = sorted(earlier, key=lambda e: e["round"])[-1:]
        text = base64.b64encode(vector.astype("<f4").tobytes()).decode()
        kept["parts"] = [*earlier, {"round": number, "vector": text}]
        kept["scores"] = [each for each in kept["scores"] if each[0] < number]
        if score is not None:
            kept["scores"].append([number, score])
        self._write(json.dumps(kept))

    def scores(self) -> list[tuple[int, float]]:
        """Return round and score, as far as the node has scored."""
        return [(number, score) for number, score in self._read()["scores"]]

    def _read(self) -> dict[str, Any]:
        if self.path is None:
            record = self._state.config_records.get(_RECORD)
            text = None if record is None else record.get(self._name)
        else:
            with one_at_a_time(self.path):
                text = self.path.read_text(encoding="utf-8") if self.path.exists() else None
        if text is None:
            return {"version": _VERSION, "parts": [], "scores": []}
        return self._parsed(str(text))

    def _parsed(self, text: str) -> dict[str, Any]:
        try:
            kept = json.loads(text)
            fine = kept["version"] == _VERSION and all(
                type(each["round"]) is int and _vector(each["vector"]).shape == (self._size,)
                for each in kept["parts"]
            )
            fine = fine and all(type(number) is int for number, _ in kept["scores"])
        except (ValueError, KeyError, TypeError, RecursionError, binascii.Error):
            fine = False
        if not fine:
            raise IntegrityError(
                f"{self.path or 'the client state'} is not the personal part that this node kept; "
                "put the file right, or take it away to start anew"
            )
        return kept

    def _write(self, text: str) -> None:
        if self.path is None:
            self._state.config_records[_RECORD] = ConfigRecord({self._name: text})
            return
        with one_at_a_time(self.path):
            write_durably(self.path, text)


def _vector(text: str) -> NDArray[np.float32]:
    vector = np.frombuffer(base64.b64decode(text, validate=True), dtype="<f4").astype(np.float32)
    if not np.isfinite(vector).all():
        raise ValueError("not finite")
    return vector
