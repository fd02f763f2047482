"""Example-level DP of heads where each client hides its images alone: the server's ledgers."""

from collections.abc import Iterable
from typing import Any

from flwr.app import ArrayRecord, Message, MetricRecord
from flwr.serverapp.strategy import FedAvg

from fedvlm.config import Config
from fedvlm.federation.head_plan import own_mechanism
from fedvlm.federation.private import ExampleLevelStrategy, PrivateStrategy
from fedvlm.federation.roll import Roll
from fedvlm.privacy import Ledger


class OwnNoiseStrategy(ExampleLevelStrategy):
    """Keeps the ledgers of clients that each noise the sum of their images' bounded terms.

    Args:
        inner: The strategy that takes the mean.
        config: The federation's configuration.
        images: Images of all clients together, a public number that sums are divided by.
        roll: Knows the nodes' numbers; one of its own where None.

    Guarantees:
        Example-level DP, as the ledgers say, of each client's reply by itself: nobody else need be
        honest. Neighbours differ in one image, all its captions included, at one client.
    """

    aggregates_mean_only = True

    def __init__(
        self, inner: FedAvg, config: Config, images: int, roll: Roll | None = None
    ) -> None:
        PrivateStrategy.__init__(self, inner, config, roll)
        self._mechanism, self._steps, self._images = own_mechanism(config), 1, images
        self._ledgers: dict[int, Ledger] = {}

    def aggregate_train(
        self, server_round: int, replies: Iterable[Message]
    ) -> tuple[ArrayRecord | None, MetricRecord | None]:
        """Let the inner strategy take the mean."""
        # Written out, since `aggregates_mean_only` speaks for the class that defines this alone.
        return super().aggregate_train(server_round, replies)

    def describe(self) -> dict[str, Any]:
        """Return the entry `privacy` of a result."""
        return super().describe() | {
            "clip_norm": self._mechanism.sensitivity,
            "images": self._images,
        }
