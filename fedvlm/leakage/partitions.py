"""Whose reply is whose: the partition number of each node that a transcript names.

In process nodes are numbered from 1, in the order of the partitions. Flower's engines name them by
random 64-bit numbers instead; then the transcript's index must say which holds which partition.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

_MOST = 10_000


@dataclass(frozen=True)
class Partitions:
    """The nodes of a run.

    Attributes:
        count: Number of nodes, each with a partition in [0, count).
        by_id: Node id → partition, where nodes have ids; else empty.
    """

    count: int
    by_id: Mapping[int, int]

    @classmethod
    def of_index(cls, index: Mapping[str, Any]) -> "Partitions":
        """Read them from the index of a transcript.

        Args:
            index: With `nodes`, their number, and perhaps `node_ids`: ids in the order of the
                partitions, or a mapping of ids to partitions or the other way round. JSON keeps
                ids as whole numbers or as text.

        Raises:
            ValueError: The index doesn't say how many there are, or gives a partition twice.
        """
        count = index.get("nodes")
        if type(count) is not int or not 0 < count <= _MOST:
            raise ValueError("a transcript needs a number of nodes")
        told = index.get("node_ids") or {}
        if isinstance(told, Sequence) and not isinstance(told, str):
            told = {str(one): place for place, one in enumerate(told)}
        if not isinstance(told, Mapping):
            raise ValueError("node_ids is neither a list nor a mapping")
        by_id = {_whole(one): _whole(place) for one, place in told.items()}
        if by_id and set(by_id) <= set(range(count)) and max(by_id.values()) >= count:
            by_id = {one: place for place, one in by_id.items()}
        places = list(by_id.values())
        if len(set(places)) < len(places) or not all(0 <= place < count for place in places):
            raise ValueError("node_ids gives a partition twice, or one that isn't there")
        return cls(count, by_id)

    def of(self, nodes: NDArray) -> NDArray[np.int64]:
        """Return the partitions of nodes.

        Args:
            nodes: Shape (k,), whole numbers: ids where these are known, else partitions from 1.

        Raises:
            ValueError: A node is unknown or occurs twice, or ids were kept in floating point, which
                loses their last digits.
        """
        if nodes.dtype.kind == "U":
            ids = [_whole(one) for one in nodes.tolist()]
        elif nodes.dtype.kind in "iu":
            ids = nodes.tolist()  # exact whole numbers: a uint64 beside an int64 would be a double
        elif nodes.dtype.kind == "f" and (np.abs(nodes) < 2**53).all():
            ids = [_whole(one) for one in nodes.tolist()]
        else:
            raise ValueError("node ids lost digits in floating point")
        if self.by_id and all(one in self.by_id for one in ids):
            places = [self.by_id[one] for one in ids]
        elif all(1 <= one <= self.count for one in ids):
            places = [one - 1 for one in ids]
        else:
            raise ValueError("a node id is neither a partition's number nor in node_ids")
        if len(set(places)) < len(places):
            raise ValueError("a node answered twice in a round")
        return np.array(places, dtype=np.int64)


def _whole(value: Any) -> int:
    """Return a whole number that JSON or NumPy keeps as a number or as text."""
    if isinstance(value, bool) or (isinstance(value, float) and value != int(value)):
        raise ValueError("a node's number isn't whole")
    return int(value)
