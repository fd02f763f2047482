"""What an aggregation rule is: what a client sends, and what a mean of that makes of the adapter.

A rule is a value made from public facts (the configuration and the adapter's layout), the same on
the server and on every node. It sees no model, no network and no protection.
"""

from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from fedvlm.errors import ConfigError

Vector = NDArray[np.float32]


class AggregationRule(Protocol):
    """How clients' adapters become the next one.

    The *state* is what the server keeps and sends on: the adapter, shape (P,), and what a rule
    puts behind it. A round takes `passes` sums, each of vectors of one length.
    """

    @property
    def linear(self) -> bool:
        """Whether weighted means of what clients encode are all that is needed of them.

        Then the rule runs under secure aggregation and under encryption.
        """
        ...

    @property
    def passes(self) -> int:
        """Sums in a round, 1 or 2."""
        ...

    def start(self, adapter: Vector) -> Vector:
        """Return the state before the first round."""
        ...

    def adapter(self, state: Vector) -> Vector:
        """Return the adapter of a state, shape (P,)."""
        ...

    def encode(self, adapter: Vector, number: int) -> Vector:
        """Return what a client sends that has trained `adapter`.

        Args:
            adapter: Shape (P,).
            number: Round, from 1.
        """
        ...

    def rest(self, state: Vector, number: int) -> Vector:
        """Return what else of the state a node must be sent: it may have missed a round."""
        ...

    def receive(self, own: Vector, sent: Vector, rest: Vector, number: int) -> Vector:
        """Return the state as a node sees it, from the two vectors that came.

        Args:
            own: Shape (P,): the node's personal part is taken from here, where the rule has one.
            sent: What `encode` gave of the server's adapter.
            rest: What `rest` gave.
            number: Round, from 1.
        """
        ...

    def decode(self, mean: Vector, state: Vector, number: int) -> Vector:
        """Return the next state of a rule with one pass, from the mean of what clients sent."""
        ...


class ProductRule(AggregationRule, Protocol):
    """A rule over products B·A, in two sums: a sketch of their column space, then coordinates."""

    def basis(self, mean: Vector, number: int) -> Vector:
        """Return orthonormal columns for each layer, from the mean of the first sum."""
        ...

    def project(self, adapter: Vector, basis: Vector) -> Vector:
        """Return what a client sends in the second sum: QᵀB·A for each layer."""
        ...

    def finish(self, mean: Vector, coordinates: Vector, basis: Vector, state: Vector) -> Vector:
        """Return the next state from both means."""
        ...


def require_linear(rule: AggregationRule, protect: str) -> None:
    """Refuse a rule that needs single updates where only their sum is known.

    Args:
        rule: The rule.
        protect: How updates are summed.

    Raises:
        ConfigError: The rule isn't linear, and the sum hides single updates.
    """
    if protect != "plain" and not rule.linear:
        raise ConfigError(
            f"{type(rule).__name__} needs each client's update, and protect = {protect!r} shows "
            'the server their sum alone; choose a linear rule, or protect = "plain"'
        )
