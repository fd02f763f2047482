"""Who is there: nodes by their client number, so that the seed decides who is drawn.

Flower numbers nodes by random 64-bit ids, anew at each start; drawn in the order of their ids, the
same seed would take other clients each time. So each node is asked once for its own number, and
then whether it would train on the same terms: who differs takes no part, and costs no round.
"""

import logging
import time
from collections.abc import Iterable, Mapping

from flwr.app import ConfigRecord, Context, Message, RecordDict
from flwr.serverapp import Grid

from fedvlm.federation.floor import DIFFERENCES, REFUSALS

log = logging.getLogger("fedvlm")

QUERY, AGREE = "query", "agree"
"""Type of the message that asks for a number; action of the one that asks for agreement, whose type
is `query.agree`."""
FACTS = "facts"
_RECORD = "config"
_KEY, _SIMULATED = "number", "simulated"
_MOST = 1 << 31
_POLL_S = 0.2
_NAMES = {number: name for name, number in REFUSALS.items()}


def tell_number(message: Message, number: int, simulated: bool = False) -> Message:
    """Return a node's answer to the question for its number.

    Args:
        message: What asked.
        number: The node's number, from 0.
        simulated: Whether it runs on the server's own machine, with the server's own libraries.
    """
    told: dict[str, int | bool] = {_KEY: number}
    if simulated:
        told[_SIMULATED] = True
    return Message(RecordDict({_RECORD: ConfigRecord({**told})}), reply_to=message)


def own_number(context: Context) -> int:
    """Return the number, from 0, that a node's own configuration gives it; -1 for none."""
    number = context.node_config.get("partition-id")
    return number if type(number) is int and number >= 0 else -1


def number_told(reply: Message) -> int | None:
    """Return the number that a reply tells; None where it tells none."""
    value = _told(reply, _KEY)
    return value if type(value) is int and 0 <= value < _MOST else None


def _told(reply: Message, key: str) -> object:
    if reply.has_error():
        return None
    record = reply.content.get(_RECORD)
    return record.get(key) if isinstance(record, ConfigRecord) else None


class Roll:
    """The numbers of the nodes that are there, each asked for once, and who agrees.

    A number is what a node says of itself, and decides no more than when it is drawn and under
    which number its bytes and its ε are kept. Of two nodes with one number the first counts, and
    the other takes no part while that one is there. Nodes that tell none (another app's) get the
    free numbers in the order of their ids, and are not asked to agree; nor are simulated ones.

    Args:
        most: Numbers in [0, most) take part; None for all.
        timeout_s: Seconds that the nodes have for an answer.
        facts: What every node must agree to, see `fedvlm.federation.agreement`; None asks nothing.
        agree_s: Seconds that the nodes have to load their model and compare.

    Attributes:
        refused: Number of a node that doesn't agree → code of the reason. It is asked again with
            the next round, since its owner may have mended it.
    """

    def __init__(
        self,
        most: int | None = None,
        timeout_s: float = 60.0,
        facts: Mapping[str, str] | None = None,
        agree_s: float = 600.0,
    ) -> None:
        self._most = _MOST if most is None else most
        self._timeout_s = timeout_s
        self._facts, self._agree_s = facts, agree_s
        self._told: dict[int, int | None] = {}
        self._numbers: dict[int, int] = {}
        self._warned: set[tuple[int, str]] = set()
        self._left_out: set[int] = set()
        self._agreed: set[int] = set()
        self.refused: dict[int, str] = {}

    def gather(self, grid: Grid, least: int, seconds: float) -> list[int]:
        """Return the nodes that take part, as `call` does, once they are there.

        Args:
            grid: Who is there.
            least: How many to wait for; who refuses, or is left out, has come too.
            seconds: Longest to wait; then those that are there have to do.
        """
        end = time.monotonic() + seconds
        while True:
            while len(list(grid.get_node_ids())) < least and time.monotonic() < end:
                time.sleep(_POLL_S)
            found = self.call(grid)
            come = len(found) + len(self.refused) + len(self._left_out)
            if come >= least or time.monotonic() >= end:
                return found
            time.sleep(_POLL_S)  # some are silent as yet: to load a model takes a while

    def call(self, grid: Grid) -> list[int]:
        """Return the ids of the nodes that are there and take part, in the order of numbers."""
        there = sorted(grid.get_node_ids())
        self._ask(grid, [node for node in there if node not in self._told])
        self._assign(there)
        numbered = [node for node in there if node in self._numbers]
        if self._facts is not None:
            self._agree(grid, [node for node in numbered if node not in self._agreed])
            numbered = [node for node in numbered if node in self._agreed]
        return sorted(numbered, key=self._numbers.__getitem__)

    def number(self, node: int) -> int:
        """Return the number, from 0, of a node that `call` has returned."""
        return self._numbers[node]

    def _ask(self, grid: Grid, nodes: Iterable[int]) -> None:
        messages = [Message(RecordDict(), dst_node_id=n, message_type=QUERY) for n in nodes]
        if not messages:
            return
        for reply in grid.send_and_receive(messages, timeout=self._timeout_s):
            # A node that is silent is asked again with the next round; one that answers without
            # a number has none.
            node, number = reply.metadata.src_node_id, number_told(reply)
            self._told[node] = number
            if number is None or _told(reply, _SIMULATED) is True:
                self._agreed.add(node)

    def _agree(self, grid: Grid, nodes: list[int]) -> None:
        """Ask nodes whether they agree; who is silent, or doesn't, takes no part in this round."""
        if not nodes:
            return
        content = RecordDict({FACTS: ConfigRecord({**(self._facts or {})})})
        kind = f"{QUERY}.{AGREE}"
        messages = [Message(content, dst_node_id=node, message_type=kind) for node in nodes]
        for reply in grid.send_and_receive(messages, timeout=self._agree_s):
            node = reply.metadata.src_node_id
            if node not in self._numbers:
                continue
            number = self._numbers[node]
            if reply.has_error():
                code = _NAMES.get(reply.error.code, "node")
                self.refused[number] = code
                self._warn_refusal(number, code)
            else:
                self._agreed.add(node)
                self.refused.pop(number, None)

    def _warn_refusal(self, number: int, code: str) -> None:
        if (number, code) in self._warned:
            return
        self._warned.add((number, code))
        why = DIFFERENCES.get(code, "it refuses the run")
        log.warning("client %d is left out (%s): %s", number + 1, code, why)

    def _assign(self, there: list[int]) -> None:
        taken = {self._numbers[node] for node in there if node in self._numbers}
        ever = set(self._numbers.values())
        fresh = [node for node in there if node not in self._numbers]
        for node in fresh:
            number = self._told.get(node)
            if number is None:
                continue
            if number >= self._most or number in taken:
                self._warn(node, number, number in taken)
                continue
            self._numbers[node] = number
            taken.add(number)
        ever |= taken
        number = 0
        for node in fresh:
            # Silent ones aren't among those that have told that they have none.
            if self._told.get(node, number) is None:
                while number in ever:
                    number += 1
                self._numbers[node] = number
                ever.add(number)

    def _warn(self, node: int, number: int, double: bool) -> None:
        if node in self._left_out:
            return
        self._left_out.add(node)
        why = (
            "which another node has too; give each node a number of its own"
            if double
            else f"and the run is for {self._most}; raise clients or end that node"
        )
        log.warning("node %d is left out: it says it is client %d, %s", node, number + 1, why)
