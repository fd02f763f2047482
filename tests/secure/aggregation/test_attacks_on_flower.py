"""The attacks that make sense against the fit: what a lying server sends, and what it sees."""

import copy
import struct
from contextlib import suppress

import numpy as np
import pytest
from flwr.app import Array, ArrayRecord, ConfigRecord, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp
from flwr.serverapp import strategy as flower

from secure.aggregation import Policy, Roster, plan, provision
from secure.aggregation.flower import RECORD, REFUSALS, WORDS, SecAggStrategy, secagg_mod
from secure.errors import ParameterError, PeerError
from secure.flower._sizes import size
from tests.secure.aggregation.local_grid import LocalGrid
from tests.secure.aggregation.plain_app import SECRET, initial, make_app

NODES = 4
POLICY = Policy(plan=plan(clients=NODES, clip_norm=1.0, error=1e-6, max_weight=20), corrupt=0.0)
ALL = {"min_train_nodes": NODES, "min_available_nodes": NODES, "fraction_evaluate": 0.0}


@pytest.fixture(scope="module")
def keys(tmp_path_factory):
    folder = tmp_path_factory.mktemp("keys") / "four"
    return folder, provision(folder, NODES)


def federate(keys, tamper=None, app=None, terms=POLICY, rounds=1, inner=None):
    folder, _ = keys
    grid = LocalGrid(app or make_app([secagg_mod(POLICY, folder)]), NODES)
    grid.tamper = tamper
    wrapped = SecAggStrategy(inner or flower.FedAvg(**ALL), terms, trip_timeout_s=5)
    result = None
    with suppress(PeerError):
        result = wrapped.start(grid, initial(), num_rounds=rounds)
    return result, wrapped, grid


def on_trip(trip, change):
    """Change the protocol record of one trip on its way to the clients."""

    def tamper(_, message):
        record = message.content.config_records.get(RECORD)
        if record is None or record.get("trip") != trip:
            return message
        changed = copy.deepcopy(message)
        change(changed.content.config_records[RECORD])
        return changed

    return tamper


def codes(grid, trip_batch) -> set[int]:
    answers = grid.answers[NODES * (trip_batch - 1) : NODES * trip_batch]
    return {answer.error.code if answer.has_error() else 0 for answer in answers}


def nothing_masked(grid) -> bool:
    return not any(not each.has_error() and WORDS in each.content for each in grid.answers)


# --- what a lying server sends -------------------------------------------------------------------


def test_attack_1_overlapping_and_unknown_survivors(keys):
    def change(record):
        record["members"] = [*record["members"], 99]

    _, wrapped, grid = federate(keys, on_trip("commit", change))
    assert codes(grid, 4) == {REFUSALS["integrity"]}
    assert wrapped.history[0].summed == 0


def test_attack_1_a_second_unmask_request(keys):
    _, _, grid = federate(keys)
    request = next(
        message
        for message in grid.sent
        if message.content.config_records[RECORD]["trip"] == "unmask"
    )
    again = grid.app(copy.deepcopy(request), grid.contexts[request.metadata.dst_node_id])
    assert again.error.code == REFUSALS["stage"]
    assert again.error.reason == "secagg: stage"


def test_attack_2_keys_replaced_by_the_server(keys):
    def change(record):
        # The mask key of the last member: bytes 36 to 68 of its bundle.
        *others, last = record["bundles"]
        record["bundles"] = [*others, last[:36] + bytes(range(32)) + last[68:]]

    _, _, grid = federate(keys, on_trip("share", change))
    assert codes(grid, 2) == {REFUSALS["integrity"]}
    assert nothing_masked(grid)


