"""What a client does around its training by the run's rule: reads what came, says what leaves."""

import json
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
from flwr.app import Array, ArrayRecord, ConfigRecord, Context, Message
from numpy.typing import NDArray

from fedvlm.config.rules import keeps_personal, sends_all
from fedvlm.errors import IntegrityError
from fedvlm.federation.installing import install
from fedvlm.federation.node import Node
from fedvlm.federation.personal import PersonalPart
from fedvlm.federation.records import VECTOR
from fedvlm.federation.rules import CoordinateRule, FlexLoRA, rule_of
from fedvlm.federation.task import Task

REST, SECOND = "rest", "second-sum"
"""Names in a message's config: vectors that aren't summed, as bytes; whether it asks for the
second sum of a round."""
_WAITING = "rule-waiting"
_LEAST_SCORED = 2

_MOST_ROUNDS = 1 << 20

Told = dict[str, int | float]


def read_round(message: Message, what: str) -> tuple[int, NDArray[np.floating], ConfigRecord]:
    """Read what a server sends an adapter with.

    Args:
        message: From the server.
        what: What it asks for, a verb.

    Returns:
        The round, from 1; the adapter as it came; and the configuration beside it.

    Raises:
        IntegrityError: A part is missing, or the round is none.
    """
    settings, arrays = message.content.get("config"), message.content.get("arrays")
    if not isinstance(arrays, ArrayRecord) or not isinstance(settings, ConfigRecord):
        raise IntegrityError(f"the message to {what} has no arrays or no config")
    number = settings.get("server-round")
    if type(number) is not int or not 1 <= number <= _MOST_ROUNDS or VECTOR not in arrays:
        raise IntegrityError(f"the message to {what} names no round, or holds no adapter")
    return number, arrays[VECTOR].numpy(), settings


def to_bytes(vector: NDArray[np.floating]) -> bytes:
    """Write a vector as float32, little-endian."""
    return vector.astype("<f4").tobytes()


def _from_bytes(data: object, size: int) -> NDArray[np.float32]:
    """Read a vector of one length.

    Raises:
        IntegrityError: It is none of this length, or not finite.
    """
    if not isinstance(data, bytes) or len(data) != 4 * size:
        got = f"{len(data)} bytes" if isinstance(data, bytes) else type(data).__name__
        raise IntegrityError(f"the message's rest holds {got}, expected {4 * size} bytes")
    return _sound(np.frombuffer(data, dtype="<f4").astype(np.float32), size)


def _sound(vector: NDArray, size: int) -> NDArray[np.float32]:
    if vector.shape != (size,) or vector.dtype != np.float32:
        raise IntegrityError(
            f"expected {size} float32 values for this round, got {vector.dtype} {vector.shape}"
        )
    if not np.isfinite(vector).all():
        raise IntegrityError("the message holds values that are not finite")
    return vector


class Exchange:
    """One round of a client under the run's aggregation rule.

    Args:
        task: Model, adapter and the node's pairs.
        node: Whose they are.
        context: Flower's, for its state.
        number: Round, from 1.
    """

    def __init__(self, task: Task, node: Node, context: Context, number: int) -> None:
        self._task, self._node, self._context, self._number = task, node, context, number
        self._rule = rule_of(task.config, task.view.layout)
        self._personal: PersonalPart | None = None
        if isinstance(self._rule, CoordinateRule) and keeps_personal(task.config):
            size = task.view.size - int(self._rule.common.sum())
            self._personal = PersonalPart(node, context.state, task.config, task.view.schema, size)

    def receive(
        self, vector: NDArray, settings: ConfigRecord
    ) -> tuple[NDArray[np.float32], Told] | None:
        """Put what came into the model, or answer at once where it asks for a second sum.

        Args:
            vector: What is summed, as the server has it.
            settings: The message's config: schema, and the rest of the state.

        Returns:
            What to send, and what to tell; None where the client is to train.

        Raises:
            IntegrityError: Another schema or length, a value that isn't finite, or a second sum
                of a round that this client has not trained in.
        """
        schema, task, rule = str(settings.get("schema")), self._task, self._rule
        if sends_all(task.config):
            task.view.write(vector, schema)
            return None
        if settings.get(SECOND) is True:
            return self._second(settings)
        fresh, number = task.initial, self._number
        sent = _sound(vector, rule.encode(fresh, number).size)
        rest = _from_bytes(settings.get(REST, b""), rule.rest(rule.start(fresh), number).size)
        state = rule.receive(self._own(), sent, rest, number)
        if isinstance(rule, FlexLoRA):
            state = rule.for_site(state, self._node.number)
        install(task, rule, state, schema)
        return None

    def _own(self) -> NDArray[np.float32]:
        """Return an adapter whose personal part is the node's own."""
        own = self._task.initial.copy()
        if self._personal is None or not isinstance(self._rule, CoordinateRule):
            return own
        part = self._personal.before(self._number)
        if part is not None:
            own[~self._rule.common] = part
        return own

    @contextmanager
    def training(self) -> Iterator[None]:
        """Let only those parameters train whose turn it is."""
        frozen = []
        if isinstance(self._rule, CoordinateRule):
            turn, start = self._rule.trained(self._number), 0
            for parameter in self._task.view.parameters:
                if not turn[start]:
                    frozen.append(parameter)
                start += parameter.numel()
        for parameter in frozen:
            parameter.requires_grad_(False)
        try:
            yield
        finally:
            for parameter in frozen:
                parameter.requires_grad_(True)

    def send(self, vector: NDArray, told: Told) -> NDArray:
        """Return what leaves of what was trained; what is personal is on the disk by then.

        Args:
            vector: Shape (P,): the trained adapter.
            told: What is told beside it, for a second sum to tell again.
        """
        if sends_all(self._task.config):
            return vector
        if self._personal is not None and isinstance(self._rule, CoordinateRule):
            self._personal.keep(self._number, vector[~self._rule.common], self._score())
        if self._rule.passes > 1:
            self._context.state[_WAITING] = ArrayRecord({"adapter": Array(vector)})
            text = json.dumps([self._number, told])
            self._context.state[f"{_WAITING}-told"] = ConfigRecord({"json": text})
        return self._rule.encode(vector, self._number)

    def _score(self) -> float | None:
        """Score the adapter on what the node holds out; the score stays here.

        A simulated node scores in the last round alone: the pairs are the same for all of them.
        """
        task, part = self._task, self._task.splits.test
        last = self._number >= task.config.training.rounds
        if len(part) < _LEAST_SCORED or (self._node.data is None and not last):
            return None
        return task.scores({"test": part})[f"test_{task.metric}"]

    def _second(self, settings: ConfigRecord) -> tuple[NDArray[np.float32], Told]:
        """Answer the second sum of the round that was trained in, once."""
        rule, state = self._rule, self._context.state
        kept = state.array_records.pop(_WAITING, None)
        text = state.config_records.pop(f"{_WAITING}-told", None)
        if isinstance(rule, CoordinateRule):
            raise IntegrityError("a second sum is asked for, and the run's rule takes one")
        number, told = (0, {}) if text is None else json.loads(str(text["json"]))
        if kept is None or number != self._number:
            raise IntegrityError(
                f"a second sum is asked for in round {self._number}, in which this client has "
                "sent no first one, or has answered already"
            )
        basis = _from_bytes(settings.get(REST), rule.sketch.first)
        return rule.project(kept["adapter"].numpy(), basis), told
