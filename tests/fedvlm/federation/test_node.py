"""A node's file, and what its node does when a run asks for less than it says (S1)."""

import shutil
import sys
from types import SimpleNamespace

import numpy as np
import pytest
from flwr.app import Array, ArrayRecord, ConfigRecord, Context, Message, RecordDict

from fedvlm.config import config_from, to_run_config
from fedvlm.errors import ConfigError
from fedvlm.federation import InProcessGrid, load_task
from fedvlm.federation.client_app import VECTOR, app
from fedvlm.federation.floor import REFUSALS
from fedvlm.federation.node import node_of, read_node
from secure.aggregation import provision


@pytest.fixture
def own(tmp_path, shapes_folder, tiny_clip_folder):
    """Write a node's file beside its own data and model; returns a function of its text."""
    folder = tmp_path / "site"
    folder.mkdir()
    shutil.copytree(shapes_folder, folder / "pairs")
    shutil.copytree(tiny_clip_folder, folder / "clip")
    provision(folder / "keys", 3)

    def write(text="", mode=0o600):
        path = folder / "node.toml"
        path.write_text('data = "pairs"\nmodel = "clip"\n' + text)
        path.chmod(mode)
        return path

    return write


def _ask(config, node_config, app=app, state=None, number=1):
    """Ask a SuperNode with a node config to train; returns the reply."""
    InProcessGrid(app, 1)  # sets the identity that messages ask for
    content = {"config": ConfigRecord({"schema": "?", "server-round": number})}
    if state is not None:
        content["config"]["schema"] = state[1]
        content["arrays"] = ArrayRecord({VECTOR: Array(state[0])})
    message = Message(RecordDict(content), dst_node_id=7, message_type="train")
    message.metadata.__dict__["_message_id"] = "m1"
    context = Context(1, 7, node_config, RecordDict(), to_run_config(config))
    return app(message, context)


def _initial(small_run):
    task = load_task(config_from(small_run))
    return task.initial, task.view.schema


def test_a_file_is_read_and_its_paths_are_its_own(own):
    path = own('number = 2\ndevice = "cpu"\n[floor]\nrounds = 9\nadapters = ["lora"]\n')
    node = read_node(path)
    assert (node.number, node.floor.rounds, node.floor.adapters) == (2, 9, ("lora",))
    assert node.data == path.parent / "pairs"
    assert node.state == path.parent / "state"
    assert not node.simulated


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("dta = 1\n", "unknown key dta; did you mean data?"),
        ("[floor]\nepsilonn = 1\n", "unknown key floor.epsilonn; did you mean floor.epsilon?"),
        ("[floor]\nepsilon = 'low'\n", "floor.epsilon must be of type float"),
        ("[floor]\nrounds = true\n", "floor.rounds must be of type int"),
        ("[floor]\nadapters = 'lora'\n", "floor.adapters is a list of texts"),
        ("floor = 3\n", "floor is a table"),
        ("number = -5\n", "number must be"),
        ("device = 'gpu'\n", "device must be one of auto, cpu"),
        ("roster = 'keys/roster.json'\n", "identity and roster come together"),
        ("identity = 'nowhere'\nroster = 'keys/roster.json'\n", "nowhere isn't there"),
        ("state = 4\n", "state must be a text"),
        ("x = [\n", "is not TOML"),
        (
            "identity = 'keys/0.key'\nroster = 'keys/roster.json'\n[floor]\nprotect = 'plain'\n",
            "raise it to secagg",
        ),
    ],
)
def test_a_wrong_file_is_one_clear_line(own, text, message):
    with pytest.raises(ConfigError) as stop:
        read_node(own(text))
    assert message in str(stop.value)
    assert "node.toml" in str(stop.value)
    assert "\n" not in str(stop.value)


def test_keys_and_files_that_others_can_reach_are_refused(own):
    keys = "identity = 'keys/0.key'\nroster = 'keys/roster.json'\n"
    path = own(keys)
    assert read_node(path).floor.protect == "secagg"  # keys are there to be used
    (path.parent / "keys" / "0.key").chmod(0o640)
    with pytest.raises(ConfigError, match=r"can be read by others; chmod 600"):
        read_node(path)
    (path.parent / "keys" / "0.key").chmod(0o600)
    with pytest.raises(ConfigError, match="can be written by others; chmod go-w"):
        read_node(own(keys, mode=0o666))
    with pytest.raises(ConfigError, match="can't read the node's file"):
        read_node(path.parent / "none.toml")
    missing = own()
    shutil.rmtree(missing.parent / "pairs")
    with pytest.raises(ConfigError, match="data: .*pairs isn't there"):
        read_node(missing)


@pytest.mark.parametrize(
    ("floor", "asked", "code"),
    [
        ("protect = 'secagg'", {}, "protection"),
        ("dp = ['example']", {}, "noise"),
        ("epsilon = 1.0", {"dp": "example", "epsilon": 100.0}, "noise"),
        ("rounds = 2", {"rounds": 3}, "rounds"),
        ("adapters = ['prompt']", {}, "adapter"),
        ("min_clients = 5", {}, "cohort"),
        ("", {"dp": "example", "simulated_noise": True}, "noise"),
        ("mitigations = []", {"mitigate": "robust"}, "mitigation"),
        ("mitigations = ['robust']", {"loss_power": 1.0}, "mitigation"),
        ("", {"mitigate": "adversary", "mitigation_attribute": "domain"}, "mitigation"),
        ("", {"mitigate": "sanitise", "mitigation_listed": "/etc/hostname"}, "data"),
        (f"model = '{'0' * 64}'", {}, "model"),
    ],
)
def test_less_than_the_floor_leaves_as_a_code_and_opens_no_data(
    own, small_run, monkeypatch, floor, asked, code
):
    """S1: what the run config overrides is refused, before data is touched."""
    from fedvlm.federation import task

    opened = []
    if code != "model":  # the model must be loaded to be known
        monkeypatch.setattr(task, "load_folder", lambda *_: opened.append(1))
    reply = _ask(
        config_from(small_run | asked),
        {"node": str(own(f"[floor]\n{floor}\n"))},
        state=_initial(small_run) if code == "model" else None,
    )
    assert reply.has_error()
    assert (reply.error.code, reply.error.reason) == (REFUSALS[code], f"node: {code}")
    assert opened == []


