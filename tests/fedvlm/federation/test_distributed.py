"""Distributed DP on top of secure aggregation: lanes that can't wrap, and a mean that decodes."""

import numpy as np
import pytest
from flwr.app import Array, ArrayRecord, ConfigRecord, Message, MetricRecord, RecordDict
from flwr.serverapp.strategy import FedAvg

from fedvlm.config import config_from
from fedvlm.errors import BudgetExceeded, IntegrityError
from fedvlm.federation import InProcessGrid, private_client, simulate
from fedvlm.federation.client_app import VECTOR
from fedvlm.federation.distributed import DistributedStrategy, distributed_policy
from fedvlm.federation.private_client import distributed_mechanism, rotation_seed
from fedvlm.federation.task import load_task
from fedvlm.privacy import Ledger, SimulatedNoise
from fedvlm.privacy.events import SkellamEvent
from fedvlm.privacy.skellam import plan_skellam
from fedvlm.seeds import ExperimentSeed
from secure.aggregation import LocalAggregator, Policy
from secure.errors import SecureError

SIZE = 500


def _config():
    # The check of `protect` belongs to the whole configuration; here only the parts are joined.
    config = config_from({"clients": 5, "rounds": 2, "epsilon": 6.0, "clip_norm": 0.5})
    object.__setattr__(config.privacy, "dp", "distributed")
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
    strategy.summed = lambda: 5
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


def test_a_cohort_with_too_little_noise_is_never_summed():
    # Three of the five that the noise was planned for would be a sound cohort by its own size.
    policy = distributed_policy(_config(), SIZE)
    mechanism = distributed_mechanism(_config(), SIZE)
    sharing = policy.sharing(5)
    assert policy.min_clients == sharing.quorum
    assert mechanism.least_noised == sharing.quorum - policy.corrupt_members(5)
    few = [np.zeros(mechanism.dimension) for _ in range(3)]
    assert policy.min_clients > 3
    with pytest.raises(SecureError, match="below the least of 4"):
        LocalAggregator(policy).sum(few)
    with pytest.raises(SecureError):
        LocalAggregator(policy).sum([*few, *few[:2]], drop={"mask": [2, 3]})


def test_single_replies_are_refused():
    strategy, arrays, grid, _ = _strategy(_config())
    list(strategy.configure_train(1, arrays, ConfigRecord(), grid))
    content = RecordDict(
        {
            "arrays": ArrayRecord({VECTOR: Array(np.full(512, 0.2))}),
            "metrics": MetricRecord({"num-examples": 5.0}),
        }
    )
    message = Message(content, dst_node_id=0, message_type="train")
    with pytest.raises(IntegrityError, match="one secure mean"):
        strategy.aggregate_train(1, [message, message])


@pytest.mark.parametrize("off", [0.3, np.nan])
def test_t1_a_sum_that_holds_no_integers_changes_nothing(off, caplog):
    strategy, arrays, grid, _ = _strategy(_config())
    list(strategy.configure_train(1, arrays, ConfigRecord(), grid))
    strategy.summed = lambda: 5
    mean = np.zeros(strategy.mechanism.dimension)
    mean[3] = off / 5
    content = RecordDict(
        {
            "arrays": ArrayRecord({VECTOR: Array(mean)}),
            "metrics": MetricRecord({"num-examples": 5.0}),
        }
    )
    message = Message(content, dst_node_id=0, message_type="train")
    assert strategy.aggregate_train(1, [message]) == (None, None)
    assert "holds no integers" in caplog.text


def test_the_budget_holds_the_planned_rounds_only_and_survives_a_resume():
    strategy, arrays, grid, _ = _strategy(_config())
    for number in (1, 2):
        list(strategy.configure_train(number, arrays, ConfigRecord(), grid))
    assert strategy.spent() == pytest.approx(6.0, rel=2e-3)
    again, _, _, _ = _strategy(_config())
    again.restore(strategy.state())
    with pytest.raises(BudgetExceeded):
        list(again.configure_train(3, arrays, ConfigRecord(), grid))


DISTRIBUTED = {"dp": "distributed", "protect": "secagg", "epsilon": 6.0, "delta": 1e-2}


