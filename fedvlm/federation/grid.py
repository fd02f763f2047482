"""Flower's `Grid` in one process: no Ray, no network, no SuperLink.

Messages are copied on their way in and out, so that no two parties share memory, each node keeps
its own `Context`, and ids look like SuperLink's: 64 random bits, in no order.
"""

import copy
import hashlib
import itertools
import os
import threading
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from types import SimpleNamespace
from typing import Any

from flwr.app import Context, Error, Message, RecordDict
from flwr.serverapp import Grid
from flwr.supercore.task_identity import TaskIdentity

_RUN_ID = 1
_SERVER = 0
_CLIENT_FAILED = 2  # what Flower reports for a client app that raised

ClientFn = Callable[[Message, Context], Message]


def _ids(nodes: int, seed: int) -> tuple[int, ...]:
    """Return ids like Flower's: uint64, on both sides of 2^63, in no order."""
    out: dict[int, None] = {}
    number = 0
    while len(out) < nodes:
        digest = hashlib.sha256(f"{seed}/{number}".encode()).digest()
        # Alternating, so that two nodes suffice for what would go wrong with a signed number.
        top = (len(out) % 2) << 63
        out[(int.from_bytes(digest[:8], "big") >> 1) + 1 & ((1 << 63) - 1) | top] = None
        number += 1
    return tuple(out)


class InProcessGrid(Grid):
    """A grid whose nodes are threads of this process.

    Args:
        client_app: Flower's `ClientApp`, or any function of message and context.
        nodes: Number of nodes, at least 1.
        run_config: Run config that every node's context carries.
        workers: Clients handled at the same time, 0 for one a core. Replies come back in the
            order of the messages, so that this does not change a result.
        seed: Decides the nodes' ids.

    Attributes:
        node_ids: Ids by number: node k has `partition-id` k.
        contexts: Each node's context, by id.
        errors: What a node's client app raised last, by id.

    Example:
        >>> grid = InProcessGrid(lambda m, c: Message(RecordDict(), reply_to=m), nodes=2)
        >>> message = Message(RecordDict(), dst_node_id=grid.node_ids[1], message_type="train")
        >>> (reply,) = grid.send_and_receive([message])
        >>> reply.metadata.src_node_id == grid.node_ids[1]
        True
    """

    def __init__(
        self,
        client_app: ClientFn,
        nodes: int,
        run_config: dict[str, Any] | None = None,
        workers: int = 1,
        seed: int = 0,
    ) -> None:
        # Messages ask for the identity of the process's task, which SuperLink would have set.
        TaskIdentity.run_id, TaskIdentity.node_id, TaskIdentity.task_id = _RUN_ID, _SERVER, 1
        self._client_app = client_app
        # One pool for the grid's life: a thread keeps its model from message to message.
        self._pool = ThreadPoolExecutor(max_workers=workers or os.cpu_count() or 1)
        self._numbers = itertools.count(1)
        self._replies: dict[str, Message] = {}
        self._run = SimpleNamespace(run_id=_RUN_ID)
        self.node_ids = _ids(nodes, seed)
        self._locks = {node: threading.Lock() for node in self.node_ids}
        self.contexts = {
            node: Context(
                run_id=_RUN_ID,
                node_id=node,
                node_config={
                    "partition-id": number,
                    "num-partitions": nodes,
                    "simulated": True,  # everybody's data are in this process anyway
                },
                state=RecordDict(),
                run_config=dict(run_config or {}),
            )
            for number, node in enumerate(self.node_ids)
        }
        self.errors: dict[int, Exception] = {}

    def set_run(self, run: Any) -> None:
        """Set the run that this grid belongs to."""
        self._run = run

    @property
    def run(self) -> Any:
        """The run that this grid belongs to."""
        return self._run

    def create_message(
        self,
        content: RecordDict,
        message_type: str,
        dst_node_id: int,
        group_id: str,
        ttl: float | None = None,
    ) -> Message:
        """Create a message to a node."""
        return Message(content, dst_node_id, message_type, ttl=ttl, group_id=group_id)

    def get_node_ids(self) -> list[int]:
        """Return the nodes' ids."""
        return list(self.contexts)

    def _handle(self, message: Message) -> Message:
        node = message.metadata.dst_node_id
        try:
            with self._locks[node]:  # a node handles one message at a time, as a SuperNode does
                reply = self._client_app(copy.deepcopy(message), self.contexts[node])
        except Exception as error:
            # As over a network: the server learns that the client failed, and not why.
            self.errors[node] = error
            return Message(Error(_CLIENT_FAILED, "client app failed"), reply_to=message)
        return copy.deepcopy(reply)

    def push_messages(self, messages: Iterable[Message]) -> list[str]:
        """Deliver messages and keep the replies; returns the messages' ids."""
        batch = list(messages)
        for message in batch:
            message.metadata.__dict__["_message_id"] = f"m{next(self._numbers)}"
        replies = list(self._pool.map(self._handle, batch))
        ids = [message.metadata.message_id for message in batch]
        self._replies.update(zip(ids, replies, strict=True))
        return ids

    def pull_messages(self, message_ids: Iterable[str]) -> list[Message]:
        """Return the replies to these messages, each once."""
        return [self._replies.pop(i) for i in message_ids if i in self._replies]

    def send_and_receive(
        self, messages: Iterable[Message], *, timeout: float | None = None
    ) -> list[Message]:
        """Deliver messages and return the replies, in the messages' order."""
        return self.pull_messages(self.push_messages(messages))
