"""How updates are summed: the seam behind which secure aggregation or HE takes its place."""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from flwr.serverapp.strategy import Strategy

from fedvlm.config import SimulationConfig


@dataclass(frozen=True)
class Protected:
    """A strategy whose summing is protected in some way, or not at all.

    Attributes:
        strategy: What runs the round.
        name: Name of the protection, as in the configuration.
        parameters: What an expert wants to know of it.
        round_report: Returns what to add to a round's entry, by its number.
    """

    strategy: Strategy
    name: str
    parameters: dict[str, Any] = field(default_factory=dict)
    round_report: Callable[[int], dict[str, Any]] = lambda number: {}

    def describe(self) -> dict[str, Any]:
        """Return the entry `protection` of a result."""
        return {"name": self.name, "mode": "sum", "parameters": self.parameters}


def protected(inner: Strategy, config: SimulationConfig) -> Protected:
    """Wrap a Flower strategy in the protection that the configuration asks for.

    `plain` hides nothing from the server: it is the oracle that every other one must equal.
    """
    return Protected(inner, config.protect, {"server_sees": "every client's adapter"})
