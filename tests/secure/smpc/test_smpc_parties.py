"""Two parties and the dealer over mutual TLS on loopback, and how they end when one goes wrong."""

import contextlib
import os
import signal
import socket
import ssl
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
import torch

from secure.errors import IntegrityError, ParameterError, PeerError, PolicyError
from secure.smpc import (
    Client,
    Folder,
    Identity,
    Limits,
    MaterialError,
    Owner,
    PlanMismatchError,
    Query,
    _tables,
    compile,
    connect,
    listen,
    make_identities,
)
from secure.smpc import tls as tls_module
from secure.smpc.dealer import Dealer, Remote, write_files
from secure.smpc.errors import SetupChangedError
from tests.secure.smpc.tiny import TinyTower, tiny

TIMEOUT = 10.0


@pytest.fixture(scope="module")
def identities(tmp_path_factory):
    folder = tmp_path_factory.mktemp("identities")
    make_identities(folder, days=1)
    return folder


class Running:
    """A thread that serves until it is stopped."""

    def __init__(self, serve):
        self.listener = listen("127.0.0.1", 0)
        self.port = self.listener.getsockname()[1]
        self.stop = threading.Event()
        self.thread = threading.Thread(target=serve, args=(self.listener, self.stop), daemon=True)
        self.thread.start()

    def __enter__(self):
        return self

    def __exit__(self, *error):
        self.stop.set()
        self.thread.join(TIMEOUT)
        assert not self.thread.is_alive()


def _dealer(program, identities):
    dealer = Dealer(program, limits=Limits(batch=2))
    identity = Identity(identities, "dealer")
    return Running(lambda listener, stop: dealer.serve(listener, identity, stop, TIMEOUT))


def _owner(owner, identities, log=lambda text: None):
    identity = Identity(identities, "server")
    return Running(
        lambda listener, stop: owner.serve(listener, identity, stop, timeout_s=TIMEOUT, log=log)
    )


def _client(program, source, port, identities):
    identity = Identity(identities, "client")
    return Client(program, source, lambda: connect("127.0.0.1", port, identity, "server", TIMEOUT))


def _remote(role, port, identities):
    return Remote("127.0.0.1", port, Identity(identities, role), TIMEOUT)


def test_a_whole_inference_over_tls(identities):
    model, batch, plan = tiny()
    with _dealer(plan.program, identities) as dealer:
        owner = Owner(
            plan,
            _remote("server", dealer.port, identities),
            reveals=("top", "scores"),
            max_k=2,
            limits=Limits(batch=2),
        )
        with _owner(owner, identities) as server:
            source = _remote("client", dealer.port, identities)
            client = _client(plan.program, source, server.port, identities)
            expected = model(batch[:2]).detach()
            scores = client.ask({"features": batch[:2]}, Query("scores", batch=2))
            assert float((scores.value - expected).abs().max()) < 1e-3
            # The second query needs no masked weights any more, and new material.
            best = client.ask({"features": batch[:2]}, Query("top", k=2, batch=2))
            assert torch.equal(best.value, expected.topk(2).indices)
            predicted = plan.cost(query=Query("top", k=2, batch=2))
            assert predicted.rounds == best.traffic.rounds
            assert predicted.client_bytes == best.traffic.sent_bytes
            assert predicted.server_bytes == best.traffic.received_bytes


def test_labels_are_embedded_by_the_owner(identities, tmp_path):
    model, batch, plan = tiny()
    table = torch.nn.functional.normalize(torch.randn(3, 5, dtype=torch.float64), dim=-1)
    asked = []

    def embed(labels):
        asked.extend(labels)
        return table

    query = Query("top", labels=3)
    write_files(plan.program, query, 1, tmp_path)
    owner = Owner(plan, Folder(tmp_path / "server", 0), embed_labels=embed)
    with _owner(owner, identities) as server:
        source = Folder(tmp_path / "client", 1)
        client = _client(plan.program, source, server.port, identities)
        answer = client.ask({"features": batch[:1]}, query, ["cat", "dog", "fox"])
        expected = (model(batch[:1]).double() @ table.T).argmax(-1, keepdim=True)
        assert torch.equal(answer.value, expected)
        assert asked == ["cat", "dog", "fox"]
        with pytest.raises(MaterialError, match="deal more"):
            client.ask({"features": batch[:1]}, query, ["cat", "dog", "fox"])


