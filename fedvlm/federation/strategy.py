"""What this library adds around any Flower strategy.

Flower's strategies aggregate; `FederationStrategy` wraps one of them and makes a round
reproducible (clients drawn by the experiment's seed, replies summed in an order of their own),
resumable (rounds counted on from a checkpoint) and accounted for (bytes, seconds, losses).
"""

import hashlib
import logging
import time
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np
from flwr.app import Array, ArrayRecord, ConfigRecord, Message, MetricRecord
from flwr.serverapp import Grid
from flwr.serverapp.strategy import FedAdagrad, FedAdam, FedAvg, FedAvgM, FedYogi, Strategy

from fedvlm.config import Config
from fedvlm.federation.records import EXAMPLES, VECTOR, one_reply, read_reply
from fedvlm.federation.roll import Roll
from fedvlm.federation.scores import mean_of, one_score, whole_record
from fedvlm.federation.subset import Subset
from fedvlm.federation.terms import max_weight
from fedvlm.federation.transcript import Seen, Transcript
from fedvlm.federation.wrapping import WrappingStrategy
from fedvlm.seeds import ExperimentSeed

log = logging.getLogger("fedvlm")

MIN_CLIENTS = 2
# What a client tells in clear beside its adapter: under DP nothing but its weight.
_TOLD = {True: (EXAMPLES, "train-loss", "client-seconds"), False: (EXAMPLES,)}


@dataclass(frozen=True)
class RoundCost:
    """What a round cost.

    Attributes:
        clients: Clients whose update counted.
        upload_bytes_per_client: Mean size of a client's reply, payload only.
        download_bytes_per_client: Size of the message to a client, payload only.
        client_seconds: Mean time that a client took; None where it isn't told in clear.
        server_seconds: Time from the last reply to the new adapter.
        train_loss: Mean loss of the clients, weighted by examples; None likewise.
    """

    clients: int
    upload_bytes_per_client: int
    download_bytes_per_client: int
    client_seconds: float | None
    server_seconds: float
    train_loss: float | None


def _payload_bytes(message: Message) -> int:
    """Return the bytes of a message's records, without Flower's own framing."""
    return sum(
        record.count_bytes()
        for record in message.content.values()
        if isinstance(record, ArrayRecord | ConfigRecord | MetricRecord)
    )


def _digest(message: Message) -> bytes:
    """Return what to order replies by: the adapter's content, where it is in clear."""
    try:
        arrays = None if message.has_error() else message.content.array_records.get("arrays")
        return hashlib.sha256(arrays[VECTOR].data).digest() if arrays else b""
    except (KeyError, TypeError, ValueError):
        return b""


def inner_strategy(config: Config) -> FedAvg:
    """Return Flower's strategy for a configuration.

    FedProx is a term of the client's loss; on the server it is the same average.
    """
    scored = config.server.node_scores != "none"
    common: dict[str, Any] = {"fraction_evaluate": float(scored), "min_evaluate_nodes": int(scored)}
    if scored and config.protection.secure:
        common["evaluate_metrics_aggr_fn"] = whole_record
    common |= {"fraction_train": 1.0, "min_train_nodes": 1, "min_available_nodes": 1}
    if config.adapter.kind == "head":  # a step's rate is the map's, whatever the optimiser's
        return FedAvgM(
            **common,
            server_learning_rate=config.adapter.rate,
            server_momentum=config.server.momentum,
        )
    if config.server.optimizer == "fedavgm":
        return FedAvgM(
            **common,
            server_learning_rate=config.server.learning_rate,
            server_momentum=config.server.momentum,
        )
    adaptive = {"fedadam": FedAdam, "fedyogi": FedYogi, "fedadagrad": FedAdagrad}
    if config.server.optimizer in adaptive:
        return adaptive[config.server.optimizer](**common, eta=config.server.learning_rate)
    return FedAvg(**common)


