"""Before a round is spent nodes and server compare what decides a result."""

import json
import logging
import shutil

import pytest
from flwr.app import ConfigRecord, Message, RecordDict
from hypothesis import given, settings
from hypothesis import strategies as st

from fedvlm.config import config_from, to_run_config
from fedvlm.errors import DropoutError
from fedvlm.federation import InProcessGrid, load_task
from fedvlm.federation.agreement import facts_of, version_facts
from fedvlm.federation.client_app import app
from fedvlm.federation.floor import DIFFERENCES, REFUSALS
from fedvlm.federation.roll import FACTS, Roll
from fedvlm.federation.run import run_federation
from fedvlm.federation.watch import FILE, ProgressFile, WatchedGrid
from tests.fedvlm.conftest import save_tiny_model


@pytest.fixture
def sites(tmp_path, small_run):
    """A grid of nodes with files of their own, and a configuration for a server without data."""
    config = config_from(small_run | {"data": "none", "rounds": 1, "references": None})
    grid = InProcessGrid(app, 3, to_run_config(config), 1)
    folders = []
    for number, context in enumerate(grid.contexts.values()):
        folder = tmp_path / f"node-{number + 1}"
        folder.mkdir()
        shutil.copytree(small_run["model"], folder / "clip")
        text = f'number = {number}\ndata = "{small_run["data"]}"\nmodel = "clip"\n'
        (folder / "node.toml").write_text(text)
        context.node_config = {"node": str(folder / "node.toml")}
        folders.append(folder)
    return config, grid, folders


def events(folder):
    return [json.loads(line) for line in (folder / FILE).read_text().splitlines()]


def spend_nothing(folder):
    """Nothing was counted: no round was spent on this node."""
    return not (folder / "state").exists()


def test_a_node_with_another_base_model_is_left_out_by_name_before_a_round(sites, tmp_path, caplog):
    config, grid, folders = sites
    save_other_model(folders[1] / "clip")
    opened = watch_folders(grid)
    with caplog.at_level(logging.WARNING, logger="fedvlm"):
        watched = WatchedGrid(grid, ProgressFile(tmp_path))
        result = run_federation(watched, config, out=tmp_path / "run")
    assert result.rounds[1]["clients"] == 2
    assert "client 2 is left out (model): another base model" in caplog.text
    agreed = next(e for e in events(tmp_path) if e.get("trip") == "query.agree" and "seconds" in e)
    assert agreed["refused"] == {"node-2": "model"}
    assert sorted(agreed["answered"]) == ["node-1", "node-3"]
    trained = next(e for e in events(tmp_path) if e.get("trip") == "train" and "seconds" in e)
    assert sorted(trained["asked"]) == ["node-1", "node-3"]
    assert spend_nothing(folders[1])
    assert not spend_nothing(folders[0])
    assert opened == []


def save_other_model(folder):
    """Put other weights in a model's place: the same shapes, one bit."""
    from safetensors.numpy import load_file, save_file

    path = folder / "model.safetensors"
    tensors = load_file(path)
    name = sorted(tensors)[0]
    tensors[name] = tensors[name].copy()
    tensors[name].reshape(-1)[0] += 1e-3
    save_file(tensors, path, metadata={"format": "pt"})


def watch_folders(grid):
    """Return the list of the data folders that agreement has opened: nothing belongs there."""
    from fedvlm.federation import task

    opened, real = [], task.load_folder

    def open_it(at):
        opened.append(at)
        return real(at)

    inner = grid._client_app

    def client(message, context):
        if message.metadata.message_type != "query.agree":
            return inner(message, context)
        task.load_folder = open_it
        try:
            return inner(message, context)
        finally:
            task.load_folder = real

    grid._client_app = client
    return opened


@pytest.mark.parametrize("name", ["torch", "tokenizer", "schema"])
def test_each_fact_that_differs_has_a_code_of_its_own(sites, small_run, name):
    config, grid, _ = sites
    facts = facts_of(load_task(config))
    assert Roll(3, facts=facts).call(grid) == list(grid.node_ids)
    roll = Roll(3, facts=facts | {name: "other"})
    assert roll.call(grid) == []
    assert set(roll.refused.values()) == {name}
    assert name in DIFFERENCES


def test_one_tokenizer_that_differs(sites, caplog):
    config, grid, folders = sites
    path = folders[2] / "clip" / "tokenizer.json"
    text = json.loads(path.read_text())
    words = text["model"]["vocab"]
    one, two = list(words)[-2:]
    words[one], words[two] = words[two], words[one]
    path.write_text(json.dumps(text))
    roll = Roll(3, facts=facts_of(load_task(config)))
    assert len(roll.call(grid)) == 2
    assert roll.refused == {2: "tokenizer"}


