"""Evaluation where the data is: one accuracy of all nodes, and none of a single one."""

import json

import numpy as np
import pytest
from flwr.app import ConfigRecord, Message, MetricRecord, RecordDict
from hypothesis import given, settings
from hypothesis import strategies as st

from fedvlm.config import config_from, for_nodes, from_run_config
from fedvlm.data import load_folder
from fedvlm.errors import ConfigError
from fedvlm.federation import simulate
from fedvlm.federation.floor import Floor, RefusedError, Terms
from fedvlm.federation.node import read_node
from fedvlm.federation.own_data import own_splits
from fedvlm.federation.run import run_federation
from fedvlm.federation.scores import SCORES, mean_of, one_score
from fedvlm.training.evaluation import mean_interval, rate_interval
from tests.fedvlm.federation.failing import FailingGrid, server_config, write_sites

SITES = 3


def own_scores(nodes):
    """What each node wrote on its own disk, after the last round."""
    return [json.loads((node / "state" / "scores.json").read_text())[-1] for node in nodes]


@pytest.fixture
def sites(tmp_path, shapes_folder, tiny_clip_folder):
    def make(keys):
        place = tmp_path / ("keys" if keys else "clear")
        return write_sites(place, shapes_folder, tiny_clip_folder, SITES, keys)

    return make


@pytest.mark.parametrize(
    "protect", [pytest.param("plain", marks=pytest.mark.slow), "secagg-active"]
)
def test_one_accuracy_of_what_all_nodes_hold_out(sites, small_run, tmp_path, protect):
    nodes = sites(protect != "plain")
    config = server_config(small_run, protect=protect, node_scores="last", trip_timeout=20.0)
    grid = FailingGrid(nodes, config)
    result = run_federation(grid, config, out=tmp_path / "run")
    assert not grid.errors
    assert "nodes_one_of_100" not in result.rounds[1]
    entry, own = result.rounds[2], own_scores(nodes)
    assert [each["round"] for each in own] == [2] * SITES
    pairs = np.array([each["pairs"] for each in own])
    expected = pairs @ [each["one-of-100"] for each in own] / pairs.sum()
    # Rounding of a secure sum: 2^-16 of a pair's weight for each node, in 1,000 steps of weight.
    assert entry["nodes_pairs"] == pytest.approx(pairs.sum(), abs=1e-3)
    assert entry["nodes_one_of_100"] == pytest.approx(expected, abs=1e-3)
    low, high = rate_interval(expected, float(pairs.sum()))
    assert entry["nodes_one_of_100_low"] == pytest.approx(low, abs=2e-3)
    assert entry["nodes_one_of_100_high"] == pytest.approx(high, abs=2e-3)
    assert result.summary["nodes_federated"] == entry["nodes_one_of_100"]
    # What the server keeps holds no single node's score.
    text = (tmp_path / "run" / "result.json").read_text()
    singles = {round(each["one-of-100"], 6) for each in own} - {round(expected, 6)}
    assert not any(f"{single:.6f}"[:8] in text for single in singles if single not in (0.0, 1.0))
    # An answer is an answer: two rounds and a score.
    told = [json.loads((node / "state" / "told.json").read_text())["answers"] for node in nodes]
    assert told == [3] * SITES


@pytest.mark.slow
def test_personal_parts_are_scored_as_each_node_has_them(sites, small_run, tmp_path):
    from fedvlm.federation.installing import install
    from fedvlm.federation.personal import PersonalPart
    from fedvlm.federation.rules import rule_of
    from fedvlm.federation.scoring import score

    nodes = sites(False)
    config = server_config(small_run, share="A", node_scores="each", learning_rate=0.05)
    grid = FailingGrid(nodes, config)
    run_federation(grid, config, out=tmp_path / "run")
    assert not grid.errors
    vector = np.load(tmp_path / "run" / "checkpoint.npz", allow_pickle=False)["vector"]
    config = from_run_config(for_nodes(config))  # as the nodes know it
    for folder, told in zip(nodes, own_scores(nodes), strict=True):
        node = read_node(folder / "node.toml")
        task = node.task(config)
        rule = rule_of(config, task.view.layout)
        size = task.view.size - int(rule.common.sum())
        part = PersonalPart(node, RecordDict(), config, task.view.schema, size).before(3)
        mixed = vector.copy()
        mixed[~rule.common] = part
        install(task, rule, mixed)
        assert score(task)["one-of-100"] == pytest.approx(told["one-of-100"])


def test_a_simulation_holds_out_by_content_too_and_trains_on_none_of_it(small_run):
    from fedvlm.federation import load_task

    plain = config_from(small_run)
    config = config_from(small_run | {"node_scores": "each", "rounds": 2, "protect": "secagg"})
    for client in range(3):
        one, two = load_task(plain, client=client), load_task(config, client=client)
        assert set(two.own) | set(two.held) == set(one.own)
        assert not set(two.own) & set(two.held)
        shown = {two.data.encoded[row] for row in two.held}
        assert not shown & {two.data.encoded[row] for row in two.own}
    result = simulate(config)
    assert all("nodes_one_of_100" in entry for entry in result.rounds[1:])


