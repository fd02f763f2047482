"""The aggregator over the whole protocol: the contract, and the cohort of a thousand."""

import numpy as np
import pytest

from secure.aggregation import LocalAggregator, Policy, Session, plan
from secure.errors import ParameterError, PeerError
from tests.secure.aggregation_contract import AggregatorContract


class TestSemiHonest(AggregatorContract):
    MODE = "semi-honest"

    def make(self, clients, length, bound):
        lanes = plan(clients, bound, bound * 1e-4, max_weight=1)
        return LocalAggregator(Policy(lanes, mode=self.MODE))


class TestActive(TestSemiHonest):
    MODE = "active"


@pytest.mark.parametrize("mode", ["semi-honest", "active"])
def test_a_sparse_cohort_with_dropouts_at_every_trip(mode):
    clients, length = 80, 50
    policy = Policy(plan(clients, 1.0, 1e-5), mode=mode)
    assert policy.sharing(clients).neighbours < clients - 1
    vectors = np.random.default_rng(1).uniform(-0.1, 0.1, (clients, length)).astype(np.float32)
    drop = {"advertise": [1], "share": [2, 3], "mask": [4, 5], "unmask": [7]}
    if mode == "active":
        drop["commit"] = [6]
    total = LocalAggregator(policy).sum(list(vectors), drop)
    error = np.abs(total - vectors[5:].sum(axis=0, dtype=np.float64))
    assert error.max() <= clients * policy.plan.step


def test_too_few_clients_are_an_error_and_not_a_sum():
    policy = Policy(plan(5, 1.0, 1e-3))
    with pytest.raises(PeerError, match="below the least"):
        LocalAggregator(policy).sum([np.zeros(3, dtype=np.float32)] * 2)
    with pytest.raises(ParameterError, match="one length"):
        LocalAggregator(policy).sum([np.zeros(3), np.zeros(4), np.zeros(3)])


@pytest.mark.slow
@pytest.mark.parametrize("mode", ["semi-honest", "active"])
def test_a_thousand_clients_with_a_tenth_dropping_out(mode):
    clients, length = 1000, 100_000
    policy = Policy(plan(clients, 1.0, 1e-4), mode=mode)
    rng = np.random.default_rng(2)
    vectors = [rng.normal(0, 1e-3, length).astype(np.float32) for _ in range(clients)]
    gone = rng.choice(np.arange(1, clients + 1), clients // 10, replace=False).tolist()
    timings = Session()
    got = LocalAggregator(policy).aggregate(vectors, {"mask": gone}, timings)
    assert got.clients == 900
    assert not timings.refusals
    kept = sorted(set(range(clients)) - {member - 1 for member in gone})
    expected = np.sum([vectors[each] for each in kept], axis=0, dtype=np.float64)
    assert np.abs(got.mean * got.clients - expected).max() <= 900 * policy.plan.step
