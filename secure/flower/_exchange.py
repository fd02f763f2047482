"""Messages through a grid, and their answers as they arrive."""

import time
from collections.abc import Iterator

from secure.errors import MissingExtraError

try:
    from flwr.app import Message
    from flwr.serverapp import Grid
except ImportError:
    raise MissingExtraError("flwr", "sim") from None

_PULL_FIRST_S, _PULL_MOST_S = 0.02, 1.0


def exchange(
    grid: Grid, messages: list[Message], timeout_s: float
) -> Iterator[tuple[int, Message]]:
    """Send messages and give each answer out as it arrives, with the node it was asked of."""
    # A grid that could not push gives None for a message, or no ids at all.
    pushed = zip(grid.push_messages(messages), messages, strict=False)
    waiting = {each: message.metadata.dst_node_id for each, message in pushed if each}
    deadline = time.monotonic() + timeout_s
    pause = _PULL_FIRST_S
    while waiting:
        arrived = False
        for reply in grid.pull_messages(list(waiting)):
            node = waiting.pop(reply.metadata.reply_to_message_id, None)
            if node is not None:
                arrived = True
                yield node, reply
        if not waiting or time.monotonic() > deadline:
            return
        if not arrived:
            time.sleep(pause)
            pause = min(2 * pause, _PULL_MOST_S)