def test_an_owner_that_scores_labels_reveals_no_embedding_for_lack_of_them(identities, tmp_path):
    _, batch, plan = tiny()
    embed = len  # never asked
    queries = (Query("scores"), Query("top"))
    for query in queries:
        write_files(plan.program, query, 1, tmp_path)
    owner = Owner(plan, Folder(tmp_path / "server", 0), embed, reveals=("scores", "top"))
    with _owner(owner, identities) as server:
        client = _client(plan.program, Folder(tmp_path / "client", 1), server.port, identities)
        for query in queries:
            with pytest.raises(PeerError, match="scores labels"):
                client.ask({"features": batch[:1]}, query)


def test_bad_input_is_refused_before_anything_is_sent(identities):
    _, batch, plan = tiny()

    def never():
        raise AssertionError("a link was opened")

    client = Client(plan.program, Folder(identities, 1), never)
    for bad, message in [
        (batch[:1, :3], "compiled for"),
        (batch[:1] * float("nan"), "not finite"),
        (batch[:1] + 1e6, "range of the calibration"),
    ]:
        with pytest.raises(ParameterError, match=message):
            client.ask({"features": bad}, Query("scores"))
    with pytest.raises(ParameterError, match="1 inputs"):
        client.ask({"features": batch[:2]}, Query("scores"))
    with pytest.raises(ParameterError, match="no notice of 'pixels'"):
        client.ask({"pixels": batch[:1]}, Query("scores"))
    with pytest.raises(ParameterError, match="labels"):
        client.ask({"features": batch[:1]}, Query("scores", labels=2), ["one"])
    with pytest.raises(ParameterError, match="at most the 5"):
        client.ask({"features": batch[:1]}, Query("top", k=6))


def test_other_programs_and_unwanted_queries_are_refused(identities, tmp_path):
    _, batch, plan = tiny()
    torch.manual_seed(5)
    other = compile(TinyTower(width=16).eval(), batch)
    assert other.program.digest != plan.program.digest
    for program in (plan.program, other.program):
        for query in (Query("top"), Query("scores"), Query("top", k=2)):
            write_files(program, query, 1, tmp_path)
    owner = Owner(plan, Folder(tmp_path / "server", 0))
    log = []
    with _owner(owner, identities, log.append) as server:
        source = Folder(tmp_path / "client", 1)
        raw = {"features": batch[:1]}
        client = _client(other.program, source, server.port, identities)
        with pytest.raises(PlanMismatchError, match="different programs"):
            client.ask(raw, Query("top"))
        client = _client(plan.program, source, server.port, identities)
        with pytest.raises(PeerError, match="doesn't reveal 'scores'"):
            client.ask(raw, Query("scores"))
        with pytest.raises(PeerError, match="ranks at most 1"):
            client.ask(raw, Query("top", k=2))
        # The owner still serves.
        assert client.ask(raw, Query("top")).value.shape == (1, 1)
    assert len(log) == 4
    with pytest.raises(PolicyError):
        owner._check(
            {
                "protocol": 1,
                "program": plan.program.digest,
                "tables": _tables.fingerprint(),
                "query": Query("top", labels=1).to_wire(),
                "labels": ["cat"],
                "parcel": "00" * 16,
            }
        )


def test_a_parcel_of_a_broken_session_is_not_offered_again(identities, tmp_path):
    _, batch, plan = tiny()
    write_files(plan.program, Query("top"), 2, tmp_path)
    owner = Owner(plan, Folder(tmp_path / "server", 0))
    source, raw = Folder(tmp_path / "client", 1), {"features": batch[:1]}
    first = source.choose(plan.program, Query("top"))
    with _owner(owner, identities) as server:
        client = _client(plan.program, source, server.port, identities)
        # The server's half is spoilt: this session fails, the next takes the next parcel.
        (tmp_path / "server" / f"{first.hex()}.parcel").write_bytes(b"spoilt")
        with pytest.raises(PeerError, match="not a parcel"):
            client.ask(raw, Query("top"))
        assert client.ask(raw, Query("top")).value.shape == (1, 1)


