"""What a node has told of its data: counted on its own disk, before a reply leaves.

Flower keeps a client's `Context` in the SuperNode's memory, by a run's id that the server gives,
and stores it after the reply has left. Whoever counts there can be made to count again.
"""

import hashlib
import json
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from flwr.app import ConfigRecord, RecordDict

from fedvlm.config.whole import Config
from fedvlm.errors import BudgetExceeded, IntegrityError
from fedvlm.federation.floor import Floor, RefusedError
from fedvlm.federation.node import Node
from fedvlm.files import one_at_a_time, write_durably
from fedvlm.privacy.ledger import Ledger
from fedvlm.privacy.mechanisms import Mechanism

FILE = "told.json"
_RECORD = "privacy-ledger"
_VERSION = 1
_LAST = 1_000  # answers that are listed one by one; all are counted


class NodeLedger:
    """A node's count of answers and its spent privacy.

    In a folder of the node's where it has one, else in Flower's state, which is enough for a
    simulation only. Every run is charged to the same ledger: neither a run's number nor its seed,
    which are the server's, opens a new one. Who gives a node other data gives it another folder.

    Args:
        node: The node.
        state: Flower's state of the client.

    Guarantees:
        What `answer` lets pass is on the disk before it returns, and a file that can't be read is
        an error. A folder that is put back from a copy makes a node forget: no program can notice.
    """

    def __init__(self, node: Node, state: RecordDict) -> None:
        self._floor = node.floor
        self._path = None if node.state is None else node.state / FILE
        self._state = state

    def answer(
        self,
        config: Config,
        server_round: int,
        session: str,
        unit: str | None = None,
        mechanism: Mechanism | None = None,
        times: int = 1,
    ) -> None:
        """Count an answer that is about to be given, and pay for what it tells.

        Args:
            config: The run's configuration.
            server_round: Round, from 1, as the server says.
            session: Run and message, for the owner to read.
            unit: "example" or "client"; None where no noise is added here.
            mechanism: What one release is.
            times: Releases in this answer.

        Raises:
            RefusedError: The node has given all the answers that its owner allows.
            BudgetExceeded: The answer would tell more than the budget; nothing was counted.
            IntegrityError: The ledger's file is broken.
        """
        with self._open() as kept:
            answers = kept.get("answers", 0)
            if self._floor.rounds and answers >= self._floor.rounds:
                raise RefusedError(
                    "rounds",
                    f"this node has given {answers} answers, all that floor.rounds allows",
                )
            if unit is not None and mechanism is not None:
                # Noise that follows from the seed is the same when a round is run again.
                again = config.privacy.simulated_noise and server_round in kept.get("simulated", [])
                if not again:
                    before = 0 if answers else server_round - 1
                    self._pay(kept, config, unit, mechanism, times, before * times)
                if config.privacy.simulated_noise:
                    kept.setdefault("simulated", []).append(server_round)
            kept["answers"] = answers + 1
            kept["last"] = [
                *kept.get("last", [])[1 - _LAST :],
                [session, server_round, round(time.time())],
            ]

    def spent(self, config: Config, unit: str) -> float:
        """Return ε of all that was ever told, at the δ that holds."""
        with self._open() as kept:
            events = kept.get("events", {}).get(unit, [])
        return _ledger(unit, *_budget(self._floor, config), events).spent.value

    def _pay(
        self,
        kept: dict[str, Any],
        config: Config,
        unit: str,
        mechanism: Mechanism,
        times: int,
        lost: int,
    ) -> None:
        """Charge the total, and where the owner set that one, also what this run promised."""
        accounts = [(kept.setdefault("events", {}), unit, *_budget(self._floor, config))]
        if self._floor.bounded:
            runs = kept.setdefault("runs", {}).setdefault(_key(config), {})
            accounts.append((runs, unit, config.privacy.epsilon, config.privacy.delta))
        for place, name, budget, delta in accounts:
            ledger = _ledger(name, budget, delta, place.get(name, []))
            if lost and not place.get(name):
                # A client that lost its state takes it that it was asked in every round before.
                ledger.spend(mechanism, lost)
            try:
                ledger.spend(mechanism, times)
            except BudgetExceeded as error:
                raise BudgetExceeded(f"this node's budget: {error}") from None
            place[name] = json.loads(ledger.to_json())["events"]

    @contextmanager
    def _open(self) -> Iterator[dict[str, Any]]:
        """Give out what is kept, to be changed; an exception leaves it as it was."""
        if self._path is None:
            record = self._state.config_records.get(_RECORD)
            kept = {} if record is None else _parse(str(record.get("json")), "Flower's state")
            yield kept
            self._state[_RECORD] = ConfigRecord({"json": json.dumps(kept)})
            return
        with one_at_a_time(self._path):
            text = self._path.read_text(encoding="utf-8") if self._path.exists() else None
            kept = {"version": _VERSION} if text is None else _parse(text, str(self._path))
            before = json.dumps(kept)
            yield kept
            after = json.dumps(kept)
            if after != before:
                write_durably(self._path, after)


def _parse(text: str, where: str) -> dict[str, Any]:
    try:
        kept = json.loads(text)
        events, runs = kept.get("events", {}), kept.get("runs", {})
        fine = (
            type(kept.get("answers", 0)) is int
            and kept.get("answers", 0) >= 0
            and all(isinstance(kept.get(key, []), list) for key in ("last", "simulated"))
            and all(isinstance(each, list) for each in events.values())
            and all(isinstance(each, list) for run in runs.values() for each in run.values())
        )
    except (ValueError, RecursionError, AttributeError):
        fine = False
    if not fine:
        raise IntegrityError(
            f"{where} is not the ledger that this node wrote; put the file right, or give the node "
            "another folder and other data"
        )
    return kept


def _ledger(unit: str, budget: float, delta: float, events: list[Any]) -> Ledger:
    text = {"unit": unit, "budget": budget, "delta": delta, "events": events}
    return Ledger.from_json(json.dumps(text))


def _budget(floor: Floor, config: Config) -> tuple[float, float]:
    """Return ε and δ of all that a node tells: its owner's, or the run's where it set none."""
    delta = floor.delta if floor.delta < 1 else config.privacy.delta
    return (floor.epsilon, delta) if floor.bounded else (config.privacy.epsilon, delta)


def _key(config: Config) -> str:
    """Name what a run promised: its whole configuration."""
    text = json.dumps(config.to_dict(), sort_keys=True, default=str)
    return hashlib.sha256(text.encode()).hexdigest()[:16]
