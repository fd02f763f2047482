"""That the two lines give FedAvg's result, and that what differs is said or refused."""

import logging
import math

import numpy as np
import pytest
from flwr.app import Array, ArrayRecord, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp
from flwr.serverapp import strategy as flower
from hypothesis import given, settings
from hypothesis import strategies as st

from secure.aggregation import Layout, Policy, decode, encode, plan, provision
from secure.aggregation.flower import CLIPPED, UNUSABLE, SecAggStrategy, secagg_mod
from secure.errors import ParameterError, PeerError, PolicyError
from secure.random import SecureRandom
from tests.secure.aggregation.local_grid import LocalGrid
from tests.secure.aggregation.plain_app import initial, make_app

NODES = 6
RNG = SecureRandom()
ALL = {"min_train_nodes": NODES, "min_available_nodes": NODES, "fraction_evaluate": 0.0}


@pytest.fixture(scope="module")
def keys(tmp_path_factory):
    folder = tmp_path_factory.mktemp("keys") / "six"
    return folder, provision(folder, NODES)


def vector_app(mods, answer):
    """Reply with the received model changed by `answer(partition, arrays, metrics)`."""
    app = ClientApp(mods=list(mods))

    @app.train()
    def train(message, context):
        arrays = {name: each.numpy() for name, each in message.content["arrays"].items()}
        metrics = {"num-examples": 10, "loss": 1.0}
        arrays = answer(context.node_config["partition-id"], arrays, metrics) or arrays
        content = RecordDict(
            {
                "arrays": ArrayRecord({key: Array(np.asarray(v)) for key, v in arrays.items()}),
                "metrics": MetricRecord(metrics),
            }
        )
        return Message(content, reply_to=message)

    return app


def run(keys, answer, inner=None, policy=None, rounds=1):
    policy = policy or Policy(plan(NODES, 1.0, 1e-4, max_weight=100))
    folder, members = keys
    grid = LocalGrid(vector_app([secagg_mod(policy, folder)], answer), NODES)
    wrapped = SecAggStrategy(inner or flower.FedAvg(**ALL), policy, members)
    arrays = ArrayRecord(
        {"b": Array(np.zeros(2, np.float32)), "a": Array(np.zeros(1000, np.float32))}
    )
    return wrapped.start(grid, arrays, num_rounds=rounds), wrapped


def step(partition, arrays, metrics):
    rng = np.random.default_rng(partition)
    metrics["num-examples"] = int(rng.integers(1, 100))
    for name in arrays:
        arrays[name] = arrays[name] + rng.uniform(-0.5, 0.5, arrays[name].shape).astype("f4")


def test_the_two_lines_give_fedavgs_result_within_the_asked_error(keys):
    """Weights by examples and no clipping, without being asked for."""
    got, wrapped = run(keys, step)
    arrays = ArrayRecord(
        {"b": Array(np.zeros(2, np.float32)), "a": Array(np.zeros(1000, np.float32))}
    )
    plain = flower.FedAvg(**ALL).start(LocalGrid(vector_app([], step), NODES), arrays, num_rounds=1)
    error = got.arrays["a"].numpy() - plain.arrays["a"].numpy()
    assert math.sqrt(float(np.mean(np.square(error)))) <= 1e-4
    assert list(got.arrays) == list(plain.arrays)
    assert dict(got.train_metrics_clientapp[1]).keys() == plain.train_metrics_clientapp[1].keys()
    record = wrapped.history[0]
    assert (record.weighting, record.clipped, record.unusable) == ("examples", 0, 0)


def test_s14_clipping_is_counted_where_it_bites(keys, caplog):
    def far(partition, arrays, metrics):
        arrays["a"] = arrays["a"] + (4.0 if partition < 2 else 0.1)

    with caplog.at_level(logging.INFO, "secure.aggregation"):
        got, wrapped = run(keys, far)
    assert wrapped.history[0].clipped == 2
    assert got.train_metrics_clientapp[1][CLIPPED] == 2
    assert "2 updates were scaled down" in caplog.text
    assert got.arrays["a"].numpy()[0] == pytest.approx((2 * 1.0 + 4 * 0.1) / 6, abs=1e-3)


def test_s6_s13_an_unusable_update_is_counted_and_weighs_nothing(keys):
    def bad(partition, arrays, metrics):
        arrays["a"] = arrays["a"] + (np.float32("nan") if partition == 0 else 0.1)

    for weighting in ("uniform", "examples"):
        policy = Policy(plan(NODES, 1.0, 1e-4, max_weight=100), weighting=weighting)
        got, wrapped = run(keys, bad, policy=policy)
        assert (wrapped.history[0].summed, wrapped.history[0].unusable) == (NODES, 1)
        assert got.train_metrics_clientapp[1][UNUSABLE] == 1
        assert got.arrays["a"].numpy()[0] == pytest.approx(0.1, abs=1e-3)