def test_attack_2_identities_outside_the_clients_roster(keys, tmp_path):
    """One client was provisioned by somebody else: the others refuse its company."""
    folder, _ = keys
    provision(tmp_path / "other", NODES)
    stranger = secagg_mod(POLICY, tmp_path / "other")
    honest = secagg_mod(POLICY, folder)

    def either(message, context, call_next):
        mod = stranger if context.node_config["partition-id"] == 3 else honest
        return mod(message, context, call_next)

    _, wrapped, grid = federate(keys, app=make_app([either]))
    assert wrapped.history[0].summed == 0
    assert nothing_masked(grid)
    # A server that holds the roster leaves the stranger out, and the round stands.
    grid = LocalGrid(make_app([either]), NODES)
    wise = SecAggStrategy(flower.FedAvg(**ALL), POLICY, Roster.load(folder / "roster.json"))
    wise.start(grid, initial(), num_rounds=1)
    assert wise.history[0].summed == NODES - 1
    assert "member 4 are not signed" in wise.history[0].faults[0]


def test_attack_3_a_round_is_opened_once(keys):
    _, _, grid = federate(keys)
    opening = grid.sent[0]
    again = grid.app(copy.deepcopy(opening), grid.contexts[opening.metadata.dst_node_id])
    assert again.error.code == REFUSALS["stage"]


def test_attack_3_messages_of_another_run(keys):
    def change(record):
        record["run"] = "8"

    _, _, grid = federate(keys, on_trip("advertise", change))
    assert codes(grid, 1) == {REFUSALS["stage"]}


def test_attack_3_a_skipped_trip(keys):
    _, _, grid = federate(keys)
    skipped = [each for each in grid.sent if each.content[RECORD]["trip"] == "mask"]
    fresh = LocalGrid(grid.app, NODES)
    fresh.contexts = {
        message.metadata.dst_node_id: grid.contexts[message.metadata.dst_node_id]
        for message in skipped
    }
    for answer in fresh.send_and_receive(skipped):
        assert answer.error.code == REFUSALS["stage"]


@pytest.mark.parametrize(
    ("term", "value"),
    [
        ("terms.min_clients", 2),
        ("terms.threshold", "51/100"),
        ("terms.levels", 2),
        ("terms.lane", 16),
        ("terms.clients", 3),
        ("terms.bound", (100.0).hex()),
        ("terms.mode", "semi-honest"),
        ("terms.clip", "none"),
        ("terms.weighting", "uniform"),
    ],
)
def test_attack_4_terms_below_the_floor_stop_the_client_before_it_trains(keys, term, value):
    folder, _ = keys
    trained = []

    def spy(message, context, call_next):
        trained.append(context.node_id)
        return call_next(message, context)

    def change(record):
        record[term] = value

    app = make_app([secagg_mod(POLICY, folder), spy])
    _, wrapped, grid = federate(keys, on_trip("advertise", change), app)
    assert codes(grid, 1) == {REFUSALS["policy"]}
    assert not trained
    assert wrapped.history[0].summed == 0


def test_attack_4_a_plain_message_gets_no_plain_answer(keys):
    folder, _ = keys
    grid = LocalGrid(make_app([secagg_mod(POLICY, folder)]), NODES)
    result = flower.FedAvg(**ALL).start(grid, initial(), num_rounds=1)
    assert not result.arrays
    assert codes(grid, 1) == {REFUSALS["policy"]}


def test_attack_5_split_survivor_sets(keys):
    def tamper(_, message):
        record = message.content.config_records.get(RECORD)
        if record is None or record.get("trip") != "commit":
            return message
        changed = copy.deepcopy(message)
        told = changed.content.config_records[RECORD]
        first = message.metadata.dst_node_id % 2
        kept = [each for each in told["members"] if each != (3 if first else 4)]
        pairs = [
            pair for pair in zip(told["signers"], told["receipts"], strict=True) if pair[0] in kept
        ]
        told["members"] = kept
        told["signers"] = [signer for signer, _ in pairs]
        told["receipts"] = [receipt for _, receipt in pairs]
        return changed

    _, wrapped, grid = federate(keys, tamper)
    assert wrapped.history[0].summed == 0
    assert not any(
        not each.has_error() and each.content[RECORD].get("trip") == "unmask"
        for each in grid.answers
    )


