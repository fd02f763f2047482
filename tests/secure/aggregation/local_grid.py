"""A Flower `Grid` in this process, which can lose messages and show all that crossed it."""

import copy
import types
from collections.abc import Collection, Mapping

from flwr.app import Context, Error, Message, RecordDict
from flwr.serverapp import Grid
from flwr.supercore.task_identity import TaskIdentity

RUN = 7


class LocalGrid(Grid):
    """Runs a ClientApp for each node; `lose` names nodes that don't answer message number k."""

    def __init__(self, app, nodes: int, lose: Mapping[int, Collection[int]] | None = None):
        TaskIdentity.run_id, TaskIdentity.node_id, TaskIdentity.task_id = RUN, 0, 1
        self.app = app
        self.lose = lose or {}
        self.batch = 0
        self.sent: list[Message] = []
        self.answers: list[Message] = []
        self.tamper = None
        self._box: dict[str, Message] = {}
        self.contexts = {
            # Ids as a SuperLink draws them: large and in no order.
            1000 + 7 * (node * 5 % 11) + node: Context(
                run_id=RUN,
                node_id=1000 + node,
                node_config={"partition-id": node, "num-partitions": nodes},
                state=RecordDict(),
                run_config={},
            )
            for node in range(nodes)
        }

    def set_run(self, run) -> None:
        raise AssertionError("not used")

    @property
    def run(self):
        return types.SimpleNamespace(run_id=RUN)

    def create_message(self, content, message_type, dst_node_id, group_id, ttl=None):
        return Message(content, dst_node_id, message_type, ttl=ttl, group_id=group_id)

    def get_node_ids(self):
        return list(self.contexts)

    def push_messages(self, messages):
        self.batch += 1
        ids = []
        for position, message in enumerate(messages):
            ids.append(f"{self.batch}.{position}")
            message.metadata.__dict__["_message_id"] = ids[-1]
            node = message.metadata.dst_node_id
            if self.tamper is not None:
                message = self.tamper(self.batch, message)
            self.sent.append(copy.deepcopy(message))
            partition = self.contexts[node].node_config["partition-id"]
            if partition in self.lose.get(self.batch, ()):
                self._box[ids[-1]] = Message(Error(10, "gone"), reply_to=message)
                continue
            try:
                reply = self.app(copy.deepcopy(message), self.contexts[node])
            except Exception as error:  # as Flower does, text and all
                reply = Message(Error(2, repr(error)), reply_to=message)
            self.answers.append(copy.deepcopy(reply))
            self._box[ids[-1]] = reply
        return ids

    def pull_messages(self, message_ids):
        return [self._box.pop(each) for each in message_ids if each in self._box]

    def send_and_receive(self, messages, *, timeout=None):
        return self.pull_messages(self.push_messages(list(messages)))
