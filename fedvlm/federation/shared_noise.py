"""Example-level DP with shared noise in a federation: the server decodes one secure sum."""

from typing import Any

from flwr.serverapp.strategy import Strategy
from numpy.typing import NDArray

from fedvlm.config import Config
from fedvlm.federation.distributed import DistributedStrategy
from fedvlm.federation.head_plan import shared_mechanism
from fedvlm.federation.private import PrivateStrategy
from fedvlm.federation.roll import Roll
from fedvlm.privacy import Ledger, Relation
from fedvlm.privacy.shared_noise import SharedNoise


class SharedNoiseStrategy(DistributedStrategy):
    """Turns the secure sum of noised integers into the adapter.

    Args:
        inner: The strategy that turns the mean into the next adapter; it sees one reply.
        config: The federation's configuration.
        size: Parameters P of the adapter.
        images: Images of all clients together, a public number that the sum is divided by.
        roll: Knows the nodes' numbers; one of its own where None.

    Guarantees:
        Example-level DP, as the ledger says, of the sum that the server gets, against the server
        too, as long as `least_noised` honest clients are in it, each with its share: clients that
        leave theirs out count among those that collude, one in ten of the cohort. Neighbours
        differ in one image, all its captions included, at one client.
    """

    unit = "example"
    relation = Relation.ADD_OR_REMOVE

    def __init__(
        self,
        inner: Strategy,
        config: Config,
        size: int,
        images: int,
        roll: Roll | None = None,
    ) -> None:
        PrivateStrategy.__init__(self, inner, config, roll)
        self.mechanism: SharedNoise = shared_mechanism(config, size)
        self._images = images
        self._start(Ledger("example", config.privacy.epsilon, config.privacy.delta))

    def describe(self) -> dict[str, Any]:
        """Return the entry `privacy` of a result."""
        told = {"clip_norm": self.mechanism.clip_norm, "images": self._images}
        return super().describe() | told

    def _decoded(self, total: NDArray, server_round: int, count: int) -> NDArray:
        return self.mechanism.decode(total, count) / self._images
