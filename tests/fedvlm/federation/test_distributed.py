"""Distributed DP on top of secure aggregation: lanes that can't wrap, and a mean that decodes."""

import numpy as np
import pytest
from flwr.app import Array, ArrayRecord, ConfigRecord, Message, MetricRecord, RecordDict
from flwr.serverapp.strategy import FedAvg

from fedvlm.config import SimulationConfig
from fedvlm.errors import BudgetExceeded, IntegrityError
from fedvlm.federation import InProcessGrid
from fedvlm.federation.client_app import VECTOR
from fedvlm.federation.distributed import DistributedStrategy, distributed_policy
from fedvlm.federation.private_client import rotation_seed
from fedvlm.privacy import SimulatedNoise
from fedvlm.privacy.skellam import plan_skellam
from fedvlm.seeds import ExperimentSeed
from secure.aggregation import LocalAggregator, Policy

SIZE = 500


def _config():
    # The check of `protect` belongs to the whole configuration; here only the parts are joined.
    config = SimulationConfig(clients=5, rounds=2, epsilon=6.0, clip_norm=0.5)
    object.__setattr__(config, "dp", "distributed")
    return config


def _strategy(config):
    inner = FedAvg(fraction_train=1.0, fraction_evaluate=0.0, min_train_nodes=1)
    strategy = DistributedStrategy(inner, config, SIZE)
    start = np.linspace(-1, 1, SIZE).astype(np.float32)
    grid = InProcessGrid(lambda m, c: Message(RecordDict(), reply_to=m), nodes=5)
    arrays = ArrayRecord({VECTOR: Array(start)})
    return strategy, arrays, grid, start


def _updates():
    rng = np.random.default_rng(0)
    updates = rng.normal(size=(5, SIZE))
    return 0.5 * updates / np.linalg.norm(updates, axis=1, keepdims=True)


def test_secure_aggregation_sums_the_integers_exactly_also_after_a_dropout():
    mechanism = plan_skellam(0.5, 3.0, SIZE, 3, 5)
    policy = Policy(mechanism.lanes(), clip=False, update="delta")
    sent = [
        mechanism.encode(u, 9, SimulatedNoise(ExperimentSeed(i), "x"))
        for i, u in enumerate(_updates())
    ]
    assert policy.plan.lane == 21
    aggregator = LocalAggregator(policy)
    whole = aggregator.sum([s.astype(np.float64) for s in sent])
    assert np.array_equal(np.rint(whole), np.sum(sent, axis=0))
    fewer = aggregator.sum([s.astype(np.float64) for s in sent], drop={"mask": [2]})
    assert np.array_equal(np.rint(fewer), np.sum([s for i, s in enumerate(sent) if i != 1], axis=0))


def test_the_server_decodes_the_mean():
    config = _config()
    strategy, arrays, grid, start = _strategy(config)
    assert distributed_policy(config, SIZE).plan == strategy.mechanism.lanes()
    list(strategy.configure_train(1, arrays, ConfigRecord(), grid))
    seed = rotation_seed(config, 1)
    updates = _updates()
    sent = [
        strategy.mechanism.encode(u, seed, SimulatedNoise(ExperimentSeed(i), "y"))
        for i, u in enumerate(updates)
    ]
    content = RecordDict(
        {
            "arrays": ArrayRecord({VECTOR: Array(np.sum(sent, axis=0) / 5)}),
            "metrics": MetricRecord({"num-examples": 5.0}),
        }
    )
    got, _ = strategy.aggregate_train(1, [Message(content, dst_node_id=0, message_type="train")])
    assert got is not None
    error = got[VECTOR].numpy() - start - updates.mean(axis=0)
    # Five clients noised, three were planned for: the noise of the mean is z·C·√(5/3)/5.
    least = strategy.mechanism.least_noised
    expected = strategy.mechanism.std * np.sqrt(5 / least) / 5
    assert np.std(error) == pytest.approx(expected, rel=0.2)  # 6 standard errors
    privacy = strategy.describe()
    assert privacy["unit"] == "client"
    assert 0 < privacy["epsilon"] <= 6.0


def test_single_replies_and_other_arrays_are_refused():
    strategy, arrays, grid, _ = _strategy(_config())
    list(strategy.configure_train(1, arrays, ConfigRecord(), grid))
    content = RecordDict(
        {
            "arrays": ArrayRecord({VECTOR: Array(np.full(512, 0.3))}),
            "metrics": MetricRecord({"num-examples": 5.0}),
        }
    )
    message = Message(content, dst_node_id=0, message_type="train")
    with pytest.raises(IntegrityError, match="integers"):
        strategy.aggregate_train(1, [message])
    with pytest.raises(IntegrityError, match="one secure mean"):
        strategy.aggregate_train(1, [message, message])


def test_the_budget_holds_the_planned_rounds_only_and_survives_a_resume():
    strategy, arrays, grid, _ = _strategy(_config())
    for number in (1, 2):
        list(strategy.configure_train(number, arrays, ConfigRecord(), grid))
    assert strategy.spent() == pytest.approx(6.0, rel=2e-3)
    again, _, _, _ = _strategy(_config())
    again.restore(strategy.state())
    with pytest.raises(BudgetExceeded):
        list(again.configure_train(3, arrays, ConfigRecord(), grid))
