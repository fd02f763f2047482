"""A run's events as lines for a person: the round, the time that is left, and who is missing."""

import statistics
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

from fedvlm.config import Config

_LAST, _NAMED = 5, 8
_UNITS = {"example": "example", "client": "client", "distributed": "client"}


def epsilon_text(entry: dict[str, Any], config: Config) -> str:
    """Say what a round's entry has spent: ε, δ and the unit that it hides; empty without DP."""
    unit = _UNITS.get(config.privacy.dp)
    if unit is None or entry.get("epsilon") is None:
        return ""
    return f"ε {entry['epsilon']:.2f} per {unit} (δ {config.privacy.delta:g})"


def simulated_line(entry: dict[str, Any], config: Config) -> str:
    """Return a simulation's round as a line: scores, loss, upload and what DP has spent."""
    text = f"round {entry['round']:>3}/{config.training.rounds}"
    for part in ("test", "ood"):
        for metric in ("one_of_100", "exact_match"):
            if f"{part}_{metric}" in entry:
                text += f"  {part} {100 * entry[f'{part}_{metric}']:5.1f} %"
    if entry.get("train_loss") is not None:
        text += f"  loss {entry['train_loss']:.3f}"
    if "upload_bytes_per_client" in entry:
        text += f"  {entry['upload_bytes_per_client'] / 1e6:.2f} MB up a client"
    if spent := epsilon_text(entry, config):
        text += f"  {spent}"
    return text


@dataclass
class Follower:
    """Turns what a run writes down into lines for a person, as it goes.

    Attributes:
        rounds: Rounds of the run.
        config: Its configuration, where ε shall be told with its unit and δ.
        refused: Node → the codes it refused with.
    """

    rounds: int
    config: Config | None = None
    refused: dict[str, set[str]] = field(default_factory=dict)
    _waiting: tuple[float, list[str]] = (0.0, [])
    _missing: dict[str, str] = field(default_factory=dict)
    _ends: list[float] = field(default_factory=list)

    def lines(self, event: dict[str, Any]) -> Iterator[str]:
        """Return the lines that an event is worth."""
        kind = event.get("event")
        if kind == "start":
            self._ends = [event["time"]]
        elif kind == "asked":
            self._waiting = (time.monotonic(), event["nodes"])
        elif kind == "trip":
            yield self._trip(event)
        elif kind == "round":
            status = self.after(event)
            if event["entry"].get("round"):
                yield self._round(event["entry"]) + status

    def after(self, event: dict[str, Any]) -> str:
        """Say with a round's event how long the others may take, and who was missing in it."""
        self._ends.append(event.get("time", time.time()))
        number, text = event["entry"]["round"], ""
        left = self.seconds_left(number)
        if left is not None and number:
            text += f"; about {left:.0f} s left"
        if self._missing:
            told = [f"{node} ({why})" for node, why in sorted(self._missing.items())]
            more = f" and {len(told) - _NAMED} more" if len(told) > _NAMED else ""
            text += f"; missing: {', '.join(told[:_NAMED])}{more}"
        if number:
            self._missing = {}
        return text

    def _trip(self, event: dict[str, Any]) -> str:
        self._waiting = (0.0, [])
        text = (
            f"  {event['trip']:<14} asked {len(event['asked'])}, answered {len(event['answered'])}"
        )
        for node, why in event["refused"].items():
            self.refused.setdefault(node, set()).add(why)
            self._missing[node] = why
            text += f"; {node} refused: {why}"
        for node in event["silent"]:
            self._missing.setdefault(node, "silent")
        if event["silent"]:
            text += f"; silent: {', '.join(event['silent'])}"
        size = f"{event['upload_bytes'] / 1e6:.2f} MB up, {event['download_bytes'] / 1e6:.2f} down"
        return f"{text}; {size}; {event['seconds']:.1f} s"

    def _round(self, entry: dict[str, Any]) -> str:
        text = f"round {entry['round']}/{self.rounds}"
        if entry.get("abandoned"):
            text += f": abandoned, {entry['abandoned']}"
        else:
            text += f": {entry.get('clients', '?')} nodes summed"
        if self.config is not None and (spent := epsilon_text(entry, self.config)):
            text += f", {spent}"
        elif entry.get("epsilon") is not None:
            text += f", ε {entry['epsilon']:.2f}"
        if "test_one_of_100" in entry:
            text += f", test {100 * entry['test_one_of_100']:.1f} %"
        if "nodes_one_of_100" in entry:
            low, high = entry["nodes_one_of_100_low"], entry["nodes_one_of_100_high"]
            text += (
                f", {100 * entry['nodes_one_of_100']:.1f} % [{100 * low:.1f}, {100 * high:.1f}] of "
                f"{entry['nodes_pairs']:.0f} pairs held out by the nodes"
            )
        return text

    def seconds_left(self, number: int) -> float | None:
        """Return what the rounds after one may take, by the last ones; None for no round yet."""
        took = [b - a for a, b in zip(self._ends, self._ends[1:], strict=False)][-_LAST:]
        if not took:
            return None
        return max(0.0, statistics.median(took)) * max(0, self.rounds - number)

    def waiting(self) -> str | None:
        """Say for whom the run waits, where it does."""
        since, nodes = self._waiting
        if not nodes:
            return None
        return f"  waiting {time.monotonic() - since:.0f} s for {', '.join(nodes)}"
