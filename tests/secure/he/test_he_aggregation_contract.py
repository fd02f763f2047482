"""The suite that every aggregator passes, for sums under encryption."""

from secure.he import HEAggregator
from tests.secure.aggregation_contract import Aggregator, AggregatorContract


class TestHEAggregator(AggregatorContract):
    def make(self, clients: int, length: int, bound: float) -> Aggregator:
        return HEAggregator(clients, bound)
