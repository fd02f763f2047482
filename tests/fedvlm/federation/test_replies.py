"""No reply ends a run: it costs its client its part in the round, and is named (S3)."""

import io
import logging
import struct

import numpy as np
import pytest
from flwr.app import Array, ArrayRecord, ConfigRecord, Message, MetricRecord, RecordDict
from flwr.serverapp.strategy import FedAvg
from hypothesis import given, settings
from hypothesis import strategies as st

from fedvlm.config import config_from
from fedvlm.federation import InProcessGrid
from fedvlm.federation.distributed import DistributedStrategy
from fedvlm.federation.private import ClientLevelStrategy
from fedvlm.federation.records import EXAMPLES, VECTOR, one_reply, read_reply, read_vector
from fedvlm.federation.roll import QUERY, own_number, tell_number
from fedvlm.federation.strategy import FederationStrategy, inner_strategy

SIZE = 6
HONEST = {EXAMPLES: 10, "train-loss": 1.0, "client-seconds": 0.1}


def _npy(header, body=b""):
    text = header if isinstance(header, bytes) else header.encode()
    return b"\x93NUMPY\x01\x00" + struct.pack("<H", len(text)) + text + body


def _npz():
    out = io.BytesIO()
    np.savez(out, adapter=np.zeros(SIZE, dtype=np.float32))
    return out.getvalue()


def _saved(array, **kwargs):
    out = io.BytesIO()
    np.save(out, array, **kwargs)
    return out.getvalue()


GOOD = f"{{'descr': '<f4', 'fortran_order': False, 'shape': ({SIZE},), }}"
PAYLOADS = {
    "nothing": b"",
    "text": b"hello",
    "magic alone": b"\x93NUMPY",
    "another version": b"\x93NUMPY\x03\x00" + b"\x00" * 60,
    "an npz": _npz(),
    "a torn npz": _npz()[:40],
    "a pickle": b"\x80\x04\x95\x10\x00",
    "pickled objects": _saved(np.array([{}], dtype=object), allow_pickle=True),
    "a header of 10^12 items": _npy(GOOD.replace(str(SIZE), "1000000000000"), b"\x00" * 24),
    "a negative shape": _npy(GOOD.replace(str(SIZE), "-6"), b"\x00" * 24),
    "a shape beyond a word": _npy(GOOD.replace(str(SIZE), "9" * 40), b"\x00" * 24),
    "brackets without end": _npy("(" * 9_000),
    "a header cut off": _npy(GOOD)[:30],
    "no body": _npy(GOOD),
    "too much body": _npy(GOOD, b"\x00" * 28),
    "another shape": _saved(np.zeros((2, 3), dtype=np.float32)),
    "another length": _saved(np.zeros(SIZE + 1, dtype=np.float32)),
    "numbers of another type": _saved(np.zeros(SIZE, dtype=np.int32)),
    "complex": _saved(np.zeros(SIZE, dtype=np.complex64)),
    "nan": _saved(np.full(SIZE, np.nan, dtype=np.float32)),
    "infinite": _saved(np.full(SIZE, np.inf, dtype=np.float32)),
    "too large to square": _saved(np.full(SIZE, 3e38, dtype=np.float32)),
}


def _content(data, metrics=HONEST, dtype="float32", shape=(SIZE,), stype="numpy.ndarray"):
    return RecordDict(
        {
            "arrays": ArrayRecord({VECTOR: Array(dtype, tuple(shape), stype, data)}),
            "metrics": MetricRecord({**metrics}),
        }
    )


def _bad_contents():
    fine = _saved(np.ones(SIZE, dtype=np.float32))
    yield from ((name, _content(data)) for name, data in PAYLOADS.items())
    yield "no records", RecordDict()
    yield "other records", RecordDict({"a": ConfigRecord({"b": 1})})
    yield (
        "records changed places",
        RecordDict({"metrics": ArrayRecord({}), "arrays": MetricRecord({EXAMPLES: 1})}),
    )
    for name, value in (
        ("no examples", 0),
        ("fewer than none", -3),
        ("nan examples", float("nan")),
        ("infinite examples", float("inf")),
        ("all examples there are", 1 << 40),
        ("a list of examples", [1, 2]),
        ("an empty list", []),
    ):
        yield name, _content(fine, HONEST | {EXAMPLES: value})
    yield "no loss", _content(fine, {EXAMPLES: 3})
    yield "a list of losses", _content(fine, HONEST | {"train-loss": [0.5]})