def test_the_dealer_hands_each_half_out_once(identities):
    program = tiny()[2].program
    query = Query("top")
    with _dealer(program, identities) as dealer:
        server = _remote("server", dealer.port, identities)
        client = _remote("client", dealer.port, identities)
        setup = server.setup(program)
        with pytest.raises(PeerError, match="only the server"):
            client.setup(program)
        with pytest.raises(PeerError, match="only a client"):
            server.choose(program, query)
        parcel = client.choose(program, query)
        client.claim(program, query, setup.identifier, parcel)
        with pytest.raises(MaterialError, match="used before"):
            client.claim(program, query, setup.identifier, parcel)
        with pytest.raises(PeerError, match="different queries"):
            server.claim(program, Query("top", k=2), setup.identifier, parcel)
        with pytest.raises(SetupChangedError):
            server.claim(program, query, bytes(16), parcel)
        server.claim(program, query, setup.identifier, parcel).close()
        for unknown in (parcel, bytes(16)):
            with pytest.raises(PeerError, match="used before, has expired, or was never"):
                server.claim(program, query, setup.identifier, unknown)
        parcel = client.choose(program, query)
        with pytest.raises(MaterialError, match="another set-up"):
            client.claim(program, query, bytes(16), parcel)


def test_peers_without_a_certificate_are_refused(identities, tmp_path):
    _, batch, plan = tiny()
    write_files(plan.program, Query("top"), 3, tmp_path)
    make_identities(tmp_path / "strangers", days=1)
    log = []
    owner = Owner(plan, Folder(tmp_path / "server", 0))
    with _owner(owner, identities, log.append) as server:
        source, raw = Folder(tmp_path / "client", 1), {"features": batch[:1]}
        # A stranger's authority: the client refuses the server.
        client = _client(plan.program, source, server.port, tmp_path / "strangers")
        with pytest.raises(IntegrityError, match="not of this authority"):
            client.ask(raw, Query("top"))
        # The same, with the check on the client's side switched off: the server refuses it.
        context = Identity(tmp_path / "strangers", "client").context(listening=False)
        context.check_hostname = False
        context.verify_mode = ssl.CERT_NONE
        _expect_refusal(server.port, context)
        # No certificate at all.
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        context.load_verify_locations(identities / "authority.pem")
        _expect_refusal(server.port, context)
        # A certificate of the authority, for another role.
        identity = Identity(identities, "dealer")
        with pytest.raises(PeerError):
            connect("127.0.0.1", server.port, identity, "server", TIMEOUT).receive(8)
        # No TLS.
        with socket.create_connection(("127.0.0.1", server.port), TIMEOUT) as plain:
            plain.sendall(b"GET / HTTP/1.0\r\n\r\n")
            plain.settimeout(TIMEOUT)
            with contextlib.suppress(ConnectionResetError):
                while plain.recv(100):
                    pass
        # A server that is not one: the client looks for the role.
        with pytest.raises(IntegrityError):
            connect("127.0.0.1", server.port, Identity(identities, "client"), "dealer", TIMEOUT)
        # A good client is still served.
        client = _client(plan.program, source, server.port, identities)
        assert client.ask(raw, Query("top")).value.shape == (1, 1)
    assert sum("refused" in line for line in log) >= 4


def _talk(port, context):
    with (
        socket.create_connection(("127.0.0.1", port), TIMEOUT) as raw,
        context.wrap_socket(raw, server_hostname="server") as wrapped,
    ):
        # TLS 1.3 tells a client of its refusal at the first read.
        wrapped.send(b"x" * 20)
        if not wrapped.recv(1):
            raise ConnectionError("closed")


def _expect_refusal(port, context):
    with pytest.raises((ssl.SSLError, ConnectionError)):
        _talk(port, context)


def test_garbage_from_a_peer_with_a_certificate_is_refused(identities, tmp_path):
    _, batch, plan = tiny()
    write_files(plan.program, Query("top"), 1, tmp_path)
    log = []
    owner = Owner(plan, Folder(tmp_path / "server", 0))
    with _owner(owner, identities, log.append) as server:
        identity = Identity(identities, "client")
        for garbage in (b"x" * 100, b'{"protocol": 1}', b"[]", b""):
            channel = connect("127.0.0.1", server.port, identity, "server", TIMEOUT)
            channel.send(garbage, 2)
            with pytest.raises(PeerError, match="stopped"):
                channel.receive(1 << 20, 2)
            channel.close()
        source = Folder(tmp_path / "client", 1)
        client = _client(plan.program, source, server.port, identities)
        assert client.ask({"features": batch[:1]}, Query("top")).value.shape == (1, 1)
    assert sum("stopped" in line for line in log) == 4


