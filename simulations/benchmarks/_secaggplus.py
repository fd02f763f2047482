"""The peer: flwr's own SecAgg+ mod and workflow, driven in this process and otherwise untouched."""

import copy
import logging
import time
from collections.abc import Collection, Mapping
from types import SimpleNamespace

import numpy as np
from flwr.app import ArrayRecord, ConfigRecord, Context, Error, Message, MetricRecord, RecordDict
from flwr.client.mod.secure_aggregation.secaggplus_mod import secaggplus_mod
from flwr.common import Code, FitIns, FitRes, Status, ndarrays_to_parameters
from flwr.common.secure_aggregation.secaggplus_constants import (
    RECORD_KEY_CONFIGS,
    Key,
    Stage,
)
from flwr.compat.common import recorddict_compat as compat
from flwr.server.compat.legacy_context import LegacyContext
from flwr.server.workflow import SecAggPlusWorkflow
from flwr.supercore.task_identity import TaskIdentity
from numpy.typing import NDArray

NAME = "flwr 1.41 SecAgg+"
MODULUS = 1 << 32
LEVELS = 1 << 22
CLIP = 8.0
MAX_WEIGHT = 1000
# Numbers in the updates that are attacked.
LENGTH = 16


def _be_somebody() -> None:
    # Messages can be made only by a process that Flower gave an identity.
    TaskIdentity.run_id, TaskIdentity.node_id, TaskIdentity.task_id = 1, 0, 1


class PeerClient:
    """One client of SecAgg+: its context between two messages, and the update it holds."""

    def __init__(self, node: int, update: NDArray[np.float32], examples: int = MAX_WEIGHT) -> None:
        _be_somebody()
        self.node = node
        self.update = update
        self.examples = examples
        self.seconds = 0.0
        self.answer = RecordDict()
        self.context = Context(1, node, {}, RecordDict(), {})

    def _fit(self, message: Message, context: Context) -> Message:
        result = FitRes(
            Status(Code.OK, ""), ndarrays_to_parameters([self.update]), self.examples, {"loss": 2.5}
        )
        return Message(compat.fitres_to_recorddict(result, True), reply_to=message)

    def handle(self, message: Message) -> Message:
        """Answer a message, and add up the CPU seconds."""
        start = time.process_time()
        try:
            return secaggplus_mod(message, self.context, self._fit)
        finally:
            self.seconds += time.process_time() - start

    def ask(self, stage: str, **configs) -> dict:
        """Send one stage's configuration, as a server would, and return the answer's."""
        record = ConfigRecord({Key.STAGE: stage, **configs})
        message = Message(RecordDict({RECORD_KEY_CONFIGS: record}), self.node, "train")
        self.answer = self.handle(message).content
        return dict(self.answer.config_records[RECORD_KEY_CONFIGS])

    def setup(self, samples: int, shares: int, threshold: int, modulus: int = MODULUS) -> list:
        """Ask for keys, and return both."""
        configs = {
            Key.SAMPLE_NUMBER: samples,
            Key.SHARE_NUMBER: shares,
            Key.THRESHOLD: threshold,
            Key.CLIPPING_RANGE: CLIP,
            Key.TARGET_RANGE: LEVELS,
            Key.MOD_RANGE: modulus,
            Key.MAX_WEIGHT: float(MAX_WEIGHT),
        }
        answer = self.ask(Stage.SETUP, **configs)
        return [answer[Key.PUBLIC_KEY_1], answer[Key.PUBLIC_KEY_2]]

    def share(self, keys: Mapping[int, list]) -> dict[int, bytes]:
        """Tell the cohort's keys, and return the encrypted shares by recipient."""
        answer = self.ask(Stage.SHARE_KEYS, **{str(node): pair for node, pair in keys.items()})
        return dict(zip(answer[Key.DESTINATION_LIST], answer[Key.CIPHERTEXT_LIST], strict=True))

    def collect(self, inbox: Mapping[int, bytes]) -> list[bytes]:
        """Hand the shares over, and return the masked vectors."""
        answer = self.ask(
            Stage.COLLECT_MASKED_VECTORS,
            **{Key.SOURCE_LIST: list(inbox), Key.CIPHERTEXT_LIST: list(inbox.values())},
        )
        return answer[Key.MASKED_PARAMETERS]

    def unmask(self, active: Collection[int], dead: Collection[int]) -> list[tuple[int, bytes]]:
        """Ask for shares, and return them with their owners."""
        answer = self.ask(
            Stage.UNMASK,
            **{Key.ACTIVE_NODE_ID_LIST: list(active), Key.DEAD_NODE_ID_LIST: list(dead)},
        )
        return list(zip(answer[Key.NODE_ID_LIST], answer[Key.SHARE_LIST], strict=True))


def updates(count: int, length: int) -> list[NDArray[np.float32]]:
    """Return reproducible small updates."""
    rng = np.random.default_rng([count, length])
    return [rng.normal(0, 1e-3, length).astype(np.float32) for _ in range(count)]


