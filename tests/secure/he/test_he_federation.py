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
from secure.flower._layout import Layout
from secure.he import Encrypted, HEClient
from secure.he.flower import (
    DECRYPT,
    ENCRYPT,
    PAYLOAD,
    RECORD,
    HENode,
    HESumStrategy,
    he_mod,
)
from secure.he.plans import SumPlan
from secure.he.policy import HEPolicy, load_key, provision_key
from tests.secure import hostile
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


@pytest.mark.parametrize("odd", [float("nan"), float("inf"), 7200.0, -1e300])
def test_a_metric_out_of_range_costs_its_own_mean_and_no_update(key, odd):
    plain_app = make_app()

    def train(message, context):
        reply = plain_app(message, context)
        metrics = reply.content["metrics"]
        metrics["train-loss"] = odd if context.node_config["partition-id"] == 1 else 2.0
        metrics["never"] = odd
        return reply

    masked = he_mod(POLICY, key)
    result, wrapped, _ = federate(lambda message, context: masked(message, context, train))
    (record,) = wrapped.history
    assert (record.summed, record.partial) == (NODES, ("never", "train-loss"))
    metrics = result.train_metrics_clientapp[1]
    assert metrics["train-loss"] == pytest.approx(2.0, abs=1e-5)
    assert "never" not in metrics
    expected = floats(plain())
    for name, array in floats(result).items():
        assert np.abs(array - expected[name]).max() < 10 * wrapped.noise + 1e-7


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

            total = EncryptedSum(POLICY.params, 9 + 4)
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


class HostileGrid(LocalGrid):
    """Lets one node answer the trip in a way of its own."""

    def __init__(self, app, change, trip):
        super().__init__(app, NODES)
        self.change, self.trip = change, trip

    def pull_messages(self, message_ids):
        replies = super().pull_messages(message_ids)
        for place, reply in enumerate(replies):
            context = self.contexts[reply.metadata.src_node_id]
            if reply.has_error() or reply.content[RECORD].get("trip") != self.trip:
                continue
            if self.trip == DECRYPT or context.node_config["partition-id"] == 2:
                replies[place] = self.change(reply) or reply
                # The first one asked to decrypt is hostile, the next is not.
                self.change = self.change if self.trip == ENCRYPT else lambda reply: None
        return replies


@pytest.mark.parametrize("trip", [ENCRYPT, DECRYPT])
def test_s3_a_hostile_reply_costs_its_sender_the_round_and_nobody_else(key, trip):
    """S3: the same kinds as under masks; a second client decrypts where the first sends garbage."""
    changes = [*hostile.payloads(RECORD, PAYLOAD)][:: 1 if trip == ENCRYPT else 3]
    for name, change in [*changes, ("an error", hostile.error)]:
        altered = {}

        def changed(reply, change=change, altered=altered):
            before = repr(reply.content)
            got = change(reply)
            altered["yes"] = got is not None or repr(reply.content) != before
            return got

        grid = HostileGrid(make_app([he_mod(POLICY, key)]), changed, trip)
        wrapped = HESumStrategy(flower.FedAvg(**ALL), POLICY, trip_timeout_s=5)
        wrapped.start(grid, initial(), num_rounds=1)
        (record,) = wrapped.history
        assert record.summed == NODES - (trip == ENCRYPT and altered["yes"]), name
        if altered["yes"]:
            assert record.faults or set(record.refusals.values()) == {"error 77"}, name


def test_s2_a_client_that_was_asked_something_else_is_left_out(key):
    def tamper(batch, message):
        if batch == 1 and message.metadata.dst_node_id == target:
            message = copy.deepcopy(message)
            message.content["config"]["lr"] = 0.5
        return message

    grid = LocalGrid(make_app([he_mod(POLICY, key)]), NODES)
    target = grid.get_node_ids()[1]
    grid.tamper = tamper
    wrapped = HESumStrategy(flower.FedAvg(**ALL), POLICY, trip_timeout_s=5)
    wrapped.start(grid, initial(), num_rounds=1)
    (record,) = wrapped.history
    assert record.summed == NODES - 1
    assert "asked something else" in record.faults[0]


def test_s6_one_client_out_of_bounds_weighs_nothing_and_says_nothing(key):
    good, bad = make_app([he_mod(POLICY, key)]), make_app([he_mod(POLICY, key)], scale=300.0)

    def mixed(message, context):
        return (bad if context.node_config["partition-id"] == 2 else good)(message, context)

    result, wrapped, grid = federate(mixed)
    assert wrapped.history[0].summed == NODES
    assert not refused(grid)
    lengths = {len(each.content[PAYLOAD]["bytes"].data) for each in grid.answers[:NODES]}
    assert len(lengths) == 1
    steps = []
    for partition in (0, 1, 3):
        rng = np.random.default_rng([partition, 1])
        steps.append((10 + partition) * 0.01 * rng.uniform(-1, 1, (3, 2)))
    expected = np.sum(steps, axis=0) / (10 + 11 + 13)
    assert np.abs(result.arrays["conv.weight"].numpy() - 0.5 - expected).max() < 1e-5


