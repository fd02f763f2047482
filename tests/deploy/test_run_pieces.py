"""Following a run, pinning the app, and a server without data."""

import json
from types import SimpleNamespace

import numpy as np
import pytest
from flwr.app import ConfigRecord, Error, Message, RecordDict

from fedvlm.config import config_from, to_run_config
from fedvlm.deploy.run import Follower, follow, read_events, register, server_of
from fedvlm.deploy.supernode import _waits, patient, pin
from fedvlm.errors import ConfigError, DropoutError, ProtocolError
from fedvlm.federation import InProcessGrid, load_task
from fedvlm.federation.watch import FILE, ProgressFile, WatchedGrid
from fedvlm.reporting import write_report


def _flower(content: bytes):
    """What the SuperNode does with a run's app, as far as the pin is concerned."""
    seen = []
    module = SimpleNamespace()

    def pull(state, get_fab, trusted_entities):
        fab = get_fab("hash", 1)
        trusted = not trusted_entities or (
            fab.verifications.get("valid_license") and module._verify_fab(fab, trusted_entities)
        )
        seen.append(bool(trusted))

    module._pull_and_store_message = pull
    module._verify_fab = lambda fab, trusted: False
    get_fab = lambda *a: SimpleNamespace(content=content, verifications={})  # noqa: E731
    return module, seen, get_fab


def test_a_node_runs_its_own_app_and_no_other():
    import hashlib

    expected = hashlib.sha256(b"ours").hexdigest()
    for content, right in ((b"ours", True), (b"theirs", False), (b"", False)):
        module, seen, get_fab = _flower(content)
        pin(module, expected)
        # Even where a caller says that nobody is trusted in particular.
        module._pull_and_store_message(state=None, get_fab=get_fab, trusted_entities=None)
        assert seen == [right]


def test_a_flower_that_checks_in_another_way_is_refused():
    for module in (
        SimpleNamespace(),
        SimpleNamespace(_pull_and_store_message=lambda state: None, _verify_fab=lambda f, t: True),
    ):
        with pytest.raises(ProtocolError, match="install flwr as pinned"):
            pin(module, "00")


def test_the_pin_fits_the_flower_that_is_installed(monkeypatch):
    from flwr.supernode import start_client_internal

    for name in ("_pull_and_store_message", "_verify_fab"):
        monkeypatch.setattr(start_client_internal, name, getattr(start_client_internal, name))
    pin(start_client_internal, "00")


def test_each_trip_is_written_down_by_node_and_code(tmp_path):
    def app(message, context):
        number = context.node_config["partition-id"]
        if message.metadata.message_type == "query":
            told = RecordDict({"config": ConfigRecord({"number": number})})
            return Message(told, reply_to=message)
        if number == 1:
            return Message(Error(1202, "data in a text: patient 17"), reply_to=message)
        if number == 2:
            raise ValueError("patient 18")
        return Message(RecordDict({"x": ConfigRecord({"v": 1})}), reply_to=message)

    grid = WatchedGrid(InProcessGrid(app, 3), ProgressFile(tmp_path))
    for kind in ("query", "train"):
        nodes = grid.get_node_ids()
        grid.send_and_receive(
            [Message(RecordDict(), dst_node_id=n, message_type=kind) for n in nodes]
        )
    text = (tmp_path / FILE).read_text()
    assert "patient" not in text
    place, events = read_events(tmp_path / FILE, 0)
    assert [e["event"] for e in events] == ["asked", "trip", "asked", "trip"]
    assert events[-1]["refused"] == {"node-2": "noise", "node-3": "its app failed"}
    assert events[-1]["answered"] == ["node-1"]
    assert read_events(tmp_path / FILE, place) == (place, [])
    follower = Follower(2)
    lines = [line for event in events for line in follower.lines(event)]
    assert "node-2 refused: noise" in lines[-1]
    assert follower.refused == {"node-2": {"noise"}, "node-3": {"its app failed"}}


def test_a_half_written_line_waits(tmp_path):
    path = tmp_path / FILE
    path.write_text('{"event": "start"}\n{"event": "do')
    place, events = read_events(path, 0)
    assert [e["event"] for e in events] == ["start"]
    path.write_text('{"event": "start"}\n{"event": "done"}\n')
    assert [e["event"] for e in read_events(path, place)[1]] == ["done"]
    assert read_events(tmp_path / "none", 0) == (0, [])


def test_a_run_that_failed_or_takes_too_long_is_told(tmp_path):
    lines = [
        {"event": "start", "time": 100.0},
        {
            "event": "trip",
            "trip": "train",
            "asked": ["node-1"],
            "answered": [],
            "silent": [],
            "refused": {"node-1": "budget"},
            "upload_bytes": 0,
            "download_bytes": 9,
            "seconds": 1.0,
        },
        {
            **{"event": "round", "time": 110.0},
            "entry": {"round": 1, "clients": 3, "epsilon": 1.25},
        },
    ]
    told = []
    (tmp_path / FILE).write_text("".join(json.dumps(line) + "\n" for line in lines))
    with pytest.raises(DropoutError, match="longer than"):
        follow(tmp_path, "7", tmp_path, Follower(4), told.append, 0.05)
    expected = "round 1/4: 3 nodes summed, ε 1.25; about 30 s left; missing: node-1 (budget)"
    assert told[-1] == expected
    lines.append({"event": "failed", "text": "no round of 1 succeeded", "code": 3})
    (tmp_path / FILE).write_text("".join(json.dumps(line) + "\n" for line in lines))
    with pytest.raises(ProtocolError, match=r"no round of 1 succeeded; refused: node-1 \(budget\)"):
        follow(tmp_path, "7", tmp_path, Follower(4), told.append, 30)