@pytest.mark.parametrize("trip", ["share", "mask", "commit", "unmask"])
@pytest.mark.parametrize(
    "change",
    [
        lambda record: record.pop("session"),
        lambda record: record.update({"extra": 1}),
        lambda record: record.update({"session": "text"}),
        lambda record: record.update({"trip": "nonsense"}),
        lambda record: record.update({"trip": 5}),
        lambda record: record.update({"session": b""}),
    ],
    ids=[
        "no session",
        "extra field",
        "wrong type",
        "unknown trip",
        "trip of a wrong type",
        "empty",
    ],
)
def test_attack_6_malformed_messages_are_refused_by_a_fixed_code(keys, trip, change):
    _, wrapped, grid = federate(keys, on_trip(trip, change))
    position = ["share", "mask", "commit", "unmask"].index(trip) + 2
    assert codes(grid, position) <= {REFUSALS["integrity"], REFUSALS["stage"]}
    assert wrapped.history[0].summed == 0


# --- what a curious server sees -------------------------------------------------------------------


def sayings(grid) -> bytes:
    """Return all that clients answered, as one string of bytes."""
    seen = []
    for answer in grid.answers:
        if answer.has_error():
            seen.append(repr(answer.error).encode())
            continue
        for name, record in answer.content.items():
            seen.append(name.encode())
            for key, value in record.items():
                seen.append(key.encode())
                seen.append(value.data if isinstance(value, Array) else repr(value).encode())
    return b"\0".join(seen)


def test_attack_10_no_count_metric_or_text_in_clear(keys):
    app = make_app([secagg_mod(POLICY, keys[0])], fails=(2,))
    inner = flower.FedAvg(**{**ALL, "fraction_evaluate": 1.0})
    _, wrapped, grid = federate(keys, app=app, inner=inner)
    assert [record.summed for record in wrapped.history] == [3, 4]
    assert wrapped.history[0].refusals[grid_node(grid, 2)] == "client"
    said = sayings(grid)
    assert SECRET.encode() not in said
    assert b"broken" not in said
    # Nothing but the protocol's records crossed, so counts and metrics have nowhere to be.
    for answer in grid.answers:
        if not answer.has_error():
            assert set(answer.content) <= {RECORD, WORDS}
            assert not answer.content.metric_records
    for partition in range(NODES):
        loss, accuracy = 1.5 + partition, 0.1 * partition
        for value in (loss, accuracy):
            if value:
                assert struct.pack("<d", value) not in said
                assert struct.pack("<f", value) not in said


def grid_node(grid, partition):
    return next(
        node
        for node, context in grid.contexts.items()
        if context.node_config["partition-id"] == partition
    )


def test_attack_10_nothing_of_the_session_stays_in_the_clients_state(keys):
    _, _, grid = federate(keys)
    for context in grid.contexts.values():
        kept = dict(context.state.config_records[RECORD])
        assert not any(isinstance(value, bytes | list) and value for value in kept.values())
        assert kept["stage"] == "idle"
        assert WORDS not in context.state.array_records


def bad_app(keys, change):
    """Return an app whose clients reply with something wrong."""
    app = ClientApp(mods=[secagg_mod(POLICY, keys[0])])

    @app.train()
    def train(message, context):
        arrays = {name: each.numpy() for name, each in message.content["arrays"].items()}
        metrics = {"num-examples": 3, "loss": 1.0}
        notes: dict = {"schema-hash": "one"}
        change(context.node_config["partition-id"], arrays, metrics, notes)
        content = RecordDict(
            {
                "arrays": ArrayRecord({key: Array(np.asarray(v)) for key, v in arrays.items()}),
                "metrics": MetricRecord(metrics),
                "notes": ConfigRecord(notes),
            }
        )
        return Message(content, reply_to=message)

    return app


def everybody(change):
    return lambda partition, arrays, metrics, notes: change(arrays, metrics, notes)


