"""What is wrong is one clear line on the side that can mend it, before anything is sent."""

import email.utils
import json
import socket
import ssl
import threading
import time
from dataclasses import replace
from http.server import BaseHTTPRequestHandler, HTTPServer

import pytest

from fedvlm.deploy.check import check, check_node, check_server_folder
from fedvlm.deploy.folders import PUBLIC, Public
from fedvlm.deploy.server_check import check_clock, check_server
from fedvlm.deploy.setup import init, join
from fedvlm.errors import ConfigError
from tests.deploy.test_folders import WEIGHTS, terms


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    folder = tmp_path_factory.mktemp("made") / "fed"
    init(folder, terms(host="localhost", port=1))
    return folder


@pytest.fixture
def node(tmp_path, monkeypatch, shapes_folder):
    """A node's folder with data, and no model to load."""
    import shutil

    import fedvlm.models

    init(tmp_path / "fed", terms(host="localhost", port=1))
    folder = tmp_path / "fed" / "node-1"
    shutil.copytree(shapes_folder, folder / "data", dirs_exist_ok=True)
    monkeypatch.setattr(fedvlm.models, "weights_hash", lambda model: WEIGHTS)
    return folder


def wrong(lines):
    return {line.what: line.told for line in lines if not line.ok}


def test_a_good_folder_is_fine(node):
    lines = check_node(node, offline=True)
    assert wrong(lines) == {}
    told = {line.what: line.told for line in lines}
    assert told["data"].startswith("54 pairs in ")
    assert "sums by secagg-active or better" in told["floor"]
    assert "this is node 1" in told["roster"]
    assert all("\n" not in line.told for line in lines)


def test_an_unknown_key_is_named_with_the_nearest(node):
    path = node / "node.toml"
    path.write_text("protct = 'plain'\n" + path.read_text())
    assert "unknown key protct" in wrong(check_node(node, offline=True))["node.toml"]
    path.write_text(
        path.read_text().replace("protct = 'plain'\n", "").replace("rounds =", "runds =")
    )
    assert "did you mean floor.rounds?" in wrong(check_node(node, offline=True))["node.toml"]


def test_a_data_folder_that_is_not_there(node):
    path = node / "node.toml"
    path.write_text(path.read_text().replace('data = "data"', 'data = "gone"'))
    assert "gone isn't there" in wrong(check_node(node, offline=True))["node.toml"]


@pytest.mark.parametrize("name", ["identity.key", "supernode.key", "local.key"])
def test_a_key_that_others_can_read_or_that_is_gone(node, name):
    path = node / "keys" / name
    path.chmod(0o644)
    assert f"chmod 600 {path}" in wrong(check_node(node, offline=True))["keys"]
    path.unlink()
    assert f"{path} isn't there" in wrong(check_node(node, offline=True))["keys"]


def test_a_key_that_is_none(node):
    (node / "keys" / "supernode.key").write_bytes(b"nonsense\n")
    assert "holds no key of a SuperNode" in wrong(check_node(node, offline=True))["keys"]


def test_a_roster_of_another_federation(node, made):
    (node / "roster.json").write_text((made / "node-1" / "roster.json").read_text())
    assert "it is of another federation" in wrong(check_node(node, offline=True))["roster"]


def test_a_folder_whose_number_is_another_nodes(node):
    path = node / "node.toml"
    path.write_text(path.read_text().replace("number = 0", "number = 2"))
    assert "node.toml 3" in wrong(check_node(node, offline=True))["roster"]


def test_two_nodes_with_one_identity_or_one_number(tmp_path):
    public = [join(tmp_path / f"site-{n}", n) for n in (1, 2, 3)]
    for changed, message in (
        (replace(public[2], identity=public[0].identity), "nodes 1 and 3 have the same identity"),
        (replace(public[2], supernode=public[1].supernode), "nodes 2 and 3 have the same superno"),
        (replace(public[2], number=2), "each of 1 to 3 is needed once"),
    ):
        with pytest.raises(ConfigError, match=message):
            init(tmp_path / "fed", terms(), [*public[:2], changed])
        assert not (tmp_path / "fed").exists()
    with pytest.raises(ConfigError, match="2 sites handed over keys"):
        init(tmp_path / "fed", terms(), public[:2])


@pytest.mark.parametrize(
    "text",
    [
        "[]",
        "{",
        '{"number": 1}',
        '{"number": true, "identity": "00", "supernode": "x"}',
        json.dumps({"number": 1, "identity": "0" * 64, "supernode": "ssh-rsa AAAA"}),
        json.dumps({"number": 1, "identity": "../../etc", "supernode": "x\ny"}),
        json.dumps({"number": -4, "identity": "0" * 64, "supernode": "x"}),
    ],
)
def test_what_a_site_hands_over_is_checked(tmp_path, text):
    (tmp_path / PUBLIC).write_text(text)
    with pytest.raises(ConfigError) as stop:
        Public.load(tmp_path / PUBLIC)
    assert "\n" not in str(stop.value)


