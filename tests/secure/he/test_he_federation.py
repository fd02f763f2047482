"""A Flower fit whose sums are made under encryption: what it gives, and what it refuses."""

import copy
import stat
from contextlib import suppress

import numpy as np
import pytest
from flwr.app import Array, ArrayRecord, ConfigRecord, Message, RecordDict
from flwr.serverapp import strategy as flower

from secure.aggregation.flower import REFUSALS
from secure.errors import IntegrityError, ParameterError, PeerError, PolicyError
from secure.he import Encrypted, HEClient
from secure.he.flower import DECRYPT, ENCRYPT, PAYLOAD, RECORD, HESumStrategy, he_mod
from secure.he.policy import HEPolicy, load_key, provision_key
from tests.secure.aggregation.local_grid import LocalGrid
from tests.secure.aggregation.plain_app import SECRET, initial, make_app

NODES = 4
POLICY = HEPolicy(clients=NODES, bound=1.0, rounds=3, max_weight=20)
ALL = {"min_train_nodes": 3, "min_available_nodes": 3, "fraction_evaluate": 0.0}


@pytest.fixture(scope="module")
def key(tmp_path_factory):
    path = tmp_path_factory.mktemp("he") / "he.key"
    provision_key(path, POLICY)
    return path


def federate(app, lose=None, tamper=None, rounds=1):
    grid = LocalGrid(app, NODES, lose)
    grid.tamper = tamper
    wrapped = HESumStrategy(flower.FedAvg(**ALL), POLICY, trip_timeout_s=5)
    result = None
    with suppress(PeerError):
        result = wrapped.start(grid, initial(), num_rounds=rounds)
    return result, wrapped, grid


def plain(lose=None):
    grid = LocalGrid(make_app(), NODES, lose)
    return flower.FedAvg(**ALL).start(grid, initial(), num_rounds=1)


def floats(result):
    return {name: array.numpy() for name, array in result.arrays.items() if name != "norm.batches"}


@pytest.mark.parametrize("lost", [(), (2,)])
def test_the_mean_is_that_of_the_clients_that_answered(key, lost):
    result, wrapped, _ = federate(make_app([he_mod(POLICY, key)]), {1: lost})
    expected = floats(plain({1: lost}))
    noise = wrapped.noise
    assert 0 < noise < 1e-6
    for name, array in floats(result).items():
        assert np.abs(array - expected[name]).max() < 10 * noise + 1e-7
    assert result.arrays["norm.batches"].numpy() == 4
    (record,) = wrapped.history
    assert record.summed == NODES - len(lost)
    assert [trip.name for trip in record.trips] == [ENCRYPT, DECRYPT]
    metrics = result.train_metrics_clientapp[1]
    kept = [part for part in range(NODES) if part not in lost]
    loss = np.average([1.5 + part for part in kept], weights=[10 + part for part in kept])
    assert metrics["train-loss"] == pytest.approx(loss, abs=1e-5)


def test_the_server_gets_ciphertexts_and_never_the_key(key):
    _, _, grid = federate(make_app([he_mod(POLICY, key)]))
    secret = key.read_bytes()
    wires = [repr(message.content).encode() for message in (*grid.sent, *grid.answers)]
    payloads = [
        message.content.array_records[PAYLOAD]["bytes"].numpy().tobytes()
        for message in (*grid.sent, *grid.answers)
        if PAYLOAD in message.content
    ]
    assert len(payloads) == NODES + 2
    for seen in (*wires, *payloads):
        # Any 32 bytes of the secret's residues, wherever they lie.
        assert not any(secret[at : at + 32] in seen for at in range(100, len(secret), 997))
        assert SECRET.encode() not in seen
    replies = grid.answers[:NODES]
    assert all(set(reply.content) == {RECORD, PAYLOAD} for reply in replies)
    for payload in payloads[:NODES]:
        Encrypted.from_bytes(payload, POLICY.params)
    others = HEClient(POLICY.params)
    with pytest.raises(IntegrityError):
        others.decrypt(Encrypted.from_bytes(payloads[NODES], POLICY.params))


def test_several_rounds_go_on_and_no_client_decrypts_more_than_it_may(key):
    _, wrapped, grid = federate(make_app([he_mod(POLICY, key)]), rounds=3)
    assert [record.summed for record in wrapped.history] == [NODES] * 3
    nodes = [
        each.metadata.dst_node_id for each in grid.sent if each.content[RECORD]["trip"] == DECRYPT
    ]
    assert len(set(nodes)) == 3


def refused(grid) -> set[int]:
    return {each.error.code for each in grid.answers if each.has_error()}


def test_a_client_without_the_key_refuses(tmp_path):
    app = make_app([he_mod(POLICY)])
    result, wrapped, grid = federate(app)
    assert refused(grid) == {REFUSALS["keys"]}
    assert wrapped.history[0].summed == 0
    assert "0 clients" in wrapped.history[0].reason
    assert result is None
    _, _, grid = federate(make_app([he_mod(POLICY, tmp_path / "none")]))
    assert refused(grid) == {REFUSALS["keys"]}
    other = tmp_path / "other"
    provision_key(other, HEPolicy(clients=2000, bound=1.0, rounds=1))
    _, _, grid = federate(make_app([he_mod(POLICY, other)]))
    assert refused(grid) == {REFUSALS["integrity"]}


