"""Sites in this process whose nodes die, lose an answer or come late, at a trip of one's choice."""

import csv
import shutil
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from flwr.app import RecordDict

from fedvlm.config import Config, config_from, for_nodes
from fedvlm.federation import InProcessGrid
from fedvlm.federation.client_app import app
from fedvlm.federation.node import read_node
from fedvlm.federation.run import run_federation
from fedvlm.federation.terms import secure_policy
from secure.aggregation import provision
from secure.aggregation.flower import RECORD

TRIPS = ("advertise", "share", "mask", "commit", "unmask")
"""Trips of secure aggregation in the active mode; the other mode has no `commit`."""


@dataclass
class Fault:
    """What goes wrong, with whom, when.

    Attributes:
        number: The node's, from 0.
        trip: At which trip.
        before: Whether it dies before it answers; else the answer is made, and lost.
        lasting: Whether it is gone until it is brought back; else it only misses this trip.
    """

    number: int
    trip: str
    before: bool = True
    lasting: bool = True
    happened: list[str] = field(default_factory=list)


def trip_of(message) -> str:
    record = message.content.config_records.get(RECORD)
    if record is not None and "trip" in record:
        return str(record["trip"])
    return message.metadata.message_type


class FailingGrid(InProcessGrid):
    """A grid between sites, one of which fails; what Flower kept of a dead node is gone."""

    def __init__(self, nodes: list[Path], config: Config, fault: Fault | None = None):
        super().__init__(app, len(nodes), for_nodes(config), 1)
        for path, context in zip(nodes, self.contexts.values(), strict=True):
            context.node_config = {"node": str(path / "node.toml")}
        self.fault = fault
        self.before_round: Callable[[FailingGrid], None] = lambda grid: None

    def die(self, number: int) -> None:
        """End a node: its process, and with it what it had in memory."""
        self.contexts.pop(self.node_ids[number], None)

    def come_back(self, number: int, path: Path, new_id: int | None = None) -> None:
        """Start a node again from its folder, under the same id of Flower's or a new one."""
        from threading import Lock

        from flwr.app import Context

        old = self.node_ids[number]
        node = old if new_id is None else new_id
        run_config = next(iter(self.contexts.values())).run_config
        self.contexts.pop(old, None)
        self._locks[node] = Lock()
        self.contexts[node] = Context(
            1, node, {"node": str(path / "node.toml")}, RecordDict(), dict(run_config)
        )
        self.node_ids = tuple(node if each == old else each for each in self.node_ids)

    def get_node_ids(self):
        self.before_round(self)
        return super().get_node_ids()

    def push_messages(self, messages):
        batch = list(messages)
        there = [message for message in batch if self._meets(message)]
        pushed = iter(super().push_messages(there))
        ids = [next(pushed) if any(m is t for t in there) else "lost" for m in batch]
        for message, each in zip(batch, ids, strict=True):
            if self._loses(message):
                self._replies.pop(each, None)
        return ids

    def _is_his(self, message) -> bool:
        fault = self.fault
        return fault is not None and message.metadata.dst_node_id == self.node_ids[fault.number]

    def _meets(self, message) -> bool:
        """Tell whether a message meets a node that is there; it may die of it."""
        fault = self.fault
        meets = self._is_his(message) and fault.before and trip_of(message) == fault.trip
        if meets and not fault.happened:
            fault.happened.append(fault.trip)
            if fault.lasting:
                self.die(fault.number)
            return False
        return message.metadata.dst_node_id in self.contexts

    def _loses(self, message) -> bool:
        fault = self.fault
        if fault is None or fault.before or fault.happened:
            return False
        if not self._is_his(message) or trip_of(message) != fault.trip:
            return False
        fault.happened.append(fault.trip)
        if fault.lasting:
            self.die(fault.number)
        return True

    def send_and_receive(self, messages, *, timeout=None):
        return self.pull_messages(self.push_messages(messages))


def fill_sites(folders: list[Path], shapes: Path) -> None:
    """Write each folder images and captions of its own."""
    with (shapes / "captions.csv").open() as file:
        rows = list(csv.DictReader(file))
    for number, folder in enumerate(folders):
        (folder / "images").mkdir(parents=True, exist_ok=True)
        own = rows[number :: len(folders)]
        with (folder / "captions.csv").open("w", newline="") as file:
            writer = csv.DictWriter(file, ["image", "caption"], extrasaction="ignore")
            writer.writeheader()
            writer.writerows(own)
        for row in own:
            shutil.copy(shapes / "images" / row["image"], folder / "images")


def write_sites(root: Path, shapes: Path, model: Path, sites: int, keys: bool) -> list[Path]:
    """Write nodes' folders, each with images of its own."""
    if keys:
        provision(root / "keys", sites)
    folders = [root / f"node-{number + 1}" for number in range(sites)]
    fill_sites([folder / "data" for folder in folders], shapes)
    for number, folder in enumerate(folders):
        text = f'number = {number}\ndata = "data"\nmodel = "{model}"\n'
        if keys:
            text += f'identity = "../keys/{number}.key"\nroster = "../keys/roster.json"\n'
        (folder / "node.toml").write_text(text)
    return folders


def settings_of(model: Path) -> dict:
    """Return what `small_run` says of training, with another fixture's model."""
    return {
        **{"model": str(model), "rank": 2, "local_epochs": 1, "batch_size": 8, "workers": 1},
        **{"partition": "iid"},
    }


def server_config(small_run: dict, **changes) -> Config:
    settings = {"data": "none", "references": None, "rounds": 2, "trip_timeout": 0.2}
    return config_from(small_run | settings | changes)


def vector_of(out: Path, config: Config) -> np.ndarray:
    return np.load(out / "checkpoint.npz", allow_pickle=False)["vector"]


def mean_of(nodes: list[Path], config: Config, out: Path) -> np.ndarray:
    """Return the adapter after a round that only these nodes take part in, summed in clear."""
    config = config_from({"protect": "plain", "rounds": 1}, config)
    run_federation(FailingGrid(nodes, config), config, out=out)
    return vector_of(out, config)


def rounding(nodes: list[Path], config: Config) -> float:
    """Return how far a secure mean of these nodes may lie from the exact one, in a parameter."""
    policy = secure_policy(config)
    examples = sum(len(read_node(path / "node.toml").task(config).own) for path in nodes)
    weight = examples / policy.max_weight
    return len(nodes) * policy.plan.step / weight + 4 * np.finfo(np.float32).eps


__all__ = [
    "TRIPS",
    "FailingGrid",
    "Fault",
    "fill_sites",
    "mean_of",
    "rounding",
    "server_config",
    "settings_of",
    "vector_of",
    "write_sites",
]