LEAVES_THE_UPDATE = ("NaN metric", "huge metric")
BAD_REPLIES = {
    "NaN": lambda a, m, n: a.update({"conv.bias": np.array([0.0, np.nan, 0.0])}),
    "Inf": lambda a, m, n: a.update({"conv.bias": np.array([0.0, np.inf, 0.0])}),
    "wrong length": lambda a, m, n: a.update({"conv.bias": np.zeros(4)}),
    "missing array": lambda a, m, n: a.pop("conv.bias"),
    "NaN metric": lambda a, m, n: m.update({"loss": float("nan")}),
    "huge metric": lambda a, m, n: m.update({"loss": 1e18}),
    "no examples": lambda a, m, n: m.pop("num-examples"),
    "negative examples": lambda a, m, n: m.update({"num-examples": -1}),
}


@pytest.mark.parametrize("kind", BAD_REPLIES)
def test_attack_8_s6_bad_replies_are_told_by_nobody(keys, kind):
    """S6: an agreed client answers whatever its update holds; what is unusable weighs nothing."""

    def change(partition, arrays, metrics, notes):
        if partition == 1:
            BAD_REPLIES[kind](arrays, metrics, notes)

    _, wrapped, grid = federate(keys, app=bad_app(keys, change))
    record = wrapped.history[0]
    assert all(codes(grid, trip) == {0} for trip in range(1, 6))
    assert record.summed == NODES
    assert not record.refusals
    assert not record.faults
    if kind in LEAVES_THE_UPDATE:
        assert (record.unusable, record.partial) == (0, ("loss",))
    else:
        assert record.unusable == 1
    sizes = {}
    for answer in grid.answers:
        trip = answer.content[RECORD]["trip"]
        sizes.setdefault(trip, set()).add((tuple(answer.content), size(answer)))
    assert all(len(each) == 1 for each in sizes.values())


def test_a_schema_hash_that_differs_leaves_the_odd_client_out(keys):
    def change(partition, arrays, metrics, notes):
        if partition == 1:
            notes["schema-hash"] = "another"

    _, wrapped, _ = federate(keys, app=bad_app(keys, change))
    (record,) = wrapped.history
    assert record.summed == NODES - 1
    assert "member 2: layout or schema" in record.faults[0]
    assert "expected" in record.faults[0]


def test_a_node_that_answers_for_another_is_left_out(keys):
    folder, members = keys
    grid = LocalGrid(make_app([secagg_mod(POLICY, folder)]), NODES)
    honest = grid.pull_messages

    def swap(ids):
        replies = honest(ids)
        for reply in replies:
            if not reply.has_error() and reply.content[RECORD].get("sender") == 1:
                reply.content[RECORD]["sender"] = 2
        return replies

    grid.pull_messages = swap
    wrapped = SecAggStrategy(flower.FedAvg(**ALL), POLICY, members)
    wrapped.start(grid, initial(), num_rounds=1)
    assert wrapped.history[0].summed == NODES - 1


def test_u9_a_node_without_keys_says_so_on_its_own_machine(keys, caplog):
    """U9: two lines without keys end in an error that names the cure, not in an empty model."""
    app = make_app([secagg_mod(POLICY)])
    grid = LocalGrid(app, NODES)
    with pytest.raises(PeerError, match=r"4 of 4 clients answered 'keys'.*Keys in docs"):
        SecAggStrategy(flower.FedAvg(**ALL), POLICY).start(grid, initial(), num_rounds=1)
    assert codes(grid, 1) == {REFUSALS["keys"]}
    assert "secagg-identity" in caplog.text


def test_a_roster_that_cannot_be_read_is_named(tmp_path):
    path = tmp_path / "roster.json"
    for text in ("", "{}", '{"members": {"1": "zz"}}', '{"members": 3}'):
        path.write_text(text)
        with pytest.raises(ParameterError, match="is not a roster"):
            Roster.load(path)