BAD = dict(_bad_contents())


def _run(config, wrap, bad, bad_client=2):
    """Run rounds in which one client answers as told; returns the strategy and the arrays."""

    def client(message, context):
        if message.metadata.message_type == QUERY:
            return tell_number(message, own_number(context))
        if own_number(context) == bad_client:
            return Message(bad, reply_to=message)
        return Message(_content(_saved(np.ones(SIZE, dtype=np.float32)), HONEST), reply_to=message)

    strategy = FederationStrategy(wrap(inner_strategy(config)), config, "schema")
    start = ArrayRecord({VECTOR: Array(np.zeros(SIZE, dtype=np.float32))})
    grid = InProcessGrid(client, config.data.clients)
    result = strategy.start(grid, start, num_rounds=config.training.rounds, timeout=30)
    return strategy, result.arrays[VECTOR].numpy()


@pytest.mark.parametrize("name", BAD)
def test_a_bad_reply_in_clear_costs_its_client_the_round(name, caplog):
    config = config_from({"clients": 3, "rounds": 2})
    with caplog.at_level(logging.WARNING, logger="fedvlm"):
        strategy, vector = _run(config, lambda inner: inner, BAD[name])
    assert [strategy.costs[n].clients for n in (1, 2)] == [2, 2]
    assert np.allclose(vector, 1.0)
    assert "round 1: client 3 is left out" in caplog.text
    assert "round 2: client 3 is left out" in caplog.text


@pytest.mark.parametrize("name", BAD)
def test_a_bad_reply_under_client_level_dp_counts_as_nothing(name):
    """S3: EOFError, BadZipFile, MemoryError, OverflowError and TokenError ended the run."""
    settings = {"clients": 3, "rounds": 2, "dp": "client", "weight_cap": 5, "epsilon": 50.0}
    config = config_from(settings | {"clip_norm": 10.0, "simulated_noise": True})
    strategy, vector = _run(config, lambda inner: ClientLevelStrategy(inner, config), BAD[name])
    assert sorted(strategy.costs) == [1, 2]
    assert np.isfinite(vector).all()


@pytest.mark.parametrize("optimizer", ["fedavgm", "fedadam"])
def test_one_reply_of_huge_values_leaves_the_server_s_optimiser_whole(optimizer):
    config = config_from({"clients": 3, "rounds": 2, "server_optimizer": optimizer})
    huge = _content(_saved(np.full(SIZE, 1e20, dtype=np.float32)))
    _, vector = _run(config, lambda inner: inner, huge)
    assert np.isfinite(vector).all()
    assert np.abs(vector).max() < 10


@pytest.mark.parametrize("value", [np.inf, np.nan])
def test_t1_an_aggregate_that_is_not_finite_is_never_sent_on(value):
    """No reply can be so large; a strategy around the mean, or its sum, could."""
    config = config_from({"clients": 3, "rounds": 2})

    class Overflows(FedAvg):
        def aggregate_train(self, server_round, replies):
            arrays, metrics = super().aggregate_train(server_round, replies)
            if server_round == 1:
                vector = np.full(SIZE, value, dtype=np.float32)
                arrays = ArrayRecord({VECTOR: Array(vector)})
            return arrays, metrics

    def broken(inner):
        return Overflows(fraction_train=1.0, fraction_evaluate=0.0, min_train_nodes=2)

    fine = _content(_saved(np.ones(SIZE, dtype=np.float32)), HONEST)
    strategy, vector = _run(config, broken, fine)
    assert "not finite" in strategy.abandoned[1]
    assert list(strategy.abandoned) == [1]
    assert np.allclose(vector, 1.0)


