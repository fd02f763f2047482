"""What a client of encrypted sums has spent: rounds by run, and sums in the life of its key."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from secure.errors import MissingExtraError, PolicyError
from secure.flower._refusals import StageError
from secure.flower._store import Store
from secure.he._flower_wire import RECORD
from secure.he.policy import HEPolicy

try:
    from flwr.app import ConfigRecord, Context
except ImportError:
    raise MissingExtraError("flwr", "sim") from None


@dataclass(frozen=True)
class HENode:
    """A node's own terms and key.

    Attributes:
        policy: Floor below which it refuses.
        key: File that `provision_key` wrote.
        state: Folder of its own, in which rounds and decrypted sums are counted before an answer
            leaves; None counts in Flower's `Context` alone.
    """

    policy: HEPolicy
    key: Path
    state: Path | None = None


class Counted:
    """The count, in the node's folder where it has one and in Flower's `Context` otherwise.

    No secret is among it.
    """

    def __init__(self, context: Context, state: Path | None, key: bytes) -> None:
        self._context = context
        self._run = str(context.run_id)
        self._store = None if state is None else Store(state, f"he-{key.hex()}")

    @contextmanager
    def _record(self) -> Iterator[dict[str, Any]]:
        if self._store is not None:
            with self._store.transaction() as record:
                yield record
            return
        kept = self._context.state.config_records.get(RECORD)
        record: dict[str, Any] = {} if kept is None else dict(kept)
        yield record
        self._context.state.config_records[RECORD] = ConfigRecord(record)

    def send(self, number: int) -> None:
        """Spend a round's vector.

        Raises:
            StageError: It is spent.
        """
        with self._record() as record:
            if record.get("run") == self._run and number <= record.get("sent", 0):
                raise StageError(f"round {number} is over for this client")
            spent = record.get("spent", [])
            if record.get("run") != self._run and self._run in spent:
                raise StageError("this client has left that run")
            runs = spent if self._run in spent else [*spent, self._run]
            record |= {"spent": runs, "run": self._run, "sent": number, "answered": 0}
            record |= {"parameters": 0, "length": 0, "released": record.get("released", 0)}

    def sized(self, number: int, parameters: int, length: int) -> None:
        """Remember what the vector of a round holds."""
        with self._record() as record:
            if record.get("run") == self._run and record.get("sent") == number:
                record |= {"parameters": parameters, "length": length}

    def vector(self, number: int) -> tuple[int, int]:
        """Return parameters and length of the vector of a round that is still to be decrypted.

        Raises:
            StageError: There is none.
        """
        with self._record() as record:
            due = record.get("run") == self._run and record.get("sent") == number
            if not due or record.get("answered") == number or not record.get("length"):
                raise StageError(
                    "a sum is decrypted once, in a round that this client takes part in"
                )
            return record["parameters"], record["length"]

    def release(self, number: int, most: int) -> None:
        """Spend the decryption of a round's sum.

        Raises:
            PolicyError: The key has decrypted all the sums that it may.
            StageError: The round's sum is spent.
        """
        with self._record() as record:
            if record.get("answered") == number:
                raise StageError("the sum of this round is decrypted already")
            if record.get("released", 0) >= most:
                raise PolicyError(f"this client has decrypted {most} sums, all it may")
            record |= {"answered": number, "released": record.get("released", 0) + 1}
