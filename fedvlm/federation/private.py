"""Differential privacy around a federation: who adds noise where, and what is written down.

`example`: every client trains with DP-SGD and keeps a ledger of its own; the server keeps the same
ledger from public facts. `client`: a trusted server draws clients by secret coins, clips their
updates and noises the sum. `distributed`: see `fedvlm.federation.distributed`. Each
way a round is paid for before a message is sent.
"""

import json
from abc import abstractmethod
from collections.abc import Callable, Iterable
from typing import Any

import numpy as np
from flwr.app import ArrayRecord, ConfigRecord, Message, MetricRecord
from flwr.serverapp import Grid
from flwr.serverapp.strategy import FedAvg, Strategy
from numpy.typing import NDArray

from fedvlm.config import Config
from fedvlm.errors import IntegrityError
from fedvlm.federation.private_client import example_settings, noise_source
from fedvlm.federation.records import EXAMPLES, VECTOR, one_reply, read_reply
from fedvlm.federation.roll import Roll
from fedvlm.federation.subset import Subset
from fedvlm.federation.wrapping import WrappingStrategy
from fedvlm.privacy import Ledger, Relation, plan, poisson_sample
from fedvlm.privacy.clipping import AdaptiveClip, ClientMechanism, release_round
from fedvlm.privacy.losses import BankContrastive

OnPaid = Callable[[NDArray[np.float32]], None]


class PrivateStrategy(WrappingStrategy):
    """Wraps the strategy that aggregates into one that pays for a round before it starts.

    Args:
        inner: The strategy that turns a mean into the next adapter.
        config: The federation's configuration.
        roll: Knows the nodes' numbers; one of its own where None.

    Attributes:
        on_paid: Called with the adapter once a round is paid for whose messages release something
            by themselves, before they are sent.
    """

    unit = "client"
    relation = Relation.ADD_OR_REMOVE

    def __init__(self, inner: Strategy, config: Config, roll: Roll | None = None) -> None:
        super().__init__(inner)
        self.config = config
        self.roll = roll or Roll()
        self.on_paid: OnPaid | None = None

    def _paid(self, arrays: ArrayRecord) -> None:
        """Have the ledger kept before clients release anything: an interrupted round is spent.

        Noise that follows from the seed is the same when the round is run again.
        """
        if self.on_paid is not None and not self.config.privacy.simulated_noise:
            self.on_paid(arrays[VECTOR].numpy())

    def entry(self) -> dict[str, Any]:
        """Return what to add to a round's entry."""
        return {"epsilon": self.spent()}

    @abstractmethod
    def spent(self) -> float:
        """Return ε so far: of the run, or of the client that spent most."""

    def describe(self) -> dict[str, Any]:
        """Return the entry `privacy` of a result."""
        return {
            "unit": self.unit,
            "neighboring_relation": self.relation.value,
            "epsilon": self.spent(),
            "delta": self.config.privacy.delta,
            "simulated_noise": self.config.privacy.simulated_noise,
            "clip_norm": self.config.privacy.clip_norm,
        }

    def state(self) -> dict[str, NDArray]:
        """Return what a checkpoint must keep."""
        return {"privacy": np.array(self._to_json())}

    def restore(self, state: dict[str, NDArray]) -> None:
        """Go on from what a checkpoint kept.

        Raises:
            IntegrityError: The checkpoint has no ledger.
        """
        if "privacy" not in state:
            raise IntegrityError("the checkpoint has no privacy ledger; start in another folder")
        self._from_json(str(state["privacy"]))

    @abstractmethod
    def _to_json(self) -> str:
        """Write what must be kept between rounds."""

    @abstractmethod
    def _from_json(self, text: str) -> None:
        """Read what `_to_json` wrote."""