def test_a_dealer_that_is_not_there_is_a_clean_error(identities):
    plan = tiny()[2]
    listener = listen("127.0.0.1", 0)
    port = listener.getsockname()[1]
    listener.close()
    with pytest.raises(PeerError, match="no link to the dealer"):
        Owner(plan, _remote("server", port, identities))


def test_identities_are_checked(tmp_path, identities):
    with pytest.raises(ParameterError, match="days"):
        make_identities(tmp_path, days=0)
    with pytest.raises(ParameterError, match="already"):
        make_identities(identities)
    with pytest.raises(ParameterError, match="authority"):
        Identity(tmp_path, "client")
    with pytest.raises(ParameterError, match="role"):
        Identity(identities, "king")
    assert (identities / "client.key").stat().st_mode & 0o077 == 0
    assert tls_module.ROLES == ("server", "client", "dealer")


PROCESS = """
import sys, threading, torch
sys.path[:0] = {paths!r}
torch.set_num_threads(1)
from pathlib import Path
from secure.smpc import Identity, Limits, Owner, Client, Plan, Query, connect, listen
from secure.smpc.dealer import Dealer, Remote
from tiny import tiny
role, folder, dealer_port, port = sys.argv[1], Path(sys.argv[2]), int(sys.argv[3]), int(sys.argv[4])
model, batch, _ = tiny()
plan = Plan.load(folder / "plan")
identity = Identity(folder, role)
if role == "dealer":
    listener = listen("127.0.0.1", 0)
    print(listener.getsockname()[1], flush=True)
    dealer = Dealer(plan.program, limits=Limits(batch=16))
    dealer.serve(listener, identity, threading.Event(), 20.0)
elif role == "server":
    owner = Owner(plan, Remote("127.0.0.1", dealer_port, identity, 20.0), reveals=("scores",),
                  limits=Limits(batch=16))
    listener = listen("127.0.0.1", 0)
    print(listener.getsockname()[1], flush=True)
    owner.serve(listener, identity, threading.Event(), timeout_s=20.0,
                log=lambda text: print(text, flush=True))
else:
    source = Remote("127.0.0.1", dealer_port, identity, 20.0)
    client = Client(plan.program, source,
                    lambda: connect("127.0.0.1", port, identity, "server", 20.0))
    print("ready", flush=True)
    while True:
        answer = client.ask({{"features": batch}}, Query("scores", batch=16))
        print(float((answer.value - model(batch)).abs().max()), flush=True)
"""


@pytest.fixture
def processes(identities):
    paths = [str(Path(__file__).parents[3]), str(Path(__file__).parent)]
    code = PROCESS.format(paths=paths)
    tiny()[2].save(identities / "plan")
    started = []

    def start(role, dealer_port=0, port=0):
        process = subprocess.Popen(
            [sys.executable, "-c", code, role, str(identities), str(dealer_port), str(port)],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env={**os.environ, "OMP_NUM_THREADS": "1"},
        )
        started.append(process)
        line = process.stdout.readline()
        assert line, process.stderr.read()
        return process, line.strip()

    yield start
    for process in started:
        if process.poll() is None:
            process.kill()
        process.communicate(timeout=20)


@pytest.mark.slow
@pytest.mark.parametrize("victim", ["server", "dealer", "client"])
def test_a_killed_process_ends_the_others_cleanly(processes, victim):
    dealer, dealer_port = processes("dealer")
    server, port = processes("server", dealer_port)
    client, _ = processes("client", dealer_port, port)
    # Inferences run one after another: the kill falls into the midst of one.
    for _ in range(3):
        assert float(client.stdout.readline()) < 1e-3
    time.sleep(0.05)
    {"server": server, "dealer": dealer, "client": client}[victim].send_signal(signal.SIGKILL)
    start = time.monotonic()
    if victim == "client":
        while "stopped" not in (line := server.stdout.readline()):
            assert line
        # The server goes on serving a new client.
        client, _ = processes("client", dealer_port, port)
        assert float(client.stdout.readline()) < 1e-3
    else:
        _, errors = client.communicate(timeout=30)
        assert client.returncode == 1
        assert errors.strip().splitlines()[-1].startswith("secure.errors.PeerError: ")
    if victim == "dealer":
        while "stopped" not in (line := server.stdout.readline()):
            assert line
        assert server.poll() is None
    assert time.monotonic() - start < 30