@pytest.mark.parametrize(
    "changes",
    [
        {"clients": 2},
        {"clients": 5000},
        {"host": "a b"},
        {"host": "x:80"},
        {"port": 0},
        {"host": ""},
    ],
)
def test_init_refuses_what_can_not_be(tmp_path, changes):
    with pytest.raises(ConfigError):
        init(tmp_path / "fed", terms(**changes))


def test_a_folder_that_is_not_empty_is_left_alone(tmp_path):
    (tmp_path / "mine").write_text("mine")
    with pytest.raises(ConfigError, match="is not empty"):
        init(tmp_path, terms())
    with pytest.raises(ConfigError, match="is not empty"):
        join(tmp_path, 1)
    with pytest.raises(ConfigError, match="no party's folder"):
        check(tmp_path)


def test_a_site_that_has_not_finished(tmp_path):
    join(tmp_path / "site", 1)
    told = wrong(check(tmp_path / "site", offline=True))
    assert "--welcome FOLDER" in told["federation"]


def test_a_server_without_a_certificate(tmp_path):
    init(tmp_path / "fed", terms())
    server = tmp_path / "fed" / "server"
    assert wrong(check_server_folder(server)) == {}
    (server / "tls" / "server.key").chmod(0o640)
    assert "chmod 600" in wrong(check_server_folder(server))["certificate"]
    (server / "tls" / "server.crt").unlink()
    assert (
        "without a certificate is not started" in wrong(check_server_folder(server))["certificate"]
    )
    (server / "tls" / "server.crt").write_text("nonsense")
    (server / "tls" / "server.key").chmod(0o600)
    assert "is no certificate by" in wrong(check_server_folder(server))["certificate"]


def test_a_servers_folder_that_does_not_fit_its_nodes(tmp_path):
    init(tmp_path / "fed", terms())
    server = tmp_path / "fed" / "server"
    (server / "app" / "fedvlm_app" / "client_app.py").write_text("app = None\n")
    (server / "nodes" / "node-3.pub").write_text((server / "nodes" / "node-1.pub").read_text())
    told = wrong(check_server_folder(server))
    assert "nodes run no other app" in told["app"]
    assert "the same key" in told["nodes"]
    (server / "nodes" / "node-3.pub").unlink()
    assert "clients = 3, and nodes/ holds 2 keys" in wrong(check_server_folder(server))["run.toml"]


@pytest.mark.parametrize(("apart", "word"), [(86_400.0, "ahead of"), (-86_400.0, "behind")])
def test_a_clock_that_is_off_by_a_day(apart, word):
    line = check_clock(email.utils.formatdate(time.time() - apart, usegmt=True))
    assert not line.ok
    assert f"24.0 h {word} the server's" in line.told
    assert check_clock(email.utils.formatdate(time.time() - 20, usegmt=True)).ok
    assert check_clock(None).ok


class _Web(BaseHTTPRequestHandler):
    def do_GET(self):
        self.send_response(404)
        self.end_headers()

    def log_message(self, *arguments):
        pass


@pytest.fixture
def web(made):
    """A server that speaks TLS with the certificate of `made`; yields its port."""
    tls = made / "server" / "tls"
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(tls / "server.crt", tls / "server.key")
    server = HTTPServer(("127.0.0.1", 0), _Web)
    server.socket = context.wrap_socket(server.socket, server_side=True)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    yield server.server_port
    server.shutdown()
    server.server_close()


def test_a_server_is_called_over_tls(made, web, tmp_path):
    ca = made / "node-1" / "tls" / "ca.crt"
    lines = check_server(f"127.0.0.1:{web}", ca)
    assert [(line.what, line.ok) for line in lines] == [("server", True), ("clock", True)]
    init(tmp_path / "other", terms())
    other = check_server(f"127.0.0.1:{web}", tmp_path / "other" / "node-1" / "tls" / "ca.crt")
    assert "isn't this federation's" in other[0].told
    assert not other[0].ok
    (tmp_path / "none.crt").write_text("nonsense")
    assert "holds no certificate" in check_server(f"127.0.0.1:{web}", tmp_path / "none.crt")[0].told


def test_a_server_that_is_gone_or_speaks_in_clear(made):
    ca = made / "node-1" / "tls" / "ca.crt"
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    assert "can't be reached" in check_server(f"127.0.0.1:{port}", ca)[0].told
    plain = HTTPServer(("127.0.0.1", 0), _Web)
    threading.Thread(target=plain.serve_forever, daemon=True).start()
    try:
        told = check_server(f"127.0.0.1:{plain.server_port}", ca)[0].told
    finally:
        plain.shutdown()
        plain.server_close()
    assert "doesn't speak TLS" in told
    assert "without a certificate" in told