@pytest.mark.parametrize("kind", ["get_parameters", "query", "query.peek", "reconnect", "evaluate"])
def test_s8_no_other_type_of_message_passes(key, kind):
    grid = LocalGrid(make_app([he_mod(POLICY, key)]), NODES)
    (node, *_) = grid.get_node_ids()
    mod = he_mod(POLICY, key)
    message = Message(RecordDict({}), node, kind)
    reply = mod(message, grid.contexts[node], lambda *_: pytest.fail("it passed"))
    assert reply.error.code == REFUSALS["policy"]


def test_s9_a_forgotten_context_decrypts_no_more_sums_than_the_key_allows(key, tmp_path):
    """S9: rounds and decryptions are counted in the node's folder, over runs and contexts."""
    policy = HEPolicy(clients=NODES, bound=1.0, rounds=1, max_weight=20)

    def local(context):
        place = tmp_path / str(context.node_config["partition-id"])
        return HENode(policy, key, place)

    grid = LocalGrid(make_app([he_mod(local=local)]), NODES)
    done = []
    for run in range(NODES + 1):
        for context in grid.contexts.values():
            context.run_id, context.state = 100 + run, RecordDict()
        wrapped = HESumStrategy(flower.FedAvg(**ALL), policy, trip_timeout_s=5)
        with suppress(PeerError):
            wrapped.start(grid, initial(), num_rounds=1)
        done.append(wrapped.history[0].completed)
    # Each of the four clients decrypts once in the key's life, and never again.
    assert done == [True] * NODES + [False]
    for context in grid.contexts.values():
        context.run_id, context.state = 100, RecordDict()
    wrapped = HESumStrategy(flower.FedAvg(**ALL), policy, trip_timeout_s=5)
    with pytest.raises(PeerError, match="'stage'"):
        wrapped.start(grid, initial(), num_rounds=1)


def test_t1_a_decrypted_sum_that_counts_other_clients_is_no_mean():
    layout = Layout((("vector", (5,), "float32"),), ())
    vectors = np.random.default_rng(0).uniform(-1, 1, (3, 5))
    total = sum(POLICY.encode(vector, 20.0, {}) for vector in vectors)
    assert np.allclose(POLICY.decode(total, layout, 3).mean, vectors.mean(axis=0))
    for other in (2, 4):
        with pytest.raises(IntegrityError, match=f"does not count {other} clients"):
            POLICY.decode(total, layout, other)


def test_t1_a_vector_longer_than_the_noise_was_planned_for_never_leaves():
    few = HEPolicy(clients=NODES, bound=1.0, rounds=3, max_weight=20, entries=6)
    assert few.encode(np.ones(4), 20.0, {}) @ few.encode(np.ones(4), 20.0, {}) <= 6
    with pytest.raises(ParameterError, match="5 parameters are too many for entries=6"):
        few.encode(np.ones(5), 20.0, {})


def test_a_refused_sum_is_no_second_question(key):
    """A refusal tells of the plaintext: a server that may ask again has a decryption oracle."""
    from secure.he.aggregation import EncryptedSum

    kept = {}

    def tamper(batch, message):
        if batch == 2 and "ask" not in kept:
            kept["ask"] = copy.deepcopy(message)
            total = EncryptedSum(POLICY.params, 9 + 4)
            total.add(kept["reply"])
            message = copy.deepcopy(message)
            data = np.frombuffer(total.result().to_bytes(), dtype=np.uint8)
            message.content[PAYLOAD] = ArrayRecord({"bytes": Array(data)})
        return message

    app = make_app([he_mod(POLICY, key)])

    def spying(message, context):
        reply = app(message, context)
        if not reply.has_error() and reply.content[RECORD]["trip"] == ENCRYPT:
            kept["reply"] = reply.content[PAYLOAD]["bytes"].numpy().tobytes()
        return reply

    _, _, grid = federate(spying, tamper=tamper)
    assert refused(grid) == {REFUSALS["policy"]}
    ask = kept["ask"]
    again = app(ask, grid.contexts[ask.metadata.dst_node_id])
    assert again.error.code == REFUSALS["stage"]


def test_a_sum_that_counts_otherwise_than_the_server_says_is_told_by_nobody(key):
    """One client says that it is two: each client in turn would tell the sum, in another noise."""
    app = make_app([he_mod(POLICY, key)])

    def spoiling(message, context):
        reply = app(message, context)
        spoils = context.node_config["partition-id"] == 1
        if spoils and not reply.has_error() and reply.content[RECORD]["trip"] == ENCRYPT:
            entries = np.zeros(9 + 4)
            entries[9:11] = 0.0, 0.5
            sent = load_key(key).encrypt(entries, SumPlan(POLICY.params, len(entries))).to_bytes()
            data = np.frombuffer(sent, dtype=np.uint8)
            reply.content[PAYLOAD] = ArrayRecord({"bytes": Array(data)})
        return reply

    _, wrapped, grid = federate(spoiling)
    assert wrapped.history[0].reason == "no client decrypted the sum"
    told = [each for each in grid.answers if each.has_error()]
    assert len(told) == NODES
    assert refused(grid) == {REFUSALS["policy"]}
