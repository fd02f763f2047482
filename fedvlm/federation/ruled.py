"""The server's half of an aggregation rule: around the strategy that sums, whatever protects it."""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import replace
from typing import Any

import numpy as np
from flwr.app import Array, ArrayRecord, ConfigRecord, Message, MetricRecord
from flwr.serverapp import Grid
from numpy.typing import NDArray

from fedvlm.federation.exchange import REST, SECOND, to_bytes
from fedvlm.federation.records import VECTOR
from fedvlm.federation.rules import CoordinateRule, FedEx, FlexLoRA
from fedvlm.federation.strategy import FederationStrategy
from fedvlm.federation.wrapping import WrappingStrategy

Rule = CoordinateRule | FlexLoRA | FedEx


class RuledStrategy(WrappingStrategy):
    """Sends what the rule encodes, and makes the mean that comes back into the next state.

    What is inside (protection, DP, server optimiser) sees vectors of the rule's length, and knows
    nothing of the rule. A rule of two sums has its second one within the same round.

    Args:
        inner: The strategy that sums.
        rule: The rule.
        rounds_done: Rounds of an earlier run that this one goes on from.
        timeout: Seconds that clients have for the second sum.
        report: Returns what the protection tells of its last sum.
    """

    inner: FederationStrategy

    def __init__(
        self,
        inner: FederationStrategy,
        rule: Rule,
        rounds_done: int,
        timeout: float,
        report: Callable[[], dict[str, Any]],
    ) -> None:
        super().__init__(inner)
        self._rule, self._done, self._timeout, self._report = rule, rounds_done, timeout, report
        self._first_report: dict[str, Any] = {}
        self._state: NDArray[np.float32] = np.empty(0, dtype=np.float32)
        self._open: tuple[ConfigRecord, Grid] | None = None

    def configure_train(
        self, server_round: int, arrays: ArrayRecord, config: ConfigRecord, grid: Grid
    ) -> Iterable[Message]:
        """Send what is summed, and beside it what else of the state a node must know."""
        self._state, self._open = arrays[VECTOR].numpy(), (config, grid)
        self._first_report = {}
        number, rule = server_round + self._done, self._rule
        sent = rule.encode(rule.adapter(self._state), number)
        rest = to_bytes(rule.rest(self._state, number))
        return self._send(server_round, sent, {REST: rest} if rest else {})

    def _send(
        self, server_round: int, vector: NDArray, beside: Mapping[str, bytes | bool]
    ) -> list[Message]:
        if self._open is None:
            return []
        config, grid = self._open
        arrays = ArrayRecord({VECTOR: Array(vector.astype(np.float32))})
        told = ConfigRecord({**config, **beside})
        return list(self.inner.configure_train(server_round, arrays, told, grid))

    def aggregate_train(
        self, server_round: int, replies: Iterable[Message]
    ) -> tuple[ArrayRecord | None, MetricRecord | None]:
        """Make the next state of the mean; a rule of two sums asks for the other one first."""
        arrays, metrics = self.inner.aggregate_train(server_round, replies)
        if arrays is None:
            return None, metrics
        mean, number, rule = arrays[VECTOR].numpy(), server_round + self._done, self._rule
        if isinstance(rule, CoordinateRule):
            state = rule.decode(mean, self._state, number)
        else:
            basis = rule.basis(mean, number)
            second = self._second(server_round, basis)
            if second is None:
                return None, metrics
            state = rule.finish(mean, second, basis, self._state)
        return ArrayRecord({VECTOR: Array(state)}), metrics

    def configure_evaluate(
        self, server_round: int, arrays: ArrayRecord, config: ConfigRecord, grid: Grid
    ) -> Iterable[Message]:
        """Have the state scored, as the rule sends it in the next round."""
        state, number, rule = arrays[VECTOR].numpy(), server_round + self._done + 1, self._rule
        sent = rule.encode(rule.adapter(state), number).astype(np.float32)
        rest = to_bytes(rule.rest(state, number))
        told = ConfigRecord({**config, **({REST: rest} if rest else {})})
        shown = ArrayRecord({VECTOR: Array(sent)})
        return self.inner.configure_evaluate(server_round, shown, told, grid)

    def aggregate_evaluate(
        self, server_round: int, replies: Iterable[Message]
    ) -> MetricRecord | None:
        """Let the inner strategy sum the scores."""
        return self.inner.aggregate_evaluate(server_round, replies)

    def _second(self, server_round: int, basis: NDArray) -> NDArray | None:
        """Return the mean of the second sum; None where that was abandoned."""
        rule, number = self._rule, server_round + self._done
        if self._open is None or isinstance(rule, CoordinateRule):
            return None
        first, self._first_report = self.inner.costs[number], self._report()
        before = rule.project(rule.adapter(self._state), basis)
        messages = self._send(server_round, before, {REST: to_bytes(basis), SECOND: True})
        replies = self._open[1].send_and_receive(messages, timeout=self._timeout)
        arrays, _ = self.inner.aggregate_train(server_round, replies)
        cost = self.inner.costs[number]
        self.inner.costs[number] = replace(
            cost,
            upload_bytes_per_client=first.upload_bytes_per_client + cost.upload_bytes_per_client,
            download_bytes_per_client=(
                first.download_bytes_per_client + cost.download_bytes_per_client
            ),
            server_seconds=first.server_seconds + cost.server_seconds,
        )
        return None if arrays is None else arrays[VECTOR].numpy()

    def round_report(self) -> dict[str, Any]:
        """Return what the protection tells of the round, over both sums where there were two."""
        last, first = self._report(), self._first_report
        if not first:
            return last
        added = {
            key: first[key] + last[key]
            for key in ("upload_bytes_per_client", "download_bytes_per_client", "trips")
            if key in first
        }
        return last | added