@pytest.mark.parametrize("weight", [0, 10])
def test_s13_uniform_weights_need_no_examples(keys, weight):
    """S13: a round in which nobody counts examples is a mean all the same."""

    def none(partition, arrays, metrics):
        metrics["num-examples"] = weight
        arrays["a"] = arrays["a"] + 0.25

    policy = Policy(plan(NODES, 1.0, 1e-4, max_weight=100), weighting="uniform")
    got, wrapped = run(keys, none, policy=policy)
    assert got.arrays["a"].numpy()[0] == pytest.approx(0.25, abs=1e-3)
    assert wrapped.history[0].weighting == "uniform"


def test_s13_a_list_or_a_huge_metric_costs_no_round(keys):
    def odd(partition, arrays, metrics):
        metrics["steps"] = [1.0, 2.0]
        metrics["loss"] = 1e300 if partition == 1 else 2.0

    got, wrapped = run(keys, odd)
    assert wrapped.history[0].summed == NODES
    assert got.train_metrics_clientapp[1]["loss"] == pytest.approx(2.0, abs=1e-3)
    assert "steps" not in got.train_metrics_clientapp[1]
    assert wrapped.history[0].partial == ("loss",)


def test_d14_arrays_are_matched_by_name(keys):
    def turned(partition, arrays, metrics):
        step(partition, arrays, metrics)
        return dict(reversed(arrays.items())) if partition % 2 else arrays

    got, wrapped = run(keys, turned)
    straight, _ = run(keys, step)
    assert wrapped.history[0].summed == NODES
    assert wrapped.history[0].unusable == 0
    assert np.abs(got.arrays["a"].numpy() - straight.arrays["a"].numpy()).max() < 1e-3

    def delta(partition, arrays, metrics):
        mine = {"x": np.full(3, 0.1, np.float32), "w": np.full(2, 0.2, np.float32)}
        return dict(reversed(mine.items())) if partition % 2 else mine

    policy = Policy(plan(NODES, 1.0, 1e-4, max_weight=100), update="delta")
    got, wrapped = run(keys, delta, policy=policy)
    assert wrapped.history[0].summed == NODES
    assert got.arrays["w"].numpy() == pytest.approx(0.2, abs=1e-3)


def test_s11_the_mean_is_added_to_what_was_sent(keys):
    class Shifted(flower.FedAvg):
        def configure_train(self, server_round, arrays, config, grid):
            moved = {name: Array(each.numpy() + np.float32(0.5)) for name, each in arrays.items()}
            return super().configure_train(server_round, ArrayRecord(moved), config, grid)

    got, _ = run(keys, step, Shifted(**ALL))
    arrays = ArrayRecord(
        {"b": Array(np.zeros(2, np.float32)), "a": Array(np.zeros(1000, np.float32))}
    )
    plain = Shifted(**ALL).start(LocalGrid(vector_app([], step), NODES), arrays, num_rounds=1)
    assert np.abs(got.arrays["a"].numpy() - plain.arrays["a"].numpy()).max() < 1e-3


@settings(max_examples=15)
@given(st.integers(2, 12), st.integers(1, 10_000), st.integers(0, 4))
def test_s10_the_asked_error_holds_for_weighted_means(clients, examples, seed):
    """S10: with 100 examples of at most 10,000 the error was 3.6 times what was asked."""
    error = 1e-4
    rng = np.random.default_rng(seed)
    weights = rng.integers(examples, 10_001, clients)
    policy = Policy(plan(clients, 1.0, error, examples=float(examples)))
    layout = Layout((("v", (4000,), "float32"),), ())
    vectors = rng.uniform(-1, 1, (clients, 4000))
    words = sum(
        (encode(v, float(w), {}, policy, RNG) for v, w in zip(vectors, weights, strict=True)),
        start=np.zeros(layout.words(policy), dtype=np.uint64),
    )
    got = decode(words, layout, policy, clients).mean
    off = got - np.average(vectors, axis=0, weights=weights)
    assert math.sqrt(float(np.mean(np.square(off)))) <= error


def test_s10_a_policy_and_a_plan_that_do_not_fit_are_refused():
    with pytest.raises(ParameterError, match="same max_weight"):
        Policy(plan(10, 1.0, 1e-4, max_weight=100), max_weight=10_000)
    assert Policy(plan(10, 1.0, 1e-4, max_weight=100)).max_weight == 100
    assert Policy(plan(10, 1.0, 1e-4, max_weight=1)).weighting == "uniform"


def test_s13_a_policy_for_more_clients_than_can_be_counted_is_not_made():
    with pytest.raises(ParameterError, match="up to 2048"):
        Policy(plan(2049, 1.0, 1e-3))