def test_s3_one_bad_reply_of_two_costs_the_round_and_not_the_run():
    """What is left would be one client's own update: the round is abandoned, the next one isn't."""
    config = config_from({"clients": 2, "rounds": 2})

    def client(message, context):
        if message.metadata.message_type == QUERY:
            return tell_number(message, own_number(context))
        if own_number(context) == 1 and message.content["config"]["server-round"] == 1:
            return Message(BAD["nan"], reply_to=message)
        return Message(_content(_saved(np.ones(SIZE, dtype=np.float32)), HONEST), reply_to=message)

    strategy = FederationStrategy(inner_strategy(config), config, "schema")
    start = ArrayRecord({VECTOR: Array(np.zeros(SIZE, dtype=np.float32))})
    result = strategy.start(InProcessGrid(client, 2), start, num_rounds=2, timeout=30)
    assert list(strategy.abandoned) == [1]
    assert "1 of 2 clients answered" in strategy.abandoned[1]
    assert np.allclose(result.arrays[VECTOR].numpy(), 1.0)


@given(
    st.one_of(
        st.binary(max_size=200),
        st.tuples(st.text(max_size=80), st.binary(max_size=60)).map(
            lambda each: _npy(each[0].encode()[:60_000], each[1])
        ),
        st.tuples(st.integers(0, 140), st.binary(min_size=1, max_size=4)).map(
            lambda each: (
                _saved(np.ones(SIZE, dtype=np.float32))[: each[0]]
                + each[1]
                + _saved(np.ones(SIZE, dtype=np.float32))[each[0] + len(each[1]) :]
            )
        ),
    )
)
@settings(max_examples=300, deadline=None)
def test_any_bytes_are_a_vector_or_nothing(data):
    vector = read_vector(Array("float32", (SIZE,), "numpy.ndarray", data), SIZE)
    assert vector is None or (
        vector.shape == (SIZE,) and vector.dtype == np.float32 and np.abs(vector).max() <= 1e9
    )
    read_reply(Message(_content(data), dst_node_id=1, message_type="train"), SIZE)


def test_what_a_client_sends_is_read_as_numpy_wrote_it():
    for size in (1, 6, 3776, 100_000):
        sent = np.linspace(-1, 1, size).astype(np.float32)
        read = read_reply(one_reply(sent, {EXAMPLES: 3}), size)
        assert read is not None
        assert np.array_equal(read[0], sent)
        assert read[1] == {EXAMPLES: 3}


def _distributed(counted):
    config = config_from(
        {"clients": 5, "rounds": 2, "dp": "distributed", "protect": "secagg", "epsilon": 6.0}
    )
    strategy = DistributedStrategy(inner_strategy(config), config, SIZE)
    strategy.summed = lambda: counted
    arrays = ArrayRecord({VECTOR: Array(np.zeros(SIZE, dtype=np.float32))})
    grid = InProcessGrid(lambda m, c: Message(RecordDict(), reply_to=m), 5)
    list(strategy.configure_train(1, arrays, ConfigRecord(), grid))
    return strategy


@pytest.mark.parametrize("told", [7.0, 0.5, 1e9, float("nan")])
def test_what_a_client_says_of_its_examples_is_nothing_to_distributed_dp(told):
    """S3: a client that reports 7 examples ended the run."""
    strategy = _distributed(5)
    mean = np.full(strategy.mechanism.dimension, 3.0) / 5
    got, _ = strategy.aggregate_train(1, [one_reply(mean, {EXAMPLES: told})])
    assert got is not None
    assert np.isfinite(got[VECTOR].numpy()).all()


def test_a_sum_without_integers_leaves_the_model(caplog):
    strategy = _distributed(5)
    mean = np.full(strategy.mechanism.dimension, 0.3)
    with caplog.at_level(logging.WARNING, logger="fedvlm"):
        assert strategy.aggregate_train(1, [one_reply(mean)]) == (None, None)
        assert strategy.aggregate_train(1, [one_reply(mean * np.nan)]) == (None, None)
    assert "round 1 is abandoned" in caplog.text
