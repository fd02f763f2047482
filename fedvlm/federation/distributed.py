"""Distributed DP in a federation: clients noise integers, the server decodes their secure sum."""

import logging
from collections.abc import Callable, Iterable
from dataclasses import replace
from functools import lru_cache
from typing import TYPE_CHECKING, Any

import numpy as np
from flwr.app import ArrayRecord, ConfigRecord, Message, MetricRecord
from flwr.serverapp import Grid
from flwr.serverapp.strategy import Strategy
from numpy.typing import NDArray

from fedvlm.config import Config
from fedvlm.errors import IntegrityError
from fedvlm.federation.private import PrivateStrategy
from fedvlm.federation.private_client import distributed_mechanism, rotation_seed
from fedvlm.federation.records import VECTOR, one_reply
from fedvlm.federation.roll import Roll
from fedvlm.privacy import Ledger, Relation
from fedvlm.privacy.shared_noise import SharedNoise
from fedvlm.privacy.skellam import SkellamMechanism

log = logging.getLogger("fedvlm")

if TYPE_CHECKING:
    from secure.aggregation import Policy


@lru_cache(maxsize=4)
def distributed_policy(config: Config, size: int) -> "Policy":
    """Return the terms of the secure sum that distributed DP needs.

    A cohort may turn out smaller than it was planned. Its own quorum would then let through sums
    with less noise than the ledger assumes, so the planned quorum is the floor that each client
    holds: below it nobody unmasks.

    Args:
        config: The federation's configuration.
        size: Parameters P of the adapter.
    """
    from secure.aggregation import Policy

    if config.privacy.dp == "example":
        from fedvlm.federation.head_plan import shared_mechanism

        plan = shared_mechanism(config, size).lanes()
    else:
        plan = distributed_mechanism(config, size).lanes()
    # Clients clip before they rotate; what is summed are integers, which nothing may rescale.
    terms = Policy(plan=plan, clip="none", update="delta", roster=config.nodes)
    return replace(terms, min_clients=terms.sharing(plan.clients).quorum)


class DistributedStrategy(PrivateStrategy):
    """Turns the mean of noised integers, which secure aggregation hands on, into the next adapter.

    Args:
        inner: The strategy that turns the mean into the next adapter; it sees one reply.
        config: The federation's configuration.
        size: Parameters P of the adapter.
        roll: Knows the nodes' numbers; one of its own where None.

    Attributes:
        summed: Returns how many clients the secure sum at hand holds; the protocol's own count.

    Guarantees:
        Client-level DP, as the ledger says, of the sum that the server gets, against the server
        too, as long as it gets sums of at least `least_noised` honest clients only: that is
        what the secure aggregation below enforces. Neighbours differ in what one client sends, its
        update or zero; who takes part is public.
    """

    unit = "client"
    relation = Relation.ZERO_OUT
    aggregates_mean_only = True

    def __init__(
        self, inner: Strategy, config: Config, size: int, roll: Roll | None = None
    ) -> None:
        super().__init__(inner, config, roll)
        self.mechanism: SkellamMechanism | SharedNoise = distributed_mechanism(config, size)
        self._start(Ledger("client", config.privacy.epsilon, config.privacy.delta))

    def _start(self, ledger: Ledger) -> None:
        self._ledger = ledger
        self._global: NDArray[np.float32] = np.empty(0, dtype=np.float32)
        self.summed: Callable[[], int] = lambda: 0

    def configure_train(
        self, server_round: int, arrays: ArrayRecord, config: ConfigRecord, grid: Grid
    ) -> Iterable[Message]:
        """Pay for the round, then send.

        Raises:
            BudgetExceeded: The budget doesn't hold the round; no message was sent.
        """
        self._ledger.spend(self.mechanism)
        self._global = arrays[VECTOR].numpy()
        messages = list(super().configure_train(server_round, arrays, config, grid))
        self._paid(arrays)
        return messages

    def aggregate_train(
        self, server_round: int, replies: Iterable[Message]
    ) -> tuple[ArrayRecord | None, MetricRecord | None]:
        """Decode the mean of the integers; one that holds none leaves the model as it is.

        Raises:
            IntegrityError: What came is not one secure mean.
            DropoutError: Fewer clients are in the sum than the noise was planned for.
        """
        batch = list(replies)
        if len(batch) != 1 or batch[0].has_error():
            raise IntegrityError(
                f"distributed DP takes one secure mean a round, got {len(batch)} replies"
            )
        content = batch[0].content
        mean = next(iter(content.array_records.values()))[VECTOR].numpy().astype(np.float64)
        # Of the protocol's own count: what clients say of their examples is theirs to say.
        count = self.summed()
        total = np.rint(mean * count)
        if mean.shape != (self.mechanism.dimension,) or not (
            np.abs(total - mean * count).max() <= 0.01
        ):
            log.warning("round %d is abandoned: its sum holds no integers", server_round)
            return None, None
        delta = self._decoded(total.astype(np.int64), server_round, count)
        vector = (self._global + delta).astype(np.float32)
        arrays, _ = self.inner.aggregate_train(server_round, [one_reply(vector)])
        return arrays, MetricRecord()

    def _decoded(
        self, total: NDArray[np.int64], server_round: int, count: int
    ) -> NDArray[np.float64]:
        """Return the update that a sum of integers stands for."""
        if not isinstance(self.mechanism, SkellamMechanism):
            raise IntegrityError("a sum of another mechanism")
        seed = rotation_seed(self.config, server_round)
        return self.mechanism.decode(total, seed, count)

    def spent(self) -> float:
        """Return ε of the run so far."""
        return self._ledger.spent.value

    def describe(self) -> dict[str, Any]:
        """Return the entry `privacy` of a result."""
        return super().describe() | {
            "noise_multiplier": self.mechanism.noise_multiplier,
            "least_noised": self.mechanism.least_noised,
            "scale": self.mechanism.scale,
            "magnitude": self.mechanism.magnitude,
        }

    def _to_json(self) -> str:
        return self._ledger.to_json()

    def _from_json(self, text: str) -> None:
        self._ledger = Ledger.from_json(text)