class FederationStrategy(WrappingStrategy):
    """Wrap a Flower strategy into a reproducible, resumable and accounted one.

    Args:
        inner: The strategy that aggregates, with `fraction_train=1.0`.
        config: The federation's configuration.
        schema: Hash of the adapter's schema, sent with every message.
        rounds_done: Rounds of an earlier run that this one goes on from.
        transcript: Where to keep what the server saw, or None.
        roll: Knows the nodes' numbers; one of its own where None.
    """

    def __init__(
        self,
        inner: Strategy,
        config: Config,
        schema: str,
        rounds_done: int = 0,
        transcript: Transcript | None = None,
        roll: Roll | None = None,
    ) -> None:
        super().__init__(inner)
        self._roll = roll or Roll(config.nodes)
        self.costs: dict[int, RoundCost] = {}
        self.abandoned: dict[int, str] = {}
        self.scores: dict[int, dict[str, float]] = {}
        self._config = config
        self._schema = schema
        self._rounds_done = rounds_done
        self._transcript = transcript
        self._download_bytes = 0
        self._size = 0

    def _draw(self, server_round: int, grid: Grid) -> list[int]:
        nodes = self._roll.call(grid)
        if self._config.privacy.dp == "client":
            return nodes  # drawn by secret coins further in, never by the experiment's seed
        count = max(MIN_CLIENTS, round(self._config.server.fraction * len(nodes)))
        rng = ExperimentSeed(self._config.training.seed).numpy("sampling", server_round)
        # Places, never ids: NumPy makes floats of a list of ids on both sides of 2^63.
        drawn = rng.choice(len(nodes), size=min(count, len(nodes)), replace=False)
        return [nodes[place] for place in sorted(drawn.tolist())]

    def configure_train(
        self, server_round: int, arrays: ArrayRecord, config: ConfigRecord, grid: Grid
    ) -> Iterable[Message]:
        """Draw clients by the seed and send them the adapter, its schema and the round."""
        number = server_round + self._rounds_done
        config["schema"] = self._schema
        self._size = arrays[VECTOR].numpy().size
        if self._transcript is not None:
            self._transcript.global_adapter(number, arrays[VECTOR].numpy())
        subset = Subset(grid, self._draw(number, grid))
        messages = list(self.inner.configure_train(number, arrays, config, subset))
        self._download_bytes = _payload_bytes(messages[0]) if messages else 0
        if self._config.privacy.dp == "client":  # a 0 would tell that nobody was drawn
            self._download_bytes = arrays.count_bytes() + config.count_bytes()
        return messages

    def _read(
        self, number: int, replies: list[Message]
    ) -> list[tuple[Message, tuple[Seen, dict[str, int | float]]]]:
        """Take replies apart; one that can't be read costs its client the round, and is named."""
        out = []
        for reply in replies:
            node = reply.metadata.src_node_id
            read = read_reply(reply, self._size, _TOLD[self._config.privacy.dp == "none"])
            if read is None:
                log.warning(
                    "round %d: client %d is left out, its reply is no adapter of this run",
                    *(number, self._roll.number(node) + 1),
                )
                continue
            vector, told = read
            if self._config.mitigation.loss_power:  # a loss that is claimed gains no more than this
                told[EXAMPLES] = min(told[EXAMPLES], max_weight(self._config))
            seen = Seen(node, self._roll.number(node), vector, told[EXAMPLES])
            out.append((reply, (seen, told)))
        return out

    def _abandon(self, number: int, reason: str) -> None:
        log.warning("round %d is abandoned: %s", number, reason)
        self.abandoned[number] = reason

    def aggregate_train(
        self, server_round: int, replies: Iterable[Message]
    ) -> tuple[ArrayRecord | None, MetricRecord | None]:
        """Check the replies, let the inner strategy sum them, and account for the round.

        A round whose replies can't be averaged is abandoned, and the adapter stays as it is: what
        one client sends, or doesn't, ends no run.
        """
        number = server_round + self._rounds_done
        # A sum in floating point depends on its order: order by content, not by arrival.
        batch = sorted(replies, key=_digest)
        good = [reply for reply in batch if not reply.has_error()]
        plain = self._config.protection.protect == "plain"
        seen = self._read(number, good) if plain else []
        if plain and self._config.privacy.dp != "client":
            # Under secure summing the protocol has its own quorum, and abandons the round by
            # itself. Under client-level DP the noise hides how many came, none included, and
            # what can't be read counts as zero.
            if len(seen) < MIN_CLIENTS:
                self._abandon(
                    number,
                    f"{len(seen)} of {len(batch)} clients answered, need at least {MIN_CLIENTS}; "
                    "an average of one client is that client's own update",
                )
            good = [reply for reply, _ in seen]
            batch = [one_reply(each.vector, metrics) for _, (each, metrics) in seen]
        if self._transcript is not None:
            self._transcript.replies(number, [each for _, (each, _) in seen])
        start = time.perf_counter()
        arrays, metrics = None, None
        if number not in self.abandoned:
            with np.errstate(over="ignore", invalid="ignore"):  # looked at below
                arrays, metrics = self.inner.aggregate_train(number, batch)
        seconds = time.perf_counter() - start
        if arrays is not None:
            with np.errstate(over="ignore"):
                vector = arrays[VECTOR].numpy().astype(np.float32)
            arrays = ArrayRecord({VECTOR: Array(vector)})
            if not np.isfinite(vector).all():
                self._abandon(
                    number, "the aggregate is not finite: what a client sent is too large"
                )
                arrays = None
        elif number not in self.abandoned:
            self._abandon(number, "no aggregate")
        told = dict(metrics or {})
        count, upload = len(good), sum(map(_payload_bytes, good)) / max(1, len(good))
        if self._config.privacy.dp == "client":  # who came is secret: report what is public
            count = round(self._config.server.fraction * self._config.nodes)
            upload = len(arrays[VECTOR].data) if arrays is not None else 0
        self.costs[number] = RoundCost(
            clients=count,
            upload_bytes_per_client=round(upload),
            download_bytes_per_client=self._download_bytes,
            client_seconds=_as_float(told.get("client-seconds")),
            server_seconds=seconds,
            train_loss=_as_float(told.get("train-loss")),
        )
        return arrays, metrics

    def configure_evaluate(
        self, server_round: int, arrays: ArrayRecord, config: ConfigRecord, grid: Grid
    ) -> Iterable[Message]:
        """Ask all nodes to score the round's adapter, where the run has them do so.

        It is sent as it would be in the next round: personal parts are those after this one.
        """
        number = server_round + self._rounds_done
        if not self._config.scores_after(number):
            return []
        config["schema"] = self._schema
        subset = Subset(grid, self._roll.call(grid))
        return list(self.inner.configure_evaluate(number + 1, arrays, config, subset))

    def aggregate_evaluate(
        self, server_round: int, replies: Iterable[Message]
    ) -> MetricRecord | None:
        """Keep the one accuracy of all nodes; single nodes' are seen by who sums in clear."""
        number = server_round + self._rounds_done
        if not self._config.scores_after(number):
            return None
        if self._config.protection.protect == "plain":
            told, count = mean_of(replies)
            if count < MIN_CLIENTS:
                log.warning("round %d: %d nodes told a score, too few for a mean", number, count)
                return None
        else:
            told = self.inner.aggregate_evaluate(number + 1, replies)
        self.scores[number] = one_score(told or {})
        return None


def _as_float(value) -> float | None:
    return float(value) if isinstance(value, int | float) else None
