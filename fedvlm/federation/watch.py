"""A grid that writes down, as it goes, who was asked and what came back: a line of JSON a trip.

For whoever runs a server. It sees what the server sees anyway, and keeps sizes, times and codes:
never what a message holds.
"""

import json
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
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

Listener = Callable[[dict[str, Any]], None]


def _nobody(event: dict[str, Any]) -> None:
    """Do nothing with an event."""


class ProgressFile:
    """Lines of JSON in a run's folder, each on the disk as soon as it is known.

    Args:
        folder: The run's folder; None writes nothing.
        resume: Whether to go on with the file that is there.
        listen: Called with each event as it is written.
    """

    def __init__(
        self, folder: Path | None, resume: bool = False, listen: Listener = _nobody
    ) -> None:
        self._path = None if folder is None else folder / FILE
        self._listen = listen
        self.rounds: set[int] = set()
        if self._path is not None:
            self._path.parent.mkdir(parents=True, exist_ok=True)
            if not resume:
                self._path.unlink(missing_ok=True)
            self._mend()

    def _mend(self) -> None:
        """Take away a line that was cut off, and see which rounds the file has."""
        if self._path is None or not self._path.exists():
            return
        data = self._path.read_bytes()
        whole = data[: data.rfind(b"\n") + 1]
        if len(whole) < len(data):
            with self._path.open("rb+") as file:
                file.truncate(len(whole))
        for line in whole.splitlines():
            event = json.loads(line)
            if event.get("event") == "round":
                self.rounds.add(event["entry"]["round"])

    def write(self, event: str, **told: Any) -> None:
        """Append a line."""
        found = {"event": event, "time": round(time.time(), 3), **told}
        if self._path is not None:
            with self._path.open("a", encoding="utf-8") as file:
                file.write(json.dumps(found) + "\n")
        self._listen(found)

    def round(self, entry: dict[str, Any]) -> None:
        """Append a round's entry, once: a run that goes on tells those before it again."""
        if entry["round"] not in self.rounds:
            self.rounds.add(entry["round"])
            self.write("round", entry=entry)


@dataclass
class _Trip:
    """A trip that is under way: messages that are waited for, and replies that came."""

    kind: str
    group: str
    asked: dict[str, int]
    down: int
    start: float = field(default_factory=time.monotonic)
    replies: list[Message] = field(default_factory=list)


class WatchedGrid(Subset):
    """A grid that tells of each trip: asked, answered, refused and why, bytes, seconds.

    Args:
        grid: The grid.
        progress: Where to write.
        secret: Whether who trains is a secret, as under client-level DP, whose ε counts on it:
            trips of training are then told without names, numbers and sizes.
    """

    def __init__(self, grid: Grid, progress: ProgressFile, secret: bool = False) -> None:
        super().__init__(grid, [])
        self._progress = progress
        self._secret = secret
        self._numbers: dict[int, int] = {}
        self._open: _Trip | None = None

    def get_node_ids(self) -> list[int]:
        """Return the nodes that are there."""
        return list(self._grid.get_node_ids())

    def send_and_receive(
        self, messages: Iterable[Message], *, timeout: float | None = None
    ) -> list[Message]:
        """Deliver messages and return the replies; write down what the trip was."""
        self.end_trip()
        batch = list(messages)
        if not batch:
            return list(self._grid.send_and_receive(batch, timeout=timeout))
        asked = {str(place): m.metadata.dst_node_id for place, m in enumerate(batch)}
        trip = self._begin(batch, asked)
        replies = list(self._grid.send_and_receive(batch, timeout=timeout))
        if trip.kind.partition(".")[0] == QUERY:
            for reply in replies:
                number = number_told(reply)
                if number is not None:
                    self._numbers.setdefault(reply.metadata.src_node_id, number)
        # Ids are given with the delivery, in place of a message's place.
        trip.asked = {
            m.metadata.message_id or each: m.metadata.dst_node_id
            for each, m in zip(asked, batch, strict=True)
        }
        trip.replies = replies
        self.end_trip()
        return replies

    def push_messages(self, messages: Iterable[Message]) -> Iterable[str]:
        """Deliver messages: what a protocol's further trips begin with."""
        self.end_trip()
        batch = list(messages)
        trip = self._begin(batch, {}) if batch else None
        nodes = [message.metadata.dst_node_id for message in batch]
        ids = list(self._grid.push_messages(batch))
        if trip is not None:
            trip.asked = {each: n for each, n in zip(ids, nodes, strict=False) if each}
        return ids

    def pull_messages(self, message_ids: Iterable[str]) -> list[Message]:
        """Return the replies that have come; the trip ends with the last of them."""
        replies = list(self._grid.pull_messages(message_ids))
        trip = self._open
        if trip is not None:
            trip.replies += replies
            if len(trip.replies) >= len(trip.asked):
                self.end_trip()
        return replies

    def _begin(self, batch: list[Message], asked: dict[str, int]) -> _Trip:
        # Sizes first: Flower takes what it has delivered out of a message.
        trip = _Trip(_kind(batch[0]), batch[0].metadata.group_id, asked, sum(map(_bytes, batch)))
        self._open = trip
        nodes = [message.metadata.dst_node_id for message in batch]
        if not self._hidden(trip):
            self._progress.write(
                "asked", trip=trip.kind, group=trip.group, nodes=self._named(nodes)
            )
        return trip

    def _hidden(self, trip: _Trip) -> bool:
        return self._secret and trip.kind.partition(".")[0] != QUERY

    def end_trip(self) -> None:
        """Write down the trip that is under way, if any: who hasn't answered by now is silent."""
        trip, self._open = self._open, None
        if trip is None or self._hidden(trip):
            return
        asked, replies = list(trip.asked.values()), trip.replies

        def of(reply: Message) -> int:  # where a node is gone, the SuperLink answers in its place
            meta = reply.metadata
            return trip.asked.get(meta.reply_to_message_id, meta.src_node_id)

        good = [of(reply) for reply in replies if not reply.has_error()]
        bad = {of(reply): _why(reply) for reply in replies if reply.has_error()}
        silent = [node for node in asked if node not in bad and node not in good]
        self._progress.write(
            "trip",
            trip=trip.kind,
            group=trip.group,
            asked=self._named(asked),
            answered=self._named(good),
            refused=dict(zip(self._named(bad), bad.values(), strict=True)),
            silent=self._named(silent),
            upload_bytes=sum(map(_bytes, replies)),
            download_bytes=trip.down,
            seconds=round(time.monotonic() - trip.start, 3),
        )

    def _named(self, nodes: Iterable[int]) -> list[str]:
        """Name nodes by the numbers that they told, from 1; by Flower's id where they told none."""
        known = self._numbers
        return [f"node-{known[n] + 1}" if n in known else f"id {n}" for n in nodes]


def _kind(message: Message) -> str:
    """Name a trip: by the protocol's own word for it, else by the message's type."""
    for record in message.content.values():
        trip = record.get("trip") if isinstance(record, ConfigRecord) else None
        # The first one is the app's own question, with the protocol's terms in it.
        if isinstance(trip, str) and trip != "advertise":
            return trip
    return message.metadata.message_type


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