def test_another_family_of_models_is_another_model(sites):
    config, grid, folders = sites
    shutil.rmtree(folders[0] / "clip")
    save_tiny_model("siglip", folders[0] / "clip")
    roll = Roll(3, facts=facts_of(load_task(config)))
    roll.call(grid)
    assert roll.refused == {0: "model"}


def test_a_run_for_which_too_few_agree_ends_before_a_round_and_says_why(sites, tmp_path):
    config, grid, folders = sites
    save_other_model(folders[1] / "clip")
    text = (folders[0] / "node.toml").read_text()
    (folders[0] / "node.toml").write_text(text + "[floor]\nepsilon = 1.0\n")
    with pytest.raises(DropoutError) as stop:
        run_federation(grid, config, out=tmp_path / "run")
    assert "client 1 refuses (noise), client 2 refuses (model)" in str(stop.value)
    assert all(map(spend_nothing, folders))


def test_a_node_that_is_mended_takes_part_in_the_next_round(sites):
    config, grid, folders = sites
    good = (folders[1] / "clip" / "model.safetensors").read_bytes()
    save_other_model(folders[1] / "clip")
    roll = Roll(3, facts=facts_of(load_task(config)))
    assert len(roll.call(grid)) == 2
    (folders[1] / "clip" / "model.safetensors").write_bytes(good)
    assert len(roll.call(grid)) == 3
    assert roll.refused == {}


def test_who_is_silent_has_no_number_yet_and_takes_no_part():
    """A node that was too slow to tell its number must not get another one's."""
    grid = InProcessGrid(app, 3)
    late = grid.node_ids[0]
    inner = grid.send_and_receive
    grid.send_and_receive = lambda messages, timeout=None: [
        reply for reply in inner(messages) if reply.metadata.src_node_id != late
    ]
    roll = Roll(3)
    assert roll.call(grid) == list(grid.node_ids[1:])
    grid.send_and_receive = inner
    assert roll.call(grid) == list(grid.node_ids)
    assert roll.number(late) == 0


def test_who_is_slow_to_load_its_model_is_waited_for_and_who_refuses_is_not(sites):
    config, grid, folders = sites
    save_other_model(folders[1] / "clip")
    late, inner, asked = grid.node_ids[0], grid.send_and_receive, []

    def send(messages, timeout=None):
        asked.append(messages[0].metadata.message_type)
        slow = asked[-1] == "query.agree" and asked.count("query.agree") < 3
        return [r for r in inner(messages) if r.metadata.src_node_id != late or not slow]

    grid.send_and_receive = send
    roll = Roll(3, facts=facts_of(load_task(config)))
    assert roll.gather(grid, 3, 60) == [grid.node_ids[0], grid.node_ids[2]]
    assert roll.refused == {1: "model"}
    assert asked.count("query.agree") == 3


def test_simulated_nodes_are_not_asked(small_run):
    config = config_from(small_run)
    grid, asked = InProcessGrid(app, 3, to_run_config(config)), []
    inner = grid.send_and_receive

    def send(messages, timeout=None):
        asked.extend(message.metadata.message_type for message in messages)
        return inner(messages)

    grid.send_and_receive = send
    assert len(Roll(3, facts={"model": "any"}).call(grid)) == 3
    assert asked == ["query"] * 3


@given(
    st.dictionaries(
        st.sampled_from([*DIFFERENCES, "x"]),
        st.one_of(st.text(max_size=300), st.integers(0, 9), st.booleans(), st.binary(max_size=9)),
    )
)
@settings(max_examples=40, deadline=None)
def test_whatever_a_server_sends_for_facts_leaves_as_a_code(facts):
    InProcessGrid(app, 1)
    content = RecordDict({FACTS: ConfigRecord(facts)})
    message = Message(content, dst_node_id=7, message_type="query.agree")
    config = config_from({})
    from flwr.app import Context

    context = Context(1, 7, {"partition-id": 0}, RecordDict(), to_run_config(config))
    reply = app(message, context)
    assert reply.has_error()
    known = {REFUSALS[name] for name in ("terms", *version_facts())}
    assert reply.error.code in known
    assert reply.error.reason.startswith("node: ")


def test_a_server_learns_no_hash_by_asking(sites):
    """What leaves a node in answer to the facts is a fixed code, or yes."""
    config, grid, _ = sites
    facts = facts_of(load_task(config))
    for changed in ({}, {"model": "0" * 64}):
        content = RecordDict({FACTS: ConfigRecord({**(facts | changed)})})
        message = Message(content, grid.node_ids[0], "query.agree")
        (reply,) = grid.send_and_receive([message])
        text = repr(reply.error) if reply.has_error() else repr(dict(reply.content[FACTS]))
        assert facts["model"][:8] not in text
