"""Who is drawn follows from the seed, whatever ids the engine gives to the nodes (E1, E2)."""

import logging

import numpy as np
import pytest
from flwr.app import Array, ArrayRecord, ConfigRecord, Error, Message, RecordDict
from hypothesis import given, settings
from hypothesis import strategies as st

from fedvlm.config import config_from
from fedvlm.federation import InProcessGrid
from fedvlm.federation.client_app import VECTOR
from fedvlm.federation.private import ClientLevelStrategy
from fedvlm.federation.roll import QUERY, Roll, own_number, tell_number
from fedvlm.federation.strategy import FederationStrategy, inner_strategy

START = {VECTOR: np.zeros(4, dtype=np.float32)}


class Engine(InProcessGrid):
    """A grid with chosen ids: node k of the list is client k."""

    def __init__(self, ids, told=None, silent=()):
        super().__init__(self._answer, len(ids))
        self.contexts = {
            node: context for node, context in zip(ids, self.contexts.values(), strict=True)
        }
        self._locks = dict(zip(ids, self._locks.values(), strict=True))
        self.node_ids = tuple(ids)
        self.there = list(ids)
        self.told = dict(enumerate(told)) if told is not None else None
        self.silent = set(silent)
        self.asked = []

    def get_node_ids(self):
        return list(self.there)

    def _answer(self, message, context):
        if message.metadata.message_type != QUERY:
            return Message(RecordDict(), reply_to=message)
        number = own_number(context)
        self.asked.append(number)
        if number in self.silent:
            return Message(Error(1, "no such handler"), reply_to=message)
        return tell_number(message, number if self.told is None else self.told[number])


def _ids(count, seed):
    rng = np.random.default_rng(seed)
    low = rng.integers(1, 1 << 63, count, dtype=np.uint64).tolist()
    return [(each | 1 << 63) if i % 2 else each for i, each in enumerate(low)]


def _drawn(ids, config, rounds=3):
    engine = Engine(ids)
    strategy = FederationStrategy(inner_strategy(config), config, "schema")
    out = []
    for number in range(1, rounds + 1):
        arrays = ArrayRecord({name: Array(value) for name, value in START.items()})
        messages = list(strategy.configure_train(number, arrays, ConfigRecord(), engine))
        out.append(sorted(ids.index(message.metadata.dst_node_id) for message in messages))
    assert sorted(engine.asked) == list(range(len(ids)))  # each once, not once a round
    return out


@pytest.mark.parametrize("clients", [2, 3, 10, 50])
def test_ids_on_both_sides_of_2_63_are_drawn_like_any_other_e1_e2(clients):
    config = config_from({"clients": clients, "fraction": 0.6, "seed": 5})
    small = _drawn(list(range(1, clients + 1)), config)
    for seed in range(3):
        assert _drawn(_ids(clients, seed), config) == small
    assert len({tuple(each) for each in small}) > 1 or clients == 2


@given(st.sets(st.integers(1, (1 << 64) - 1), min_size=2, max_size=12), st.randoms())
@settings(max_examples=25, deadline=None)
def test_no_set_of_ids_changes_who_is_drawn_e2(ids, random):
    order = list(ids)
    random.shuffle(order)
    config = config_from({"clients": len(order), "fraction": 0.5})
    assert _drawn(order, config, 2) == _drawn(list(range(1, len(order) + 1)), config, 2)


def test_client_level_coins_go_by_number_e1():
    config = config_from(
        {"clients": 10, "dp": "client", "fraction": 0.5, "simulated_noise": True, "rounds": 2}
    )

    def drawn(ids):
        strategy = ClientLevelStrategy(inner_strategy(config), config)
        arrays = ArrayRecord({name: Array(value) for name, value in START.items()})
        messages = strategy.configure_train(1, arrays, ConfigRecord(), Engine(ids))
        return sorted(ids.index(message.metadata.dst_node_id) for message in messages)

    expected = drawn(list(range(1, 11)))
    assert expected
    assert all(drawn(_ids(10, seed)) == expected for seed in range(5))


def test_the_grid_in_process_hands_out_ids_as_superlink_does():
    for nodes in (2, 3, 10):
        ids = InProcessGrid(lambda m, c: Message(RecordDict(), reply_to=m), nodes).get_node_ids()
        assert len(set(ids)) == nodes
        assert min(ids) < 1 << 63 <= max(ids) < 1 << 64
        assert min(ids) > 1 << 32
    assert ids != sorted(ids)


def test_nodes_that_tell_no_number_count_by_their_ids():
    roll = Roll()
    engine = Engine([30, 10, 20], silent={0, 1, 2})
    assert roll.call(engine) == [10, 20, 30]
    assert [roll.number(node) for node in (10, 20, 30)] == [0, 1, 2]
    roll.call(engine)
    assert len(engine.asked) == 3


def test_some_tell_and_some_do_not():
    roll = Roll()
    engine = Engine([30, 10, 20], silent={1})
    assert roll.call(engine) == [30, 10, 20]  # 30 is client 0, 20 is client 2, 10 gets what is left


def test_a_number_that_is_taken_or_out_of_range_takes_no_part(caplog):
    engine = Engine([5, 6, 7, 8], told=[0, 0, 9, 1])
    roll = Roll(most=4)
    with caplog.at_level(logging.WARNING, logger="fedvlm"):
        assert roll.call(engine) == [5, 8]
        assert roll.call(engine) == [5, 8]
    assert len(caplog.messages) == 2
    assert "node 6 is left out: it says it is client 1, which another node has too" in caplog.text
    assert "node 7 is left out: it says it is client 10, and the run is for 4" in caplog.text


def test_a_node_that_comes_back_under_another_id_takes_its_number_up_again():
    engine = Engine([5, 6, 7], told=[0, 1, 1])
    engine.there = [5, 6]
    roll = Roll(most=2)
    assert roll.call(engine) == [5, 6]
    engine.there = [5, 7]
    assert roll.call(engine) == [5, 7]
    assert roll.number(7) == 1


@pytest.mark.parametrize(
    "config",
    [{}, {"number": "1"}, {"number": -1}, {"number": 1 << 40}, {"number": 0.5}, {"other": 1}],
)
def test_an_answer_that_is_no_number_is_none(config):
    def answer(message, context):
        return Message(RecordDict({"config": ConfigRecord(config)}), reply_to=message)

    grid = InProcessGrid(answer, 2)
    assert Roll().call(grid) == sorted(grid.node_ids)


def test_waiting_ends_when_enough_are_there_or_time_is_up():
    engine = Engine([5, 6, 7])
    engine.there = [5]
    assert Roll().gather(engine, 3, 0.3) == [5]
    engine.there = [5, 6, 7]
    assert Roll().gather(engine, 3, 60) == [5, 6, 7]