def test_a_node_with_keys_refuses_plain_also_without_a_file(small_run, tmp_path):
    """S1: `protect='plain'` overridden, and a node that has keys."""
    provision(tmp_path / "keys", 3)
    keys = {
        "partition-id": 0,
        "secagg-identity": str(tmp_path / "keys" / "0.key"),
        "secagg-roster": str(tmp_path / "keys" / "roster.json"),
    }
    run = {"data": "emoji", "model": "embedded"}
    for protect in ("plain", "he"):
        reply = _ask(config_from(small_run | run | {"protect": protect}), keys)
        assert reply.error.reason == "node: protection"
    reply = _ask(config_from(run | {"protect": "plain"}), {"partition-id": 0, "he-key": "k"})
    assert reply.error.reason == "node: protection"


@pytest.mark.parametrize("asked", [{"model": "embedded"}, {"data": "emoji"}])
def test_a_server_chooses_no_folder_of_a_node_s_disk(small_run, asked):
    """A SuperNode without a file opens what is public, and nothing that a run config names."""
    reply = _ask(config_from(small_run | asked), {"partition-id": 0})
    assert reply.error.reason == "node: data"


def test_no_run_config_makes_a_simulation_of_a_node(small_run):
    config = config_from(small_run)
    context = Context(
        1, 7, {"partition-id": 0}, RecordDict(), to_run_config(config) | {"simulated": True}
    )
    assert not node_of(context).simulated


def test_on_ray_the_process_is_the_mark(monkeypatch):
    context = Context(1, 7, {"partition-id": 4}, RecordDict(), {})
    actor = SimpleNamespace(get_actor_id=lambda: "0a")
    ray = SimpleNamespace(is_initialized=lambda: True, get_runtime_context=lambda: actor)
    monkeypatch.setitem(sys.modules, "ray", ray)
    node = node_of(context)
    assert node.simulated
    assert node.number == 4
    actor.get_actor_id = lambda: None  # a driver is no simulated client
    assert not node_of(context).simulated


def test_a_node_trains_on_its_own_folder_whatever_the_run_names(own, small_run, monkeypatch):
    from fedvlm.federation import task

    path = own()
    start = _initial(small_run)
    opened = []
    real = task.load_folder
    monkeypatch.setattr(task, "load_folder", lambda at: opened.append(at) or real(at))
    config = config_from(small_run | {"data": "/etc", "model": "/srv/secret", "rounds": 1})
    reply = _ask(config, {"node": str(path)}, state=start)
    assert not reply.has_error(), reply.error
    assert opened == [path.parent / "pairs"]
    vector = reply.content.array_records["arrays"][VECTOR].numpy()
    assert np.abs(vector - start[0]).max() > 0
    trained = reply.content.metric_records["metrics"]["num-examples"]
    assert 30 < trained < 54  # all that it doesn't hold out for itself


def test_what_a_node_s_own_code_says_stays_on_the_node(own, small_run):
    path = own()
    start = _initial(small_run)
    (path.parent / "pairs" / "captions.csv").write_text("image,caption\npatient-7.png,ill\n")
    reply = _ask(config_from(small_run), {"node": str(path)}, state=start)
    assert reply.error.reason == "node: node"
    assert "patient" not in repr(reply.error)


def test_a_run_config_that_is_none_is_refused_by_code(own, small_run):
    InProcessGrid(app, 1)
    message = Message(RecordDict(), dst_node_id=7, message_type="train")
    context = Context(1, 7, {"node": str(own())}, RecordDict(), {"rounds": "many"})
    assert app(message, context).error.reason == "node: terms"


def test_held_out_images_are_the_same_in_every_run(shapes):
    from fedvlm.federation.own_data import own_splits

    splits = own_splits(shapes)
    assert len(splits.clients[0]) + len(splits.test) == len(shapes)
    assert 0 < len(splits.test) < 25
    blobs = {shapes.encoded[i] for i in splits.test}
    assert not blobs & {shapes.encoded[i] for i in splits.clients[0]}


def test_an_error_behind_a_query_leaves_as_a_code_too(own):
    path = own("patient = 7\n")
    InProcessGrid(app, 1)
    message = Message(RecordDict(), dst_node_id=7, message_type="query")
    reply = app(message, Context(1, 7, {"node": str(path)}, RecordDict(), {}))
    assert reply.error.reason == "node: node"


@pytest.mark.parametrize("dp", ["none", "distributed"])
def test_s5_a_run_for_fewer_nodes_than_the_roster_has_is_refused(small_run, tmp_path, dp):
    """Of 64 members 6 may lie, and 7 nodes would hold them all: nobody counts 7's own tenth."""
    provision(tmp_path / "keys", 64)
    keys = {
        "partition-id": 0,
        "secagg-identity": str(tmp_path / "keys" / "0.key"),
        "secagg-roster": str(tmp_path / "keys" / "roster.json"),
    }
    run = {"data": "emoji", "model": "embedded", "protect": "secagg-active", "dp": dp}
    reply = _ask(config_from(small_run | run | {"clients": 7}), keys)
    assert reply.error.reason == "node: cohort"
