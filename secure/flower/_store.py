"""What a node has spent, in a file of its own that outlives Flower's `Context`.

Flower keeps a client's state in the SuperNode's memory, by run, and stores it after the reply has
left. A client that counts only there can be made to count again. So each step that must happen
once is first written here, in a folder of the node's owner, and forced to the disk.
"""

import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from filelock import FileLock

from secure.errors import IntegrityError, PolicyError
from secure.flower._refusals import KeysError, StageError

_MAX_RUNS = 10_000
_LOCK_S = 30.0


class Store:
    """One JSON object in a folder, read and written as a whole.

    Args:
        folder: The node's own; made where missing, for its owner alone.
        name: Name of the file, without its ending: one for each key.

    Guarantees:
        When `transaction` ends, what was changed is on the disk, the folder's entry included. Two
        processes take turns. A file that can't be read is an error, never a fresh start. A file
        that was deleted, or a folder that was put back from a copy, is a fresh start: whoever can
        write the folder can make the node forget.
    """

    def __init__(self, folder: Path | str, name: str) -> None:
        self._folder = Path(folder)
        self._path = self._folder / f"{name}.json"

    @contextmanager
    def transaction(self) -> Iterator[dict[str, Any]]:
        """Give out the object to be changed; what an exception leaves behind is not written.

        Raises:
            KeysError: The folder can't be written.
            IntegrityError: The file is not what was written.
        """
        try:
            if not self._folder.is_dir():
                self._folder.mkdir(mode=0o700, parents=True, exist_ok=True)
                _sync_folder(self._folder.parent)
            lock = FileLock(self._path.with_suffix(".lock"), timeout=_LOCK_S)
            lock.acquire()
        except (OSError, TimeoutError) as error:
            raise KeysError(
                f"the node's folder {self._folder} can't be written ({type(error).__name__}); "
                "name one that can in the node's configuration"
            ) from None
        try:
            record = self._read()
            before = json.dumps(record, sort_keys=True)
            yield record
            after = json.dumps(record, sort_keys=True)
            if after != before:
                self._write(after)
        finally:
            lock.release()

    def _read(self) -> dict[str, Any]:
        try:
            record = json.loads(self._path.read_text())
        except FileNotFoundError:
            return {}
        except (OSError, ValueError, RecursionError):
            record = None
        if not isinstance(record, dict):
            raise IntegrityError(
                f"{self._path} is not what this node wrote; put it right, or make the node a new "
                "key and a new folder"
            )
        return record

    def _write(self, text: str) -> None:
        partial = self._path.with_suffix(".partial")
        try:
            descriptor = os.open(partial, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
            with os.fdopen(descriptor, "w") as file:
                file.write(text)
                file.flush()
                os.fsync(file.fileno())
            os.replace(partial, self._path)
            _sync_folder(self._folder)
        except OSError as error:
            raise KeysError(
                f"{self._path} can't be written ({type(error).__name__}); nothing was answered"
            ) from None


def _sync_folder(folder: Path) -> None:
    """Force a folder's entries to the disk; Windows has no such call."""
    if os.name == "nt":
        return
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


class Spent:
    """Which rounds and which stages of the open session a node has spent.

    Args:
        store: Where it is kept.
        sessions: Most sessions that the node ever opens; None for no limit.

    Example:
        >>> import tempfile
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     spent = Spent(Store(folder, "node"))
        ...     spent.open("run", "train", 1, b"session")
        ...     spent.take(b"session", "opened")
        ...     spent.take(b"session", "opened")
        Traceback (most recent call last):
        ...
        secure.flower._refusals.StageError: stage 'opened' of this session is spent on this node
    """

    def __init__(self, store: Store, sessions: int | None = None) -> None:
        self._store = store
        self._sessions = sessions

    def open(self, run: str, kind: str, number: int, session: bytes) -> None:
        """Spend a round, and make its session the open one.

        Raises:
            StageError: The round is spent.
            PolicyError: The node has opened all the sessions that its owner allows.
        """
        with self._store.transaction() as record:
            opened = record.get("opened", 0)
            if self._sessions is not None and opened >= self._sessions:
                raise PolicyError(
                    f"this node has opened {opened} sessions, all that its owner allows"
                )
            runs = record.setdefault("runs", {})
            if run not in runs and len(runs) >= _MAX_RUNS:
                raise PolicyError(f"this node has taken part in {len(runs)} runs, all it remembers")
            rounds = runs.setdefault(run, {})
            if number <= rounds.get(kind, 0):
                raise StageError(f"{kind} round {number} of this run is spent on this node")
            rounds[kind] = number
            record |= {"opened": opened + 1, "session": session.hex(), "taken": []}

    def take(self, session: bytes, stage: str) -> None:
        """Spend a stage of the open session.

        Raises:
            StageError: It is spent, or another session is open: the state was rolled back.
        """
        with self._store.transaction() as record:
            if record.get("session") != session.hex():
                raise StageError("this node has another session open: its state was rolled back")
            if stage in record["taken"]:
                raise StageError(f"stage {stage!r} of this session is spent on this node")
            record["taken"] = [*record["taken"], stage]
