"""The fit to Flower: an ordinary app, two lines changed, the same model as without them."""

import numpy as np
import pytest
from flwr.app import Array, ArrayRecord, ConfigRecord, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp
from flwr.serverapp import strategy as flower

from secure.aggregation import Policy, integer_plan, plan, provision
from secure.aggregation.flower import SCHEMA_KEY, SecAggStrategy, secagg_mod
from secure.errors import PolicyError
from tests.secure.aggregation.local_grid import LocalGrid
from tests.secure.aggregation.plain_app import initial, make_app

NODES = 5
PLAN = plan(clients=NODES, clip_norm=1.0, error=1e-7, max_weight=20)
ALL = {"min_train_nodes": NODES, "min_available_nodes": NODES, "min_evaluate_nodes": NODES}


@pytest.fixture(scope="module")
def keys(tmp_path_factory):
    folder = tmp_path_factory.mktemp("keys") / "five"
    return folder, provision(folder, NODES)


def policy(**terms) -> Policy:
    return Policy(**{"plan": PLAN, "corrupt": 0.0, "weighting": "uniform", **terms})


def federate(keys, terms, inner=None, app=None, rounds=2, lose=None, tamper=None, roster=True):
    folder, members = keys
    app = app or make_app([secagg_mod(terms, folder)])
    grid = LocalGrid(app, NODES, lose)
    grid.tamper = tamper
    wrapped = SecAggStrategy(
        inner or flower.FedAvg(**ALL), terms, members if roster else None, trip_timeout_s=5
    )
    result = wrapped.start(grid, initial(), num_rounds=rounds)
    return result, wrapped, grid


def numbers(result) -> np.ndarray:
    return np.concatenate(
        [result.arrays[name].numpy().reshape(-1) for name in ("conv.weight", "conv.bias")]
    )


STRATEGIES = {
    "FedAvg": lambda: flower.FedAvg(**ALL),
    "FedProx": lambda: flower.FedProx(proximal_mu=0.1, **ALL),
    "FedAvgM": lambda: flower.FedAvgM(server_learning_rate=0.5, server_momentum=0.9, **ALL),
    "FedAdagrad": lambda: flower.FedAdagrad(eta=0.01, **ALL),
    "FedAdam": lambda: flower.FedAdam(eta=0.01, **ALL),
    "FedYogi": lambda: flower.FedYogi(eta=0.01, **ALL),
}


@pytest.mark.parametrize(
    ("name", "mode"), [("FedAvg", "semi-honest"), *((name, "active") for name in STRATEGIES)]
)
def test_the_model_is_that_of_plain_aggregation(keys, name, mode):
    terms = policy(mode=mode, weighting="examples")
    result, wrapped, _ = federate(keys, terms, STRATEGIES[name](), rounds=3)
    plain = STRATEGIES[name]().start(LocalGrid(make_app(), NODES), initial(), num_rounds=3)
    # FedAdam and its kind divide by a root of the update, which blows its rounding up.
    assert np.abs(numbers(result) - numbers(plain)).max() < (1e-5 if "Avg" in name else 1e-4)
    assert [record.summed for record in wrapped.history] == [NODES] * 6
    for server_round in (1, 2, 3):
        got, expected = (
            each.train_metrics_clientapp[server_round]["train-loss"] for each in (result, plain)
        )
        assert got == pytest.approx(expected, abs=1e-4)
        got, expected = (
            each.evaluate_metrics_clientapp[server_round]["accuracy"] for each in (result, plain)
        )
        assert got == pytest.approx(expected, abs=1e-4)


def test_types_and_shapes_stay_and_counters_are_the_servers(keys):
    result, _, _ = federate(keys, policy())
    for name, array in initial().items():
        assert result.arrays[name].numpy().dtype == array.numpy().dtype
        assert result.arrays[name].numpy().shape == array.numpy().shape
    assert result.arrays["norm.batches"].numpy() == 4


class Quantile(flower.FedAvg):
    """Somebody's strategy that looks at single replies."""

    def aggregate_train(self, server_round, replies):
        return super().aggregate_train(server_round, sorted(replies, key=id)[:1])


class Halved(flower.FedAvg):
    """Somebody's strategy that uses the mean, and says so."""

    aggregates_mean_only = True

    def aggregate_train(self, server_round, replies):
        arrays, metrics = super().aggregate_train(server_round, replies)
        half = {name: Array(np.asarray(each.numpy() / 2)) for name, each in arrays.items()}
        return ArrayRecord(half), metrics


@pytest.mark.parametrize(
    "make",
    [
        flower.Krum,
        flower.MultiKrum,
        flower.FedMedian,
        flower.FedTrimmedAvg,
        flower.Bulyan,
        lambda: flower.QFedAvg(client_learning_rate=0.1),
        flower.FedXgbBagging,
        Quantile,
        type("Sly", (Halved,), {"aggregate_train": Quantile.aggregate_train}),
        lambda: flower.DifferentialPrivacyServerSideFixedClipping(flower.FedAvg(), 1.0, 1.0, 5),
    ],
)
def test_strategies_that_need_single_updates_are_refused_at_start(make):
    with pytest.raises(PolicyError, match="single updates"):
        SecAggStrategy(make(), policy())


def test_a_strategy_that_declares_itself_is_taken(keys):
    result, _, _ = federate(keys, policy(), Halved(**ALL), rounds=1)
    assert result.arrays["conv.weight"].numpy() == pytest.approx(0.25, abs=0.01)