def ready_to_mask(count: int, length: int, neighbours: int) -> tuple[PeerClient, dict[int, bytes]]:
    """Bring a client to the masking stage: the client, and the shares it is sent with it.

    Args:
        count: Clients that are told to exist.
        length: Parameters.
        neighbours: Clients that the returned one masks with.
    """
    update = updates(1, length)[0]
    members = [PeerClient(node, update) for node in range(1, neighbours + 2)]
    shares = len(members)
    keys = {each.node: each.setup(count, shares, shares // 2 + 1) for each in members}
    sent = {each.node: each.share(keys) for each in members}
    first = members[0]
    return first, {node: to[first.node] for node, to in sent.items() if node != first.node}


def _bytes_of(record: ArrayRecord | ConfigRecord | MetricRecord) -> int:
    """Count a record's names and values; Flower's own count fails on an empty text."""
    if not isinstance(record, ConfigRecord):
        return record.count_bytes()
    total = 0
    for name, value in record.items():
        values = value if isinstance(value, list) else [value]
        total += len(name)
        total += sum(len(each) if isinstance(each, bytes | str) else 8 for each in values)
    return total


def peer_uploads(count: int, length: int) -> tuple[int, int]:
    """Return the bytes that one of `count` clients sends: in the masking stage, and in all four."""
    update, nothing = updates(1, length)[0], np.zeros(1, dtype=np.float32)
    members = {node: PeerClient(node, nothing) for node in range(1, count + 1)}
    first = members[1]
    first.update = update
    sent: list[int] = []

    def note() -> None:
        sent.append(sum(map(_bytes_of, first.answer.values())))

    keys = {node: each.setup(count, count, 2 * count // 3) for node, each in members.items()}
    note()
    shares = {node: each.share(keys) for node, each in members.items()}
    note()
    first.collect({node: to[1] for node, to in shares.items() if node != 1})
    note()
    first.unmask(list(members), [])
    note()
    return sent[2], sum(sent)


class _Grid:
    """Hands messages to clients in this process; who is lost in a batch stays away from it."""

    def __init__(self, clients: dict[int, PeerClient], lost: Mapping[int, Collection[int]]) -> None:
        self.clients = clients
        self.lost = lost
        self.batch = 0
        self.errors: list[str] = []

    def send_and_receive(self, messages, *, timeout=None) -> list[Message]:
        """Answer at once."""
        self.batch += 1
        gone = {node for batch, nodes in self.lost.items() if batch <= self.batch for node in nodes}
        answers = []
        for message in messages:
            node = message.metadata.dst_node_id
            if node in gone:
                answers.append(Message(Error(1, "gone"), reply_to=message))
                continue
            try:
                answers.append(self.clients[node].handle(copy.deepcopy(message)))
            except Exception as error:
                self.errors.append(f"{type(error).__name__}: {error}")
                answers.append(Message(Error(2, "raised"), reply_to=message))
        return answers


def run_workflow(
    count: int, length: int, lost: Mapping[int, Collection[int]] | None = None
) -> tuple[float, NDArray | None, list[str]]:
    """Run the whole workflow over a complete graph with a threshold of two thirds.

    Returns:
        CPU seconds of the server alone, the mean or None where the round is lost, and what the
        clients raised.
    """
    logging.getLogger("flwr").setLevel(logging.CRITICAL)
    _be_somebody()
    clients = {
        node: PeerClient(node, update) for node, update in enumerate(updates(count, length), 1)
    }
    grid = _Grid(clients, lost or {})
    first = ndarrays_to_parameters([np.zeros(length, dtype=np.float32)])
    told: list[ArrayRecord] = []

    class Plain:
        """The least that the workflow asks of a strategy."""

        def configure_fit(self, server_round, parameters, client_manager):
            proxies = [SimpleNamespace(node_id=node) for node in clients]
            return [(proxy, FitIns(parameters, {})) for proxy in proxies]

        def aggregate_fit(self, server_round, results, failures):
            told.append(compat.parameters_to_arrayrecord(results[0][1].parameters, True))
            return None, {}

    context = LegacyContext(
        Context(1, 0, {}, RecordDict(), {}),
        strategy=Plain(),  # pyright: ignore[reportArgumentType]
        client_manager=SimpleNamespace(num_available=lambda: count),  # pyright: ignore[reportArgumentType]
    )
    context.state.config_records["config"] = ConfigRecord({"current_round": 1})
    context.state.array_records["parameters"] = compat.parameters_to_arrayrecord(first, True)
    workflow = SecAggPlusWorkflow(
        1.0, 2 / 3, clipping_range=CLIP, quantization_range=LEVELS, modulus_range=MODULUS
    )
    start = time.process_time()
    workflow(grid, context)  # pyright: ignore[reportArgumentType]
    seconds = time.process_time() - start - sum(each.seconds for each in clients.values())
    mean = next(iter(told[0].values())).numpy() if told else None
    return seconds, mean, grid.errors


def folded(key: bytes) -> int:
    """Fold a key as `pseudo_rand_gen` does: its 4-byte pieces XORed."""
    seed = 0
    for start in range(0, len(key), 4):
        seed ^= int.from_bytes(key[start : start + 4], "little")
    return seed


def explains(mask: NDArray[np.int64], seed: int) -> bool:
    """Tell whether a 32-bit seed alone reproduces a mask."""
    drawn = np.random.RandomState(seed).randint(0, MODULUS - 1, len(mask), dtype=np.int64)
    return bool(np.array_equal(mask, drawn))
