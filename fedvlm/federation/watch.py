"""A grid that writes down, as it goes, who was asked and what came back: a line of JSON a trip.

For the operator of a server. It sees what the server sees anyway, and keeps sizes, times and
codes: never what a message holds.
"""

import json
import time
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from flwr.app import ArrayRecord, ConfigRecord, Message, MetricRecord
from flwr.serverapp import Grid

from fedvlm.federation.floor import REFUSALS
from fedvlm.federation.roll import QUERY, number_told
from fedvlm.federation.subset import Subset

FILE = "progress.jsonl"
_NAMES = {number: name for name, number in REFUSALS.items()}
_FLOWER = {
    1: "its app can't be loaded",
    2: "its app failed",
    3: "not reached in time",
    4: "no answer in time",
    5: "not there",
    7: "the run's app isn't the one that this node runs",
    8: "its app ended",
}
_PROTOCOL = range(1100, 1200)


class ProgressFile:
    """Lines of JSON in a run's folder, each on the disk as soon as it is known.

    Args:
        folder: The run's folder; None writes nothing.
        resume: Whether to go on with the file that is there.
    """

    def __init__(self, folder: Path | None, resume: bool = False) -> None:
        self._path = None if folder is None else folder / FILE
        if self._path is not None:
            self._path.parent.mkdir(parents=True, exist_ok=True)
            if not resume:
                self._path.unlink(missing_ok=True)

    def write(self, event: str, **told: Any) -> None:
        """Append a line."""
        if self._path is None:
            return
        line = json.dumps({"event": event, "time": round(time.time(), 3), **told})
        with self._path.open("a", encoding="utf-8") as file:
            file.write(line + "\n")


class WatchedGrid(Subset):
    """A grid that tells of each trip: asked, answered, refused and why, bytes, seconds.

    Args:
        grid: The grid.
        progress: Where to write.
    """

    def __init__(self, grid: Grid, progress: ProgressFile) -> None:
        super().__init__(grid, [])
        self._progress = progress
        self._numbers: dict[int, int] = {}

    def get_node_ids(self) -> list[int]:
        """Return the nodes that are there."""
        return list(self._grid.get_node_ids())

    def send_and_receive(
        self, messages: Iterable[Message], *, timeout: float | None = None
    ) -> list[Message]:
        """Deliver messages and return the replies; write down what the trip was."""
        batch = list(messages)
        if not batch:
            return list(self._grid.send_and_receive(batch, timeout=timeout))
        kind = batch[0].metadata.message_type
        group = batch[0].metadata.group_id
        start = time.monotonic()
        # Sizes first: Flower takes what it has delivered out of a message.
        down = sum(map(_bytes, batch))
        asked = [message.metadata.dst_node_id for message in batch]
        self._progress.write("asked", trip=kind, group=group, nodes=self._named(asked))
        replies = list(self._grid.send_and_receive(batch, timeout=timeout))
        if kind.partition(".")[0] == QUERY:
            for reply in replies:
                number = number_told(reply)
                if number is not None:
                    self._numbers.setdefault(reply.metadata.src_node_id, number)
        good = [r.metadata.src_node_id for r in replies if not r.has_error()]
        bad = {r.metadata.src_node_id: _why(r) for r in replies if r.has_error()}
        silent = [node for node in asked if node not in bad and node not in good]
        self._progress.write(
            "trip",
            trip=kind,
            group=group,
            asked=self._named(asked),
            answered=self._named(good),
            refused=dict(zip(self._named(bad), bad.values(), strict=True)),
            silent=self._named(silent),
            upload_bytes=sum(map(_bytes, replies)),
            download_bytes=down,
            seconds=round(time.monotonic() - start, 3),
        )
        return replies

    def _named(self, nodes: Iterable[int]) -> list[str]:
        """Name nodes by the numbers that they told, from 1; by Flower's id where they told none."""
        known = self._numbers
        return [f"node-{known[n] + 1}" if n in known else f"id {n}" for n in nodes]


def _bytes(message: Message) -> int:
    if message.has_error():
        return 0
    return sum(
        record.count_bytes()
        for record in message.content.values()
        if isinstance(record, ArrayRecord | ConfigRecord | MetricRecord)
    )


def _why(reply: Message) -> str:
    """Say why a node refused, by its code alone: the text of an error is whatever it likes."""
    code = reply.error.code
    if code in _PROTOCOL:
        return _protocol(code)
    return _NAMES.get(code) or _FLOWER.get(code) or f"code {code}"


def _protocol(code: int) -> str:
    """Name a code of secure aggregation or of sums under encryption."""
    from secure.aggregation.flower import REFUSALS as KNOWN

    return next((f"protocol: {n}" for n, number in KNOWN.items() if number == code), f"code {code}")