@pytest.mark.slow
def test_a_node_that_holds_out_too_little_keeps_nobody_s_sum_from_its_end(
    sites, small_run, tmp_path
):
    nodes = sites(True)
    table = nodes[0] / "data" / "captions.csv"
    config = server_config(small_run, protect="secagg", node_scores="each", trip_timeout=20.0)
    data = load_folder(nodes[0] / "data")
    held = {data.captions[row] for row in own_splits(data).test}
    lines = table.read_text().splitlines()
    table.write_text("\n".join(line for line in lines if line.split(",")[1] not in held) + "\n")
    grid = FailingGrid(nodes, config)
    result = run_federation(grid, config, out=tmp_path / "run")
    assert not grid.errors
    others = own_scores(nodes[1:])
    for entry in result.rounds[1:]:
        assert entry["nodes_pairs"] == pytest.approx(sum(e["pairs"] for e in others), abs=1e-2)
    assert not (nodes[0] / "state" / "scores.json").exists()


def test_a_run_that_asks_for_no_scores_gets_none(sites, small_run):
    """A server that sends the message all the same is refused, and nothing is counted."""
    nodes = sites(False)
    config = server_config(small_run)
    grid = FailingGrid(nodes, config)
    for number in (1, 3):
        content = RecordDict({"config": ConfigRecord({"server-round": number, "schema": "x"})})
        task = read_node(nodes[0] / "node.toml").task(config)
        from flwr.app import Array, ArrayRecord

        content["arrays"] = ArrayRecord({"adapter": Array(task.initial)})
        (reply,) = grid.send_and_receive([Message(content, grid.node_ids[0], "evaluate")])
        assert reply.error.reason == "node: terms"
    assert not (nodes[0] / "state" / "told.json").exists()


@pytest.mark.parametrize(
    "changes",
    [
        {"dp": "example"},
        {"dp": "client"},
        {"dp": "distributed", "protect": "secagg"},
        {"protect": "he"},
        {"membership": "half"},
    ],
)
def test_scores_that_no_protection_covers_are_refused(changes):
    with pytest.raises(ConfigError, match="node_scores"):
        config_from({"node_scores": "last", **changes})


def test_a_floor_allows_scores_or_not():
    asked = Terms.of(config_from({"node_scores": "last"}))
    assert Floor().allows(asked)
    for floor in (Floor(scores=False), Floor(epsilon=8.0)):
        with pytest.raises(RefusedError) as stop:
            floor.check(asked)
        assert stop.value.code in ("scores", "noise")
    assert Floor(scores=False).allows(Terms.of(config_from({})))


def reply(**told):
    message = Message(RecordDict(), dst_node_id=1, message_type="evaluate")
    message.metadata.__dict__["_message_id"] = "m"
    return Message(RecordDict({"metrics": MetricRecord(told)}), reply_to=message)


SOUND = {"num-examples": 10, "one-of-100": 0.5, "candidates": 8, "pairs-an-image": 1.0}


@given(
    st.lists(
        st.dictionaries(
            st.sampled_from(["num-examples", *SCORES, "x"]),
            st.one_of(st.integers(-(2**63), 2**63 - 1), st.floats(), st.lists(st.floats())),
        ),
        max_size=4,
    )
)
@settings(max_examples=60, deadline=None)
def test_whatever_a_node_replies_the_mean_stays_a_rate(replies):
    InProcess()
    told, count = mean_of([reply(**SOUND), *(reply(**each) for each in replies)])
    assert 1 <= count <= len(replies) + 1
    found = one_score(dict(told))
    assert 0 <= found["nodes_one_of_100_low"] <= found["nodes_one_of_100"]
    assert found["nodes_one_of_100"] <= found["nodes_one_of_100_high"] <= 1


def InProcess():  # noqa: N802  sets the identity that messages ask for
    from fedvlm.federation import InProcessGrid

    return InProcessGrid(lambda m, c: m, 1)


@given(st.lists(st.integers(1, 6), min_size=1, max_size=30), st.integers(0, 99))
@settings(max_examples=60, deadline=None)
def test_the_interval_of_a_sum_is_that_of_the_pairs_together(sizes, seed):
    """Oracle: all nodes' pairs in one place, clustered by image."""
    rng = np.random.default_rng(seed)
    clusters = np.repeat(np.arange(len(sizes)), sizes)
    values = rng.uniform(size=len(clusters))
    cut = len(sizes) // 2
    nodes = [clusters < cut, clusters >= cut]
    replies = []
    for mask in nodes:
        if mask.sum() < 2:
            return
        m = np.unique(clusters[mask], return_counts=True)[1].astype(float)
        told = {"one-of-100": values[mask].mean(), "candidates": 2}
        told |= {"num-examples": int(mask.sum()), "pairs-an-image": (m**2).sum() / m.sum()}
        replies.append(reply(**told))
    InProcess()
    found = one_score(dict(mean_of(replies)[0]))
    low, high = mean_interval(values, clusters)
    assert found["nodes_one_of_100_low"] == pytest.approx(low)
    assert found["nodes_one_of_100_high"] == pytest.approx(high)
