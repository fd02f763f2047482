"""What a node keeps to itself: its floor, its durable count, and which messages it answers."""

import copy
import json
import shutil
import subprocess
import sys

import numpy as np
import pytest
from flwr.app import ConfigRecord, Message, RecordDict
from flwr.serverapp import strategy as flower

from secure.aggregation import Identity, Policy, Roster, Server, load_identity, plan, provision
from secure.aggregation._flower_wire import to_records
from secure.aggregation.flower import (
    RECORD,
    REFUSALS,
    WORDS,
    Node,
    SecAggStrategy,
    secagg_mod,
)
from secure.errors import IntegrityError, ParameterError, PolicyError, SecureError
from secure.flower import KeysError, Spent, Store
from secure.flower.app import QuietClientApp
from secure.random import SecureRandom
from tests.secure.aggregation.local_grid import LocalGrid
from tests.secure.aggregation.plain_app import SECRET, initial, make_app

NODES = 5
POLICY = Policy(plan(NODES, 1.0, 1e-6, max_weight=20), corrupt=0.0)
ALL = {"min_train_nodes": NODES, "min_available_nodes": NODES, "fraction_evaluate": 0.0}


@pytest.fixture(scope="module")
def keys(tmp_path_factory):
    folder = tmp_path_factory.mktemp("keys") / "five"
    return folder, provision(folder, NODES)


def node_of(keys, state, policy=POLICY, sessions=None):
    folder, members = keys

    def local(context):
        partition = context.node_config["partition-id"]
        identity = load_identity(folder / f"{partition}.key")
        own = None if state is None else state / str(partition)
        return Node(identity, members, policy, own, sessions)

    return local


def federate(keys, mod, rounds=1, tamper=None, grid=None, lose=None):
    grid = grid or LocalGrid(make_app([mod]), NODES, lose)
    grid.tamper = tamper
    wrapped = SecAggStrategy(flower.FedAvg(**ALL), POLICY, keys[1], trip_timeout_s=5)
    try:
        result = wrapped.start(grid, initial(), num_rounds=rounds)
    except SecureError as error:
        return error, wrapped, grid
    return result, wrapped, grid


# --- S9, S4: a count that outlives the Context ---------------------------------------------------


@pytest.mark.parametrize("trip", ["share", "mask", "commit", "unmask"])
def test_s9_a_state_put_back_answers_no_stage_twice(keys, tmp_path, trip):
    """The node's Context is copied before a trip and put back after it; the trip is asked again."""
    position = ["advertise", "share", "mask", "commit", "unmask"].index(trip) + 1
    copies, asks = {}, {}
    grid = LocalGrid(make_app([secagg_mod(local=node_of(keys, tmp_path))]), NODES)

    def tamper(batch, message):
        if batch == position:
            node = message.metadata.dst_node_id
            copies[node] = copy.deepcopy(grid.contexts[node].state)
            asks[node] = copy.deepcopy(message)
        return message

    _, wrapped, _ = federate(keys, None, grid=grid, tamper=tamper)
    assert wrapped.history[0].summed == NODES
    for node, state in copies.items():
        grid.contexts[node].state = state
        again = grid.app(asks[node], grid.contexts[node])
        assert again.error.code == REFUSALS["stage"]
    # Without a folder of the node's own the copy answers: that is what the folder is for.
    grid = LocalGrid(make_app([secagg_mod(local=node_of(keys, None))]), NODES)
    federate(keys, None, grid=grid, tamper=tamper)
    node, state = next(iter(copies.items()))
    grid.contexts[node].state = state
    assert not grid.app(asks[node], grid.contexts[node]).has_error()


def test_s4_s9_a_forgotten_context_opens_no_round_again(keys, tmp_path):
    _, wrapped, grid = federate(keys, secagg_mod(local=node_of(keys, tmp_path)), rounds=2)
    assert [each.summed for each in wrapped.history] == [NODES] * 2
    for context in grid.contexts.values():
        context.state = RecordDict()
    error, wrapped, grid = federate(keys, None, grid=grid)
    assert "'stage'" in str(error)
    assert wrapped.history[0].summed == 0