def test_s13_no_single_member_ever_holds_anothers_secret():
    for members in (65, 100, 500):
        policy = Policy(plan(members, 1.0, 1e-3), mode="semi-honest", corrupt=0.0)
        assert policy.sharing(members).threshold >= 2


# --- S14: what can't be is refused, what fails is an error ---------------------------------------


@pytest.mark.parametrize(
    ("inner", "match"),
    [
        ({"fraction_train": 0.5, "min_train_nodes": 2}, "2 clients are drawn to train"),
        ({"fraction_evaluate": 0.3, "min_evaluate_nodes": 1}, "would be drawn to evaluate"),
    ],
)
def test_s14_terms_that_can_not_be_met_are_refused_before_the_first_message(keys, inner, match):
    folder, members = keys
    policy = Policy(plan(NODES, 1.0, 1e-4), min_clients=4)
    grid = LocalGrid(make_app([secagg_mod(policy, folder)]), 4)
    arguments = {"min_available_nodes": 2, "min_train_nodes": 4, **inner}
    wrapped = SecAggStrategy(flower.FedAvg(**arguments), policy, members)
    with pytest.raises(PolicyError, match=match):
        wrapped.start(grid, initial(), num_rounds=3)
    assert not grid.sent


def test_s14_a_cohort_that_shrinks_later_costs_its_round_only(keys):
    folder, members = keys
    policy = Policy(plan(NODES, 1.0, 1e-4), min_clients=4)

    class Shrinking(flower.FedAvg):
        def configure_train(self, server_round, arrays, config, grid):
            messages = list(super().configure_train(server_round, arrays, config, grid))
            return messages[:2] if server_round == 2 else messages

    grid = LocalGrid(make_app([secagg_mod(policy, folder)]), NODES)
    wrapped = SecAggStrategy(Shrinking(**ALL), policy, members)
    wrapped.start(grid, initial(), num_rounds=3)
    assert [each.completed for each in wrapped.history] == [True, False, True]
    assert "below the least" in wrapped.history[1].reason


def test_s14_d8_a_run_without_a_round_is_an_error_and_no_empty_model(keys):
    folder, members = keys
    policy = Policy(plan(NODES, 1.0, 1e-4))
    app = make_app([secagg_mod(policy, folder)], fails=tuple(range(NODES)))
    wrapped = SecAggStrategy(flower.FedAvg(**ALL), policy, members)
    with pytest.raises(PeerError, match=r"none of 2 rounds.*6 of 6 clients answered 'client'"):
        wrapped.start(LocalGrid(app, NODES), initial(), num_rounds=2)
    with pytest.raises(PeerError):
        wrapped.require_success()


def test_s14_flowers_line_counts_clients(keys, caplog):
    folder, members = keys
    policy = Policy(plan(NODES, 1.0, 1e-4))
    app = make_app([secagg_mod(policy, folder)], fails=(1,))
    wrapped = SecAggStrategy(flower.FedAvg(**ALL), policy, members)
    logger = logging.getLogger("flwr")
    caplog.set_level(logging.INFO, logger="flwr")  # another test may have made it silent
    logger.addHandler(caplog.handler)
    try:
        wrapped.start(LocalGrid(app, NODES), initial(), num_rounds=1)
    finally:
        logger.removeHandler(caplog.handler)
    assert "Received 5 results and 1 failures" in caplog.text
    assert "Received 1 results" not in caplog.text


def test_s14_parts_of_an_inner_strategy_that_would_never_run_are_refused():
    class Starts(flower.FedAvg):
        def start(self, *args, **kwargs):
            return super().start(*args, **kwargs)

    policy = Policy(plan(NODES, 1.0, 1e-4))
    with pytest.raises(PolicyError, match="start"):
        SecAggStrategy(Starts(), policy)

    def worst(replies, key):
        return MetricRecord({"worst": 1.0})

    for name in ("train_metrics_aggr_fn", "evaluate_metrics_aggr_fn"):
        with pytest.raises(PolicyError, match=name):
            SecAggStrategy(flower.FedAvg(**{name: worst}), policy)
    worst.aggregates_mean_only = True
    SecAggStrategy(flower.FedAvg(train_metrics_aggr_fn=worst), policy)


def test_s14_the_terms_that_change_the_mean_are_said_in_words(caplog):
    with caplog.at_level(logging.INFO, "secure.aggregation"):
        SecAggStrategy(
            flower.FedAvg(), Policy(plan(NODES, 1.0, 1e-4), weighting="uniform", clip="norm")
        ).summary()
    assert "weigh alike" in caplog.text
    assert "scaled down (norm)" in caplog.text


def test_s14_a_silent_client_costs_minutes_at_most():
    import inspect

    timeout = inspect.signature(SecAggStrategy).parameters["trip_timeout_s"].default
    assert timeout <= 600
