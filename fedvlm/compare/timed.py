"""Clients whose time is taken, whatever a protection lets them tell."""

import json
import statistics
import threading
import time
from collections import defaultdict
from pathlib import Path

from flwr.app import Context, Message

from fedvlm.federation.client_app import app
from fedvlm.files import write_text

_FILE = "client-seconds.json"


def _round_of(message: Message) -> int:
    """Return the round that a message belongs to, from Flower's group or config; 0 for none."""
    group = message.metadata.group_id
    if group.isdigit():
        return int(group)
    for record in message.content.config_records.values():
        told = record.get("server-round")
        if isinstance(told, int):
            return told
    return 0


class TimedClient:
    """Flower's `ClientApp` with a clock: seconds by node and round, over all trips.

    Wall time of a thread, with whatever runs beside it; setting up of keys before the first round
    counts as none.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._seconds: dict[tuple[int, int], float] = defaultdict(float)

    def __call__(self, message: Message, context: Context) -> Message:
        """Answer as the app does."""
        start = time.perf_counter()
        try:
            return app(message, context)
        finally:
            seconds = time.perf_counter() - start
            if number := _round_of(message):
                with self._lock:
                    self._seconds[message.metadata.dst_node_id, number] += seconds

    @property
    def seconds(self) -> list[float]:
        """Seconds of each node in each round that it was asked in."""
        return list(self._seconds.values())

    def save(self, folder: Path) -> None:
        """Write the times into a run's folder, where any were taken."""
        if self._seconds:
            write_text(folder / _FILE, json.dumps(self.seconds) + "\n")


def median_seconds(folder: Path) -> float | None:
    """Return the median over nodes and rounds of a run; None where no time was taken."""
    try:
        found = json.loads((folder / _FILE).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    return float(statistics.median(found)) if found else None