class ExampleLevelStrategy(PrivateStrategy):
    """Keeps the ledgers of clients that train with DP-SGD, one each.

    Args:
        inner: The strategy that aggregates, by the replies' weighted mean alone: FedAvg and what
            builds on it. So the replies may be summed by secure aggregation or under encryption.
        config: The federation's configuration.
        pairs: Pairs of all clients together, a public fact here.
        roll: Knows the nodes' numbers; one of its own where None.
    """

    unit = "example"
    aggregates_mean_only = True

    def __init__(self, inner: FedAvg, config: Config, pairs: int, roll: Roll | None = None) -> None:
        super().__init__(inner, config, roll)
        settings = example_settings(config, pairs)
        self._mechanism, self._steps = settings.mechanism(BankContrastive), settings.steps
        self._ledgers: dict[int, Ledger] = {}

    def configure_train(
        self, server_round: int, arrays: ArrayRecord, config: ConfigRecord, grid: Grid
    ) -> Iterable[Message]:
        """Charge each client that is asked, then send.

        Raises:
            BudgetExceeded: A client's budget doesn't hold the round; no message was sent.
        """
        messages = list(super().configure_train(server_round, arrays, config, grid))
        self.roll.call(grid)
        for message in messages:
            node = self.roll.number(message.metadata.dst_node_id) + 1
            if node not in self._ledgers:
                # As the client itself does, take it that one with no ledger was asked in every
                # round before.
                fresh = Ledger("example", self.config.privacy.epsilon, self.config.privacy.delta)
                if server_round > 1:
                    fresh.spend(self._mechanism, self._steps * (server_round - 1))
                self._ledgers[node] = fresh
            self._ledgers[node].spend(self._mechanism, self._steps)
        self._paid(arrays)
        return messages

    def aggregate_train(
        self, server_round: int, replies: Iterable[Message]
    ) -> tuple[ArrayRecord | None, MetricRecord | None]:
        """Let the inner strategy take the mean."""
        # Written out, since `aggregates_mean_only` speaks for the class that defines this alone.
        return super().aggregate_train(server_round, replies)

    def spent(self) -> float:
        """Return ε of the client that spent most."""
        return max((ledger.spent.value for ledger in self._ledgers.values()), default=0.0)

    def describe(self) -> dict[str, Any]:
        """Return the entry `privacy` of a result, ε also by client."""
        spent = {str(node): ledger.spent.value for node, ledger in sorted(self._ledgers.items())}
        return super().describe() | {
            "noise_multiplier": self._mechanism.noise_multiplier,
            "sample_rate": self._mechanism.sample_rate,
            "steps_per_round": self._steps,
            "epsilon_by_client": spent,
        }

    def _to_json(self) -> str:
        return json.dumps({node: ledger.to_json() for node, ledger in self._ledgers.items()})

    def _from_json(self, text: str) -> None:
        self._ledgers = {int(k): Ledger.from_json(v) for k, v in json.loads(text).items()}