def test_a_folder_that_is_no_servers(tmp_path):
    for call in (server_of, register):
        if call is register:
            assert call(tmp_path) == []  # no keys, nobody to call
            continue
        with pytest.raises(ConfigError, match="no server's folder"):
            call(tmp_path)


def test_a_server_needs_no_data(small_run, tmp_path):
    from fedvlm.federation.client_app import app
    from fedvlm.federation.run import run_federation

    config = config_from(small_run | {"data": "none", "rounds": 1, "references": None})
    with pytest.raises(ConfigError, match="name its folder in node.toml"):
        load_task(config, client=0)
    with pytest.raises(ConfigError, match="references train on everybody's pairs"):
        run_federation(InProcessGrid(app, 3), config_from({"references": "true"}, config))
    grid = InProcessGrid(app, 3, to_run_config(config), 1)
    for number, context in enumerate(grid.contexts.values()):
        folder = tmp_path / f"node-{number}"
        folder.mkdir()
        text = f'number = {number}\ndata = "{small_run["data"]}"\nmodel = "{small_run["model"]}"\n'
        (folder / "node.toml").write_text(text)
        context.node_config = {"node": str(folder / "node.toml")}
    result = run_federation(grid, config, out=tmp_path / "out")
    assert grid.errors == {}
    assert result.data["pairs"] == 0
    assert set(result.summary.values()) == {None}
    assert result.rounds[1]["clients"] == 3
    assert np.isfinite(result.rounds[1]["train_loss"])
    assert write_report(result, tmp_path / "out").exists()


def test_dp_without_data_asks_for_the_public_mean(small_run):
    from fedvlm.federation.private_client import all_pairs

    config = config_from(small_run | {"data": "none", "references": None, "dp": "example"})
    with pytest.raises(ConfigError, match="set mean_pairs"):
        all_pairs(load_task(config))
    assert all_pairs(load_task(config_from({"mean_pairs": 40}, config))) == 120


def test_a_superlink_that_is_gone_is_said_and_one_that_is_slow_is_waited_for(tmp_path, monkeypatch):
    import socket

    from fedvlm.deploy import run

    monkeypatch.setattr(run, "_ASK_S", 0.0)
    monkeypatch.setattr(run, "_LOST_S", 0.2)
    monkeypatch.setattr(run, "_POLL_S", 0.05)
    # Its command line may fail on a busy machine: that alone says nothing.
    monkeypatch.setattr(run, "status_of", lambda folder, run_id: "unknown")
    with socket.socket() as listening:
        listening.bind(("127.0.0.1", 0))
        listening.listen(64)
        port = listening.getsockname()[1]
        (tmp_path / "server.json").write_text(json.dumps({"server": f"localhost:{port}"}))
        with pytest.raises(DropoutError, match="longer than"):
            follow(tmp_path, "7", tmp_path, Follower(4), print, 1.0)
    with pytest.raises(DropoutError, match=r"doesn't answer .* deploy run --resume goes on"):
        follow(tmp_path, "7", tmp_path, Follower(4), print, 30.0)


def test_a_resumed_run_is_followed_from_its_own_start(tmp_path):
    """What an earlier start wrote last, such as its failure, is not this one's."""
    from fedvlm.deploy.run import place_of

    path = tmp_path / FILE
    path.write_text('{"event": "failed", "text": "killed"}\n{"event": "hal')
    place = place_of(tmp_path)
    ProgressFile(tmp_path, resume=True).write("done")
    follow(tmp_path, "7", tmp_path, Follower(4), print, 30.0, place=place)
    assert place_of(tmp_path / "none") == 0


class _RefusedError(Exception):
    def __init__(self, code):
        super().__init__(code)
        self.response = SimpleNamespace(status_code=code)


def test_a_node_that_died_is_let_in_once_its_last_process_is_given_up(monkeypatch):
    """For a minute the SuperLink refuses it, and Flower's SuperNode would end."""
    from fedvlm.deploy import supernode

    monkeypatch.setattr(supernode, "_PAUSE_S", 0.01)

    def client(answers):
        answers = iter(answers)

        class Client:
            def ActivateNode(self, request):  # noqa: N802  Flower's name
                found = next(answers)
                if isinstance(found, Exception):
                    raise found
                return found

        return Client

    made = client([_RefusedError(412), _RefusedError(412), "in"])
    patient(made, 30.0)
    assert made().ActivateNode("me") == "in"
    for answers, seconds in (([_RefusedError(412)] * 99, 0.05), ([_RefusedError(401), "in"], 30)):
        made = client(answers)
        patient(made, seconds)
        with pytest.raises(_RefusedError):
            made().ActivateNode("me")


@pytest.mark.parametrize(
    ("words", "seconds"),
    [
        ([], 120),
        (["--max-wait-time", "5"], 5),
        (["--max-wait-time=7", "x"], 7),
        (["--max-wait-time", "3600"], 120),
        (["--max-wait-time"], 120),
        (["--max-wait-time", "x"], 120),
    ],
)
def test_nobody_waits_longer_than_the_node_s_owner_said(words, seconds):
    assert _waits(words) == seconds


def test_the_wait_fits_the_flower_that_is_installed():
    from flwr.supernode.fleet_http_client import FleetHttpClient

    assert callable(FleetHttpClient.ActivateNode)
