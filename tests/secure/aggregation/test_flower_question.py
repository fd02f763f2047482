"""S2: a session is about one question, and a client is summed only with those asked the same."""

import copy

import numpy as np
import pytest
from flwr.app import Array, ArrayRecord, ConfigRecord, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp
from flwr.serverapp import strategy as flower
from hypothesis import given, settings
from hypothesis import strategies as st

from secure.aggregation import Policy, plan, provision
from secure.aggregation.flower import RECORD, REFUSALS, WORDS, SecAggStrategy, secagg_mod
from secure.errors import PeerError, PolicyError
from secure.flower._question import question
from tests.secure.aggregation.local_grid import LocalGrid
from tests.secure.aggregation.plain_app import initial, make_app

NODES, VICTIM = 5, 3
POLICY = Policy(plan(NODES, 1.0, 1e-7, max_weight=1), corrupt=0.0)
ALL = {"min_train_nodes": NODES, "min_available_nodes": NODES, "fraction_evaluate": 0.0}


@pytest.fixture(scope="module")
def keys(tmp_path_factory):
    folder = tmp_path_factory.mktemp("keys") / "five"
    return folder, provision(folder, NODES)


def gradient_app(mods):
    """Answer with the model plus lr times a gradient of the node's own data."""
    app = ClientApp(mods=list(mods))

    @app.train()
    def train(message, context):
        rng = np.random.default_rng(context.node_config["partition-id"])
        lr = float(message.content["config"]["lr"])
        w = message.content["arrays"]["w"].numpy()
        step = lr * rng.uniform(-0.1, 0.1, 20) * (np.abs(w) > 0)
        content = RecordDict(
            {
                "arrays": ArrayRecord({"w": Array((w + step).astype(np.float32))}),
                "metrics": MetricRecord({"num-examples": 10}),
            }
        )
        return Message(content, reply_to=message)

    return app


def kill_rate(content):
    content["config"]["lr"] = 0.0


def kill_model(content):
    content["arrays"] = ArrayRecord({"w": Array(np.zeros(20, dtype=np.float32))})


def attack(keys, change):
    """Ask everybody but the victim something that gives no update; return what comes out."""
    folder, members = keys
    grid = LocalGrid(gradient_app([secagg_mod(POLICY, folder)]), NODES)

    def tamper(batch, message):
        if batch != 1 or grid.contexts[message.metadata.dst_node_id].node_id == 1000 + VICTIM:
            return message
        changed = copy.deepcopy(message)
        change(changed.content)
        return changed

    grid.tamper = tamper
    wrapped = SecAggStrategy(flower.FedAvg(**ALL), POLICY, members, trip_timeout_s=5)
    arrays = ArrayRecord({"w": Array(np.ones(20, dtype=np.float32))})
    try:
        result = wrapped.start(grid, arrays, num_rounds=1, train_config=ConfigRecord({"lr": 1.0}))
    except PeerError:
        return None, wrapped, grid
    return result, wrapped, grid


@pytest.mark.parametrize("change", [kill_rate, kill_model])
def test_s2_a_victim_asked_otherwise_is_not_in_the_sum(keys, change):
    """An honest server's code leaves the odd one out: the sum has nothing of the victim."""
    result, wrapped, _ = attack(keys, change)
    record = wrapped.history[0]
    assert record.summed == NODES - 1
    assert "was asked something else" in record.faults[0]
    assert f"member {VICTIM + 1}" in record.faults[0]
    base = 1.0 if change is kill_rate else 0.0
    assert np.abs(result.arrays["w"].numpy() - 1.0).max() < 1e-6, base


@pytest.mark.parametrize("change", [kill_rate, kill_model])
def test_s2_a_server_that_lies_about_it_finds_nobody_to_unmask(keys, change, monkeypatch):
    """A server that sums them all the same: every client sees two questions and refuses."""
    from secure.aggregation import _server

    monkeypatch.setattr(_server.Server, "_leave_out", lambda *_: None)
    result, _, grid = attack(keys, change)
    assert result is None
    second = grid.answers[NODES : 2 * NODES]
    assert {answer.error.code for answer in second} == {REFUSALS["integrity"]}
    assert not any(not each.has_error() and WORDS in each.content for each in grid.answers)


def test_s2_other_run_configurations_are_other_questions(keys):
    folder, members = keys
    grid = LocalGrid(make_app([secagg_mod(POLICY, folder)]), NODES)
    context = next(each for each in grid.contexts.values() if each.node_id == 1000 + VICTIM)
    context.run_config = {"lr": 3.0}
    wrapped = SecAggStrategy(flower.FedAvg(**ALL), POLICY, members)
    wrapped.start(grid, initial(), num_rounds=1)
    assert wrapped.history[0].summed == NODES - 1


def test_s2_a_strategy_that_asks_each_client_otherwise_is_refused_before_it_sends(keys):
    class Personal(flower.FedAvg):
        def configure_train(self, server_round, arrays, config, grid):
            for place, message in enumerate(
                super().configure_train(server_round, arrays, config, grid)
            ):
                content = RecordDict({"arrays": arrays, "config": ConfigRecord({"lr": place})})
                yield Message(content, message.metadata.dst_node_id, "train")

    folder, members = keys
    grid = LocalGrid(make_app([secagg_mod(POLICY, folder)]), NODES)
    wrapped = SecAggStrategy(Personal(**ALL), POLICY, members)
    with pytest.raises(PolicyError, match="asked the same"):
        wrapped.start(grid, initial(), num_rounds=1)
    assert not grid.sent


VALUES = st.one_of(
    st.booleans(),
    st.integers(-(2**63), 2**63 - 1),
    st.floats(allow_nan=False),
    st.text(max_size=5),
    st.binary(max_size=5),
    st.lists(st.integers(-9, 9), max_size=3),
    st.lists(st.text(max_size=2), max_size=3),
)
CONFIGS = st.dictionaries(st.text(max_size=3), VALUES, max_size=3)
ARRAYS = st.dictionaries(
    st.text(max_size=2), st.lists(st.floats(-1, 1, width=32), max_size=3), max_size=2
)


def asked(config, arrays, message_type="train", run_config=None):
    content = RecordDict(
        {
            "config": ConfigRecord(config),
            "arrays": ArrayRecord(
                {name: Array(np.array(each, dtype=np.float32)) for name, each in arrays.items()}
            ),
            RECORD: ConfigRecord({"nonce": "differs"}),
        }
    )
    return question(content, message_type, "1", run_config or {}, RECORD)


def exact(value):
    """Tell True from 1, 1 from 1.0, and 0.0 from -0.0."""
    if isinstance(value, dict):
        return [(key, exact(each)) for key, each in value.items()]
    return [exact(each) for each in value] if isinstance(value, list) else repr(value)


@settings(max_examples=40)
@given(CONFIGS, ARRAYS, CONFIGS, ARRAYS)
def test_s2_two_questions_hash_alike_only_if_they_are_alike(config, arrays, other, others):
    same = exact(config) == exact(other) and exact(arrays) == exact(others)
    assert (asked(config, arrays) == asked(other, others)) == same
    assert asked(config, arrays) == asked(copy.deepcopy(config), copy.deepcopy(arrays))
    assert asked(config, arrays) != asked(config, arrays, "train.other")
    assert asked(config, arrays) != asked(config, arrays, run_config={"a": 1})