def test_a_subclass_that_only_configures_is_taken():
    class Picky(flower.FedAdam):
        def configure_train(self, server_round, arrays, config, grid):
            return super().configure_train(server_round, arrays, config, grid)

    SecAggStrategy(Picky(), policy())


TRIPS = {"advertise": 1, "share": 2, "mask": 3, "commit": 4, "unmask": 5}


@pytest.mark.parametrize("trip", TRIPS)
def test_attack_7_a_dropout_at_each_trip_leaves_the_mean_of_the_others(keys, trip):
    inner = flower.FedAvg(fraction_evaluate=0.0, **ALL)
    result, wrapped, _ = federate(keys, policy(), inner, rounds=1, lose={TRIPS[trip]: [2]})
    (record,) = wrapped.history
    stays = trip in ("commit", "unmask")
    assert record.summed == (NODES if stays else NODES - 1)
    updates = []
    for partition in range(NODES):
        rng = np.random.default_rng([partition, 1])
        if stays or partition != 2:
            updates.append(0.01 * rng.uniform(-1, 1, (3, 2)))
    got = result.arrays["conv.weight"].numpy() - 0.5
    assert np.abs(got - np.mean(updates, axis=0)).max() < 1e-6


@pytest.mark.parametrize("trip", TRIPS)
def test_attack_7_below_the_threshold_the_model_stays_and_the_run_goes_on(keys, trip):
    inner = flower.FedAvg(fraction_evaluate=0.0, **ALL)
    lose = {TRIPS[trip]: [1, 2, 4] if trip == "advertise" else [1, 4]}
    result, wrapped, _ = federate(keys, policy(), inner, rounds=2, lose=lose)
    first, second = wrapped.history
    assert (first.summed, second.summed) == (0, NODES)
    assert "abandoned" in first.reason
    assert set(result.train_metrics_clientapp) == {2}
    assert np.abs(result.arrays["conv.weight"].numpy() - 0.5).max() <= 0.0101


def test_history_counts_the_bytes_and_seconds_of_every_trip(keys):
    _, wrapped, _ = federate(keys, policy(), rounds=1)
    train = wrapped.history[0]
    assert [trip.name for trip in train.trips] == list(TRIPS)
    assert all(trip.sent == trip.answered == NODES for trip in train.trips)
    assert all(trip.wall_s > 0 and trip.server_s > 0 for trip in train.trips)
    assert train.upload_bytes == sum(trip.upload_bytes for trip in train.trips)
    # 9 values, four counts and one metric in 64-bit words; the rest is names and the receipt.
    words = PLAN.words(9) + 6
    mask = train.trips[2]
    assert NODES * 8 * words < mask.upload_bytes < NODES * (8 * words + 400)


def test_a_delta_app_gets_the_mean_delta(keys):
    folder, _ = keys
    app = ClientApp(mods=[secagg_mod(policy(update="delta"), folder)])

    @app.train()
    def train(message, context):
        partition = context.node_config["partition-id"]
        flat = np.linspace(0, 0.01 * (partition + 1), 50, dtype=np.float32)
        content = RecordDict(
            {
                "update": ArrayRecord({"flat": Array(flat)}),
                "schema": ConfigRecord({SCHEMA_KEY: "abc"}),
                "metrics": MetricRecord({"num-examples": 1}),
            }
        )
        return Message(content, reply_to=message)

    inner = flower.FedAvg(fraction_evaluate=0.0, **ALL)
    result, wrapped, _ = federate(keys, policy(update="delta"), inner, app, rounds=1)
    assert wrapped.history[0].summed == NODES, wrapped.history
    assert result.arrays["flat"].numpy().dtype == np.float32
    assert np.allclose(result.arrays["flat"].numpy(), np.linspace(0, 0.03, 50), atol=1e-6)


def test_integer_deltas_are_summed_exactly(keys):
    folder, _ = keys
    terms = policy(plan=integer_plan(NODES, 1000), update="delta", clip=False)
    app = ClientApp(mods=[secagg_mod(terms, folder)])

    @app.train()
    def train(message, context):
        noisy = np.arange(20) * (context.node_config["partition-id"] - 2) * 10
        content = RecordDict(
            {
                "update": ArrayRecord({"encoded": Array(noisy.astype(np.int32))}),
                "metrics": MetricRecord({"num-examples": 1}),
            }
        )
        return Message(content, reply_to=message)

    inner = flower.FedAvg(fraction_evaluate=0.0, **ALL)
    result, _, _ = federate(keys, terms, inner, app, rounds=1, lose={3: [4]})
    total = result.arrays["encoded"].numpy() * (NODES - 1)
    assert np.rint(total).tolist() == (np.arange(20) * -20).tolist()
    assert np.abs(total - np.rint(total)).max() < 1e-9


def test_a_strategy_that_is_started_again_goes_on(keys):
    folder, members = keys
    grid = LocalGrid(make_app([secagg_mod(policy(), folder)]), NODES)
    wrapped = SecAggStrategy(flower.FedAvg(fraction_evaluate=0.0, **ALL), policy(), members)
    arrays = initial()
    for _ in range(3):
        arrays = wrapped.start(grid, arrays, num_rounds=1).arrays
    assert [record.summed for record in wrapped.history] == [NODES] * 3
    assert [record.round for record in wrapped.history] == [1, 2, 3]