@pytest.mark.parametrize("scale", [300.0, float("nan")])
def test_an_update_beyond_the_bound_never_leaves(key, scale):
    result, wrapped, grid = federate(make_app([he_mod(POLICY, key)], scale=scale))
    # S6: nobody says so; zeros that weigh nothing leave, and there is no mean of nothing.
    assert refused(grid) == set()
    assert result is None
    assert "add up to zero" in wrapped.history[0].reason


def test_two_clients_are_too_few(key):
    _, wrapped, _ = federate(make_app([he_mod(POLICY, key)], fails=(0, 1)))
    assert wrapped.history[0].reason == "2 clients sent a vector, 3 are needed"
    with pytest.raises(ParameterError, match="quorum"):
        HEPolicy(clients=2, bound=1.0, rounds=1)


@pytest.mark.parametrize(
    ("change", "code"),
    [
        ("fresh", "integrity"),
        ("one", "policy"),
        ("round", "stage"),
        ("damage", "integrity"),
    ],
)
def test_a_client_refuses_to_decrypt_what_is_no_sum(key, change, code):
    first = {}

    def tamper(batch, message):
        if batch == 1:
            return message
        message = copy.deepcopy(message)
        content = message.content
        data = bytearray(content[PAYLOAD]["bytes"].numpy().tobytes())
        if change == "fresh":
            data = first["reply"]
        elif change == "one":  # an honest header around one client's vector
            from secure.he.aggregation import EncryptedSum

            total = EncryptedSum(POLICY.params, 9 + 3)
            total.add(first["reply"])
            data = total.result().to_bytes()
        elif change == "damage":
            data[-5] ^= 1
        else:
            content[RECORD]["round"] = 7
        content[PAYLOAD] = ArrayRecord({"bytes": Array(np.frombuffer(data, dtype=np.uint8))})
        return message

    app = make_app([he_mod(POLICY, key)])

    def spying(message, context):
        reply = app(message, context)
        if not reply.has_error() and reply.content[RECORD]["trip"] == ENCRYPT:
            first["reply"] = reply.content[PAYLOAD]["bytes"].numpy().tobytes()
        return reply

    _, wrapped, grid = federate(spying, tamper=tamper)
    assert wrapped.history[0].reason == "no client decrypted the sum"
    assert refused(grid) == {REFUSALS[code]}


def test_a_sum_is_decrypted_once(key):
    asks = []

    def tamper(batch, message):
        if batch == 2:
            asks.append(copy.deepcopy(message))
        return message

    app = make_app([he_mod(POLICY, key)])
    _, _, grid = federate(app, tamper=tamper)
    (ask,) = asks
    again = app(ask, grid.contexts[ask.metadata.dst_node_id])
    assert again.error.code == REFUSALS["stage"]


@pytest.mark.parametrize("kind", ["train", "evaluate"])
def test_no_plain_answer_leaves(key, kind):
    grid = LocalGrid(make_app([he_mod(POLICY, key)]), NODES)
    content = RecordDict({"arrays": initial(), "config": ConfigRecord({"server-round": 1})})
    (node, *_) = grid.get_node_ids()
    (reply,) = grid.send_and_receive([Message(content, node, kind)])
    assert reply.error.code == REFUSALS["policy"]
    assert reply.error.reason == "he: policy"


def test_a_vector_of_another_key_is_left_out(key, tmp_path):
    other = tmp_path / "other"
    provision_key(other, POLICY)
    good, bad = make_app([he_mod(POLICY, key)]), make_app([he_mod(POLICY, other)])

    def mixed(message, context):
        return (bad if context.node_config["partition-id"] == 3 else good)(message, context)

    _, wrapped, _ = federate(mixed)
    (record,) = wrapped.history
    assert record.summed == 3
    assert len(record.faults) == 1


def test_strategies_that_need_single_updates_are_refused():
    with pytest.raises(PolicyError, match="single updates"):
        HESumStrategy(flower.FedMedian(), POLICY)


def test_the_key_is_the_owners_alone_and_not_written_over(key):
    assert stat.S_IMODE(key.stat().st_mode) == 0o600
    assert load_key(key).params == POLICY.params
    with pytest.raises(ParameterError, match="there already"):
        provision_key(key, POLICY)


def test_the_release_hides_the_key_that_a_bare_decryption_gives_away(key):
    """With sigma far above the error, what leaves differs from the decryption by that noise."""
    policy = POLICY.release(1000)
    client = load_key(key)
    from secure.he.aggregation import EncryptedSum, sum_error
    from secure.he.plans import SumPlan

    plan = SumPlan(POLICY.params, 1000)
    total = EncryptedSum(POLICY.params, 1000)
    for _ in range(3):
        total.add(client.encrypt(np.full(1000, 0.5), plan).to_bytes())
    sealed = Encrypted.from_bytes(total.result().to_bytes(), POLICY.params)
    bare, told = client.decrypt(sealed), client.release(sealed, policy)
    assert np.abs(bare - 1.5).max() <= sum_error(POLICY.params, 3)
    spread = float(np.std(told - bare))
    # The spread of 1,000 normal values is within 15% of sigma but once in 10^10.
    assert 0.85 * policy.sigma < spread < 1.15 * policy.sigma
    assert policy.sigma > 512 * sum_error(POLICY.params, NODES)