class ClientLevelStrategy(PrivateStrategy):
    """Draws clients by secret coins, clips their updates, and hands on the noised mean alone.

    Args:
        inner: The strategy that turns the mean into the next adapter; it sees one reply.
        config: The federation's configuration.
        roll: Knows the nodes' numbers; one of its own where None.

    Guarantees:
        Client-level DP, as the ledger says, of everything that leaves the server: the adapters
        and what a round reports. Not against the server itself, which sees the updates.
    """

    def __init__(self, inner: Strategy, config: Config, roll: Roll | None = None) -> None:
        super().__init__(inner, config, roll)
        planned = plan(
            delta=config.privacy.delta,
            sample_rate=config.server.fraction,
            steps=config.training.rounds,
            target_epsilon=config.privacy.epsilon,
        )
        z, expected = planned.noise_multiplier, config.server.fraction * config.nodes
        # σ_b = n/20 as in Andrew et al. (2021), but never so small that the bits cost more
        # than a quarter of the round.
        adaptive = AdaptiveClip(bit_std=max(expected / 20, z)) if config.privacy.adaptive else None
        self._expected = expected
        self._mechanism = ClientMechanism(
            config.privacy.clip_norm, z, config.server.fraction, adaptive
        )
        self._ledger = Ledger("client", config.privacy.epsilon, config.privacy.delta)
        self._global = np.empty(0, dtype=np.float32)

    def configure_train(
        self, server_round: int, arrays: ArrayRecord, config: ConfigRecord, grid: Grid
    ) -> Iterable[Message]:
        """Pay for the round, draw its clients, and send.

        Raises:
            BudgetExceeded: The budget doesn't hold the round; no message was sent.
        """
        self._ledger.spend(self._mechanism)
        self._global = arrays[VECTOR].numpy()
        nodes = self.roll.call(grid)
        coins = noise_source(self.config, "coins", server_round)
        places = poisson_sample(len(nodes), self._mechanism.sample_rate, coins)
        drawn = [nodes[place] for place in places.tolist()]
        # The inner strategy waits for a client where there is none: show it one, send nothing.
        shown = Subset(grid, drawn or nodes[:1])
        messages = list(self.inner.configure_train(server_round, arrays, config, shown))
        return messages if drawn else []

    def aggregate_train(
        self, server_round: int, replies: Iterable[Message]
    ) -> tuple[ArrayRecord | None, MetricRecord | None]:
        """Release the round's noised mean; nothing else of the replies goes further."""
        updates, weights = [], []
        for reply in replies:
            if reply.has_error():
                continue
            weights.append(self._weight(reply))
            updates.append(self._update(reply))
        released = release_round(
            self._mechanism,
            updates,
            weights,
            self._global.size,
            self._expected,
            noise_source(self.config, "client", server_round),
        )
        self._mechanism = ClientMechanism(
            released.next_clip_norm,
            self._mechanism.noise_multiplier,
            self._mechanism.sample_rate,
            self._mechanism.adaptive,
        )
        vector = (self._global + released.mean).astype(np.float32)
        arrays, _ = self.inner.aggregate_train(server_round, [one_reply(vector)])
        return arrays, MetricRecord()

    def _update(self, reply: Message) -> NDArray[np.floating]:
        """Return a client's update; zero where there is none, or one of another shape.

        A NaN counts as zero too, further on: no client can stop the round, or make its presence
        known by an error.
        """
        read = read_reply(reply, self._global.size, ())
        return np.zeros_like(self._global) if read is None else read[0] - self._global

    def _weight(self, reply: Message) -> float:
        """Return a client's weight in [0, 1]; what it says of itself can't raise it above 1."""
        cap = self.config.privacy.weight_cap
        if not cap:
            return 1.0
        read = read_reply(reply, self._global.size)
        return 0.0 if read is None else min(read[1][EXAMPLES], cap) / cap

    @property
    def clip_norm(self) -> float:
        """C of the next round."""
        return self._mechanism.clip_norm

    def spent(self) -> float:
        """Return ε of the run so far."""
        return self._ledger.spent.value

    def entry(self) -> dict[str, Any]:
        """Return ε so far and the next round's clip norm."""
        return super().entry() | {"next_clip_norm": self.clip_norm}

    def describe(self) -> dict[str, Any]:
        """Return the entry `privacy` of a result."""
        return super().describe() | {
            "noise_multiplier": self._mechanism.noise_multiplier,
            "update_noise_multiplier": self._mechanism.updates.noise_multiplier,
            "sample_rate": self._mechanism.sample_rate,
            "expected_clients": self._expected,
            "weight_cap": self.config.privacy.weight_cap,
            "final_clip_norm": self.clip_norm,
        }

    def _to_json(self) -> str:
        return json.dumps({"ledger": self._ledger.to_json(), "clip_norm": self.clip_norm})

    def _from_json(self, text: str) -> None:
        data = json.loads(text)
        self._ledger = Ledger.from_json(data["ledger"])
        self._mechanism = ClientMechanism(
            float(data["clip_norm"]),
            self._mechanism.noise_multiplier,
            self._mechanism.sample_rate,
            self._mechanism.adaptive,
        )