def test_a_whole_federation_noises_its_secure_sum(small_run, tmp_path):
    # The clip is far above the updates' norms: what is not the mean of the updates is noise.
    settings = small_run | DISTRIBUTED | {"rounds": 1, "clients": 4, "clip_norm": 5.0}
    config = config_from(settings)
    result = simulate(config, out=tmp_path)
    task = load_task(config)
    mechanism = distributed_mechanism(config, task.view.size)
    privacy = result.privacy
    assert privacy is not None
    assert privacy["unit"] == "client"
    assert privacy["simulated_noise"] is False
    assert privacy["noise_multiplier"] == mechanism.noise_multiplier
    assert privacy["least_noised"] == 3
    assert 5.9 < privacy["epsilon"] <= 6.0
    assert result.rounds[1]["epsilon"] == privacy["epsilon"]
    assert result.protection["name"] == "secagg"
    # Losses, times and counts of the clients are told neither singly nor as a sum.
    assert result.rounds[1]["clients"] == 4
    assert result.rounds[1]["train_loss"] is None
    assert result.rounds[1]["client_seconds"] is None
    updates = []
    for client in range(4):
        task.reset()
        task.train(client, 1)
        updates.append(task.view.read() - task.initial)
    assert max(np.linalg.norm(u) for u in updates) < 5.0
    with np.load(tmp_path / "checkpoint.npz") as archive:
        noise = archive["vector"] - task.initial - np.mean(updates, axis=0)
    # Four clients noised, three were planned for. 3,776 values: 10 % is 8 standard errors.
    expected = mechanism.std * np.sqrt(4 / 3) / 4
    assert np.std(noise) == pytest.approx(expected, rel=0.1)


def test_a_resumed_federation_goes_on_with_its_epsilon(small_run, tmp_path):
    settings = small_run | DISTRIBUTED | {"rounds": 2, "clients": 4, "simulated_noise": True}
    config = config_from(settings)
    whole = simulate(config)

    class StopError(Exception):
        pass

    def stop(entry):
        if entry["round"] == 1:
            raise StopError

    with pytest.raises(StopError):
        simulate(config, out=tmp_path, on_round=stop)
    resumed = simulate(config, out=tmp_path, resume=True)
    assert resumed.privacy == whole.privacy
    assert [e.get("epsilon") for e in resumed.rounds] == [e.get("epsilon") for e in whole.rounds]
    assert 0 < resumed.rounds[1]["epsilon"] < resumed.rounds[2]["epsilon"] <= 6.0


def test_a_round_beyond_the_budget_is_not_run(small_run, monkeypatch):
    real = private_client.noise_multiplier_for

    def for_one_round(event, steps, target_epsilon, delta):
        return real(event, 1, target_epsilon, delta)

    monkeypatch.setattr(private_client, "noise_multiplier_for", for_one_round)
    config = config_from(small_run | DISTRIBUTED | {"rounds": 2, "clients": 4, "epsilon": 5.5})
    seen = []
    with pytest.raises(BudgetExceeded):
        simulate(config, on_round=seen.append)
    assert [entry["round"] for entry in seen] == [0, 1]
    assert seen[-1]["epsilon"] <= 5.5


def test_s5_noise_counts_the_colluders_of_all_nodes():
    """A server picks the cohort, and all that side with it of the whole federation are in."""
    from secure.aggregation import Policy, integer_plan

    config = config_from(
        {
            "clients": 40,
            "fraction": 0.25,
            "protect": "secagg-active",
            "dp": "distributed",
            "rounds": 2,
        }
    )
    mechanism = distributed_mechanism(config, 500)
    policy = distributed_policy(config, 500).for_roster(40)
    least = policy.sharing(10).quorum - policy.corrupt_members(10)
    assert policy.corrupt_members(10) == 4
    assert mechanism.least_noised <= least
    assert policy.fewest - policy.corrupt_members(10) >= mechanism.least_noised
    assert Policy(integer_plan(10, 1)).corrupt_members(10) == 1


@pytest.mark.parametrize("fraction", [0.5, 1.0])
def test_no_credit_is_taken_for_who_was_drawn(fraction):
    """The server knows who is asked: each round costs what it costs without sampling."""
    settings = {"clients": 20, "rounds": 3, "epsilon": 6.0, "clip_norm": 0.5}
    config = config_from(settings | {"fraction": fraction})
    object.__setattr__(config.privacy, "dp", "distributed")
    mechanism = distributed_mechanism(config, SIZE)
    event = mechanism.event()
    assert isinstance(event, SkellamEvent)
    assert event.variance == pytest.approx(mechanism.least_noised * mechanism.local_variance)
    # All of the budget goes into the noise of so many unsampled releases, and no more fit.
    ledger = Ledger("client", config.privacy.epsilon, config.privacy.delta)
    ledger.spend(mechanism, config.training.rounds)
    assert 0.99 * config.privacy.epsilon < ledger.spent.value <= config.privacy.epsilon
    with pytest.raises(BudgetExceeded):
        ledger.spend(mechanism)