def test_s13_another_run_starts_from_its_own_first_round(keys, tmp_path):
    mod = secagg_mod(local=node_of(keys, tmp_path))
    _, _, grid = federate(keys, mod, rounds=3)
    for run in (8, 7):
        for context in grid.contexts.values():
            context.run_id = run
        setup = Server(POLICY, str(run), 1, "train", SecureRandom(), keys[1]).setup
        node, context = next(iter(grid.contexts.items()))
        content = RecordDict({"arrays": initial(), "config": ConfigRecord({"server-round": 1})})
        content[RECORD] = to_records("advertise", setup)[RECORD]
        reply = grid.app(Message(content, node, "train"), context)
        # Run 8 is new; round 1 of run 7 is spent, also after another run came in between.
        assert reply.has_error() == (run == 7)


def test_s4_an_owner_may_limit_the_sessions_of_all_runs_together(keys, tmp_path):
    _, wrapped, _ = federate(keys, secagg_mod(local=node_of(keys, tmp_path, sessions=2)), rounds=4)
    assert [each.completed for each in wrapped.history] == [True, True, False, False]
    assert set(wrapped.history[2].refusals.values()) == {"policy"}
    with pytest.raises(ParameterError, match="folder"):
        Node(Identity.generate(SecureRandom()), keys[1], POLICY, None, 3)


def test_s9_the_record_is_on_the_disk_before_the_reply_leaves(tmp_path, monkeypatch):
    """Every write is forced out, the folder's entry too, before `transaction` returns."""
    import os

    synced = []
    real = os.fsync
    monkeypatch.setattr(
        os, "fsync", lambda fd: synced.append(os.readlink(f"/proc/self/fd/{fd}")) or real(fd)
    )
    spent = Spent(Store(tmp_path / "state", "node"))
    spent.open("run", "train", 1, b"s")
    assert [name.rpartition("/")[2] for name in synced] == [tmp_path.name, "node.partial", "state"]
    synced.clear()
    spent.take(b"s", "opened")
    assert [name.rpartition("/")[2] for name in synced] == ["node.partial", "state"]
    assert (tmp_path / "state" / "node.json").stat().st_mode & 0o077 == 0


@pytest.mark.parametrize("text", ["", "{", "[]", "null", '"text"', "{" * 5000])
def test_s9_a_damaged_record_is_no_fresh_start(tmp_path, text):
    spent = Spent(Store(tmp_path, "node"))
    spent.open("run", "train", 1, b"s")
    (tmp_path / "node.json").write_text(text)
    with pytest.raises(IntegrityError, match="not what this node wrote"):
        spent.open("run", "train", 2, b"t")


