"""A view of a grid that shows only the clients drawn for a round."""

from flwr.serverapp import Grid


class Subset(Grid):
    """A grid that shows only some of its nodes.

    Args:
        grid: The whole grid.
        nodes: The nodes to show.
    """

    def __init__(self, grid: Grid, nodes: list[int]) -> None:
        self._grid = grid
        self._nodes = nodes

    def get_node_ids(self) -> list[int]:
        """Return the nodes that are shown."""
        return self._nodes

    def __getattr__(self, name: str):
        return getattr(self._grid, name)

    def set_run(self, run) -> None:
        """Set the run that the grid belongs to."""
        self._grid.set_run(run)

    @property
    def run(self):
        """The run that the grid belongs to."""
        return self._grid.run

    def create_message(self, content, message_type, dst_node_id, group_id, ttl=None):
        """Create a message to a node."""
        return self._grid.create_message(content, message_type, dst_node_id, group_id, ttl)

    def push_messages(self, messages):
        """Deliver messages."""
        return self._grid.push_messages(messages)

    def pull_messages(self, message_ids):
        """Return the replies that have come."""
        return self._grid.pull_messages(message_ids)

    def send_and_receive(self, messages, *, timeout=None):
        """Deliver messages and return the replies."""
        return self._grid.send_and_receive(messages, timeout=timeout)
