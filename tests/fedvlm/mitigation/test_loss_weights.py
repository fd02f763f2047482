"""Weights by loss: what they are, that sums take them as numbers of pairs, what a lie buys."""

import math

import numpy as np
import pytest
import torch
from flwr.app import Array, ArrayRecord, Message, MetricRecord, RecordDict
from flwr.serverapp.strategy import FedAvg
from hypothesis import given
from hypothesis import strategies as st

from fedvlm.config import config_from
from fedvlm.errors import ConfigError
from fedvlm.federation import load_task, simulate
from fedvlm.federation.client_app import app
from fedvlm.federation.grid import InProcessGrid
from fedvlm.federation.mitigated import weight_of
from fedvlm.federation.records import EXAMPLES, VECTOR
from fedvlm.federation.strategy import FederationStrategy
from fedvlm.federation.terms import max_weight
from fedvlm.mitigation.loss_weights import LEAST, loss_weight
from fedvlm.training.losses import contrastive_loss


@pytest.mark.parametrize(
    ("pairs", "loss", "power", "weight"),
    [
        (100, 0.5, 2.0, 25.0),
        (100, 0.5, 0.0, 100.0),
        (7, 1.0, 5.0, 7.0),
        (100, 2.0, 3.0, 800.0),
        (100, 3.0, 3.0, 1000.0),  # clamped
        (100, 1e308, 5.0, 1000.0),
        (100, math.inf, 1.0, 1000.0),
        (100, math.nan, 1.0, LEAST),
        (100, 0.01, 5.0, LEAST),
        (100, -3.0, 1.0, LEAST),
    ],
)
def test_a_weight_is_pairs_times_a_power_of_the_loss_and_clamped(pairs, loss, power, weight):
    assert loss_weight(pairs, loss, power, 1000.0) == pytest.approx(weight)


@given(st.integers(0, 2**31), st.floats(), st.floats(0, 5), st.integers(1, 1 << 20).map(float))
def test_no_loss_gains_more_than_the_clamp(pairs, loss, power, most):
    assert LEAST <= loss_weight(pairs, loss, power, most) <= most


@given(st.integers(1, 1000), st.floats(0, 3), st.floats(0, 3), st.floats(0, 5))
def test_who_is_served_worse_never_weighs_less(pairs, one, other, power):
    low, high = sorted((one, other))
    assert loss_weight(pairs, low, power, 1000.0) <= loss_weight(pairs, high, power, 1000.0)


@pytest.mark.parametrize("wrong", [(-1, 1.0, 1.0, 10.0), (1, 1.0, -1.0, 10.0), (1, 1.0, 1.0, 0.5)])
def test_what_is_no_weight_is_refused(wrong):
    with pytest.raises(ConfigError, match="a weight by loss needs"):
        loss_weight(*wrong)


def _by_hand(task, client, number):
    """Return n·F^q of a client from single embeddings and the loss itself."""
    rows, size = task.rows(client), task.config.training.batch_size
    order = task.seed.numpy("loss", client, number).permutation(rows)
    shares = []
    for batch in np.array_split(order, max(1, round(len(rows) / size))):
        images = torch.cat(
            [
                task.model.vlm.embed(task.pairs.images(batch[n : n + 1]), "image")
                for n in range(len(batch))
            ]
        )
        texts = torch.cat(
            [
                task.model.vlm.embed(task.model.processor.texts([task.data.captions[row]]), "text")
                for row in batch
            ]
        )
        concepts = torch.from_numpy(task.data.concepts[batch])
        loss = contrastive_loss(images, texts, concepts, task.model.vlm.logit_scale.detach())
        shares.append(float(loss) / math.log(len(batch)))
    return min(max(len(rows) * np.mean(shares) ** task.config.mitigation.loss_power, 1), 1000)


def _watched(told):
    """Return a client that writes down what it tells in clear, and what it trained."""

    def client(message, context):
        reply = app(message, context)
        if message.metadata.message_type == "train" and "metrics" in reply.content:
            number = context.node_config["partition-id"]
            vector = reply.content["arrays"][VECTOR].numpy()
            told[number] = (reply.content["metrics"][EXAMPLES], vector)
        return reply

    return client


def _vector(out):
    with np.load(out / "checkpoint.npz", allow_pickle=False) as kept:
        return kept["vector"]


def test_a_run_weighs_by_the_loss_of_what_was_sent_in_clear_as_in_a_secure_sum(small_run, tmp_path):
    settings = small_run | {"rounds": 1, "partition": "quantity", "alpha": 1.0, "loss_power": 3.0}
    config, told = config_from(settings), {}
    result = simulate(config, out=tmp_path / "plain", client=_watched(told))
    task = load_task(config)
    task.reset()
    weights = {number: weight for number, (weight, _) in told.items()}
    for number, weight in weights.items():
        assert weight == pytest.approx(_by_hand(task, number, 1), rel=1e-4)
        assert weight != len(task.rows(number))
        assert weight == weight_of(task, number, 1)
    mean = sum(w * v.astype(np.float64) for w, v in told.values()) / sum(weights.values())
    plain = _vector(tmp_path / "plain")
    assert np.abs(plain - mean).max() < 1e-6
    by_pairs = sum(len(task.rows(n)) * v.astype(np.float64) for n, (_, v) in told.items())
    by_pairs /= sum(len(task.rows(n)) for n in told)
    assert np.abs(plain - by_pairs).max() > 1e-5  # the weights do something
    assert result.protection["parameters"]["weights"] == "by examples times loss^3, up to 1,000"
    secured = config_from({"protect": "secagg"}, config)
    summed = simulate(secured, out=tmp_path / "secagg")
    assert np.abs(_vector(tmp_path / "secagg") - mean).max() < 1e-4
    assert summed.rounds[1]["train_loss"] == pytest.approx(result.rounds[1]["train_loss"], abs=0.01)


@pytest.mark.slow
def test_encrypted_sums_weigh_by_loss_too(small_run, tmp_path):
    settings = small_run | {"rounds": 1, "partition": "quantity", "alpha": 1.0, "loss_power": 3.0}
    for protect in ("plain", "he"):
        simulate(config_from(settings | {"protect": protect}), out=tmp_path / protect)
    assert np.abs(_vector(tmp_path / "plain") - _vector(tmp_path / "he")).max() < 1e-3


def test_who_claims_a_huge_loss_weighs_the_clamp(small_run):
    """As with a number of pairs under a secure sum; here in clear, where the server clamps it."""
    config = config_from(small_run | {"loss_power": 1.0})
    InProcessGrid(app, 1)  # sets the identity that messages ask for
    strategy = FederationStrategy(FedAvg(), config, "schema")
    strategy._size = 2

    def reply(node, weight, value):
        vector = np.full(2, value, dtype=np.float32)
        metrics = {EXAMPLES: weight, "train-loss": 1.0, "client-seconds": 0.0}
        content = RecordDict(
            {"arrays": ArrayRecord({VECTOR: Array(vector)}), "metrics": MetricRecord(metrics)}
        )
        message = Message(content, dst_node_id=0, message_type="train")
        message.metadata.__dict__["_src_node_id"] = node
        strategy._roll._numbers[node] = node
        return message

    arrays, _ = strategy.aggregate_train(1, [reply(1, 2.0**31, 1.0), reply(2, 250.0, 0.0)])
    assert arrays is not None
    most = max_weight(config)
    assert np.allclose(arrays[VECTOR].numpy(), most / (most + 250), atol=1e-6)