def test_s9_a_folder_that_can_not_be_written_refuses(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(KeysError, match="can't be written"):
        Spent(Store(tmp_path / "file" / "state", "node")).open("run", "train", 1, b"s")


def test_s9_two_processes_take_one_stage_once(tmp_path):
    Spent(Store(tmp_path, "node")).open("run", "train", 1, b"s")
    code = (
        "import sys; from secure.flower import Spent, Store\n"
        "try: Spent(Store(sys.argv[1], 'node')).take(b's', 'x'); print('taken')\n"
        "except Exception as error: print(type(error).__name__)"
    )
    racing = [
        subprocess.Popen(
            [sys.executable, "-c", code, str(tmp_path)], stdout=subprocess.PIPE, text=True
        )
        for _ in range(4)
    ]
    said = sorted(each.communicate(timeout=60)[0].strip() for each in racing)
    assert said == ["StageError"] * 3 + ["taken"]


def test_a_nodes_own_configuration_names_files_and_folder(keys, tmp_path):
    folder, _ = keys
    grid = LocalGrid(make_app([secagg_mod(POLICY)]), NODES)
    for partition, context in enumerate(grid.contexts.values()):
        context.node_config = {
            "partition-id": partition,
            "secagg-identity": str(folder / f"{partition}.key"),
            "secagg-roster": str(folder / "roster.json"),
            "secagg-state": str(tmp_path / str(partition)),
        }
    federate(keys, None, grid=grid)
    (record,) = (tmp_path / "0").glob("*.json")
    assert json.loads(record.read_text())["opened"] == 1


# --- S1: nothing of the floor comes from the server ----------------------------------------------


def test_s1_the_run_configuration_moves_no_term_and_no_file(keys, tmp_path):
    other = tmp_path / "other"
    provision(other, NODES)
    grid = LocalGrid(make_app([secagg_mod(local=node_of(keys, None))]), NODES)
    for context in grid.contexts.values():
        context.run_config = {
            "secagg-identity": str(other / "0.key"),
            "secagg-roster": str(other / "roster.json"),
            "identities": str(other),
            "min-clients": 2,
            "protect": "plain",
        }
    _, wrapped, _ = federate(keys, None, grid=grid)
    assert wrapped.history[0].summed == NODES
    with pytest.raises(ParameterError, match="and not both"):
        secagg_mod(POLICY, local=node_of(keys, None))
    with pytest.raises(ParameterError):
        secagg_mod()


# --- S5: corrupt members count against the roster ------------------------------------------------


def test_s5_a_victim_and_two_helpers_are_no_cohort():
    """With the docs' policy for 64 nodes, a cohort of three or eight is refused by each client."""
    floor = Policy(plan(64, 1.0, 1e-4)).for_roster(64)
    assert floor.fewest == 9
    for members in range(9):
        with pytest.raises(PolicyError, match="least of 9"):
            floor.sharing(members)
    for members in range(9, 65):
        sharing = floor.sharing(members)
        needed = max(sharing.quorum, floor.fewest)
        assert needed - 6 >= 3
        assert 2 * sharing.quorum > members + 6


def test_s5_the_roster_counts_and_not_the_plan_nor_the_servers_word():
    loose = Policy(plan(64, 1.0, 1e-4))
    floor = loose.for_roster(1000)
    assert floor.corrupt_members(64) == 64
    with pytest.raises(PolicyError):
        floor.sharing(64)
    with pytest.raises(PolicyError, match="below this client's"):
        floor.check(loose.for_roster(64))
    floor.check(loose.for_roster(1000))
    assert Policy(plan(64, 1.0, 1e-4), min_clients=20).for_roster(64).fewest == 20


# --- S8: which messages pass ---------------------------------------------------------------------


@pytest.mark.parametrize(
    "kind",
    ["get_parameters", "get_properties", "reconnect", "query", "query.peek", "train.x"],
)
def test_s8_no_other_type_of_message_passes(keys, kind):
    asked = []

    def tell(message, context):
        asked.append(message)
        return Message(RecordDict({"arrays": initial()}), reply_to=message)

    mod = secagg_mod(POLICY, keys[0], queries=("allowed",))
    grid = LocalGrid(lambda message, context: mod(message, context, tell), NODES)
    (node, *_) = grid.get_node_ids()
    (reply,) = grid.send_and_receive([Message(RecordDict({"arrays": initial()}), node, kind)])
    assert reply.error.code == REFUSALS["policy"]
    assert not asked
    (reply,) = grid.send_and_receive([Message(RecordDict({}), node, "query.allowed")])
    assert not reply.has_error()
    assert len(asked) == 1


# --- S7, S12 -------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["threshold", "corrupt", "dropout", "bound", "mode", "clip"])
@pytest.mark.parametrize(
    "value",
    ["1e10000000", "9" * 100_000, "1/" + "3" * 50_000, "0x1." + "f" * 90_000 + "p+1", "١/٢", "-1"],
)
def test_s7_the_form_is_matched_before_anything_is_parsed(name, value):
    import time

    fields = POLICY.for_roster(NODES).to_fields()
    start = time.process_time()
    with pytest.raises(PolicyError):
        Policy.from_fields(fields | {name: value})
    assert time.process_time() - start < 0.1


def test_s7_no_terms_take_long_to_size():
    """The kind: the costliest cohort that acceptable terms can ask a client to size."""
    import time

    start = time.process_time()
    for corrupt in (0.0, 0.1, 0.3, 0.5):
        for dropout in (0.0, 0.1, 0.5):
            try:
                Policy(plan(2048, 1.0, 1e-1), corrupt=corrupt, dropout=dropout).sharing(2048)
            except PolicyError:
                continue
    assert time.process_time() - start < 30


def test_s12_an_abandoned_last_round_leaves_no_secret_behind(keys):
    """Two of five fall silent after the shares: the others are told, and forget."""
    mod = secagg_mod(POLICY, keys[0])
    error, wrapped, grid = federate(keys, mod, lose={4: [0, 1, 2]})
    assert isinstance(error, SecureError)
    assert "abandoned" in wrapped.history[0].reason
    for context in grid.contexts.values():
        assert WORDS not in context.state.array_records
        kept = dict(context.state.config_records[RECORD])
        assert not any(isinstance(value, bytes | list) for value in kept.values())


def test_s12_who_falls_silent_before_it_masks_keeps_nothing_either(keys):
    mod = secagg_mod(POLICY, keys[0])
    _, wrapped, grid = federate(keys, mod, lose={3: [2]})
    assert wrapped.history[0].summed == NODES - 1
    for context in grid.contexts.values():
        assert WORDS not in context.state.array_records


@pytest.mark.parametrize("when", ["before", "after"])
def test_s12_a_lifespans_error_leaves_as_a_code(keys, when):
    app = QuietClientApp(mods=[secagg_mod(POLICY, keys[0])])

    @app.lifespan()
    def lifespan(context):
        if when == "before":
            raise RuntimeError(f"{SECRET} has no disk")
        yield
        raise RuntimeError(f"{SECRET} has no disk")

    grid = LocalGrid(app, NODES)
    (node, *_) = grid.get_node_ids()
    (reply,) = grid.send_and_receive([Message(RecordDict({}), node, "train")])
    assert reply.error.code == REFUSALS["client"]
    assert SECRET not in repr(reply.error)


def test_no_trip_of_the_protocol_imports_a_model_library(keys):
    """Trips two to five need arithmetic only; a fresh process pays for no torch."""
    code = f"""
import sys
import numpy as np
from pathlib import Path
import tests.secure.aggregation.test_flower_node as here
from secure.aggregation import Roster
folder = Path({str(keys[0])!r})
result, wrapped, grid = here.federate(
    (folder, Roster.load(folder / "roster.json")), here.secagg_mod(here.POLICY, folder)
)
assert wrapped.history[0].summed == {NODES}
print([name for name in ("torch", "transformers", "peft", "ray") if name in sys.modules])
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120)
    assert done.stdout.strip().endswith("[]"), done.stdout + done.stderr


def test_d9_the_roster_that_a_node_holds_must_list_it(keys):
    stranger = Identity.generate(SecureRandom())
    mod = secagg_mod(local=lambda context: Node(stranger, keys[1], POLICY))
    error, _, grid = federate(keys, mod)
    assert "'keys'" in str(error)
    assert np.all([answer.has_error() for answer in grid.answers])
    assert isinstance(keys[1], Roster)


def test_a_folder_put_back_from_a_copy_forgets_what_was_spent(tmp_path):
    """A known limit, which the threat model names: a copy of the folder is a way back."""
    folder = tmp_path / "state"
    spent = Spent(Store(folder, "node"), sessions=1)
    spent.open("run", "train", 1, b"session")
    shutil.copytree(folder, tmp_path / "copy")
    spent.take(b"session", "advertised")
    with pytest.raises(SecureError, match="spent"):
        spent.take(b"session", "advertised")
    shutil.rmtree(folder)
    shutil.copytree(tmp_path / "copy", folder)
    spent.take(b"session", "advertised")
    shutil.rmtree(folder)
    spent.open("run", "train", 1, b"another")
