"""The server over TLS: right answers, refusals, and bytes that are no protocol."""

import contextlib
import json
import socket
import ssl
import threading
from pathlib import Path

import numpy as np
import pytest

from secure.errors import ParameterError, PeerError
from secure.he import EncryptedLinear, GuardedLinear, HEClient, HEParams
from secure.he import query as query_module
from secure.he import serve as serve_module
from secure.he._transport import Frame, client_context, receive, send
from secure.he.certificates import write_self_signed
from secure.he.errors import LayoutError, RangeError
from secure.he.query import RemoteLayer
from secure.he.serve import Limits, load_layer, serve

from .he_tools import FAST, client, unit_rows


@pytest.fixture(scope="module")
def tls(tmp_path_factory) -> tuple[Path, Path]:
    return write_self_signed(tmp_path_factory.mktemp("tls"))


@contextlib.contextmanager
def running(layer, tls, limits=None, **options):
    """Serve in a thread that ends by itself; yield port, log and answers."""
    limits = limits or Limits(max_seconds=20, timeout=5)
    ports, log, answered = [], [], []
    started = threading.Event()

    def ready(port: int) -> None:
        ports.append(port)
        started.set()

    def work() -> None:
        answered.append(
            serve(
                layer,
                certificate=tls[0],
                private_key=tls[1],
                limits=limits,
                ready=ready,
                log=log.append,
                **options,
            )
        )

    thread = threading.Thread(target=work, daemon=True)
    thread.start()
    assert started.wait(10)
    yield ports[0], log, answered
    thread.join(30)
    assert not thread.is_alive()


def run_all(works) -> None:
    threads = [threading.Thread(target=work) for work in works]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(20)


def one(count: int = 1) -> Limits:
    return Limits(max_queries=count, max_seconds=20, timeout=5)


def test_queries_get_their_answers(tls):
    rng = np.random.default_rng(0)
    weight = unit_rows(rng, 120, 200)
    layer = EncryptedLinear(weight, params=FAST)
    values = unit_rows(rng, 2, 200)
    with (
        running(layer, tls, one(2)) as (port, log, answered),
        RemoteLayer("127.0.0.1", port, tls[0]) as remote,
    ):
        for row in values:
            assert np.abs(remote(row) - row @ weight.T).max() < 1e-3
        assert 0 < remote.upload_bytes < remote.download_bytes < remote.key_bytes
    assert answered == [2]
    assert log == ["127.0.0.1: 2 results, limit reached"]


def test_a_guarded_layer_gets_its_public_key(tls):
    params = HEParams(16384, (60, 60, 60, 60), 90)
    layer = GuardedLinear(np.eye(4), params=params, max_queries=1)
    with (
        running(layer, tls, one()) as (port, _, _),
        RemoteLayer("127.0.0.1", port, tls[0]) as remote,
    ):
        assert np.abs(remote([0.5, 0, 0, -0.5]) - [0.5, 0, 0, -0.5]).max() < 1e-4


def test_a_server_of_another_certificate_is_not_talked_to(tls, tmp_path):
    other, _ = write_self_signed(tmp_path)
    layer = EncryptedLinear(np.eye(4), params=FAST)
    with running(layer, tls, Limits(max_seconds=1.5, timeout=1)) as (port, log, answered):
        with pytest.raises(PeerError, match="TLS"):
            RemoteLayer("127.0.0.1", port, other)
        with pytest.raises(PeerError, match="TLS"):
            RemoteLayer("localhost", port, tls[0])
    assert answered == [0]
    assert all("failed" in line for line in log)


def test_with_a_client_ca_strangers_get_nothing(tls, tmp_path):
    certificate, key = write_self_signed(tmp_path, "client")
    layer = EncryptedLinear(np.eye(4), params=FAST)
    with running(layer, tls, one(), client_ca=certificate) as (port, _, answered):
        with pytest.raises(PeerError):
            RemoteLayer("127.0.0.1", port, tls[0])
        with RemoteLayer(
            "127.0.0.1", port, tls[0], certificate=certificate, private_key=key
        ) as remote:
            assert np.abs(remote(np.full(4, 0.2)) - 0.2).max() < 1e-3
    assert answered == [1]


def test_the_client_checks_its_values_before_anything_leaves(tls):
    layer = EncryptedLinear(np.eye(4), params=FAST)
    with (
        running(layer, tls, one()) as (port, _, _),
        RemoteLayer("127.0.0.1", port, tls[0]) as remote,
    ):
        with pytest.raises(RangeError):
            remote(np.full(4, 2.0))
        with pytest.raises(ParameterError):
            remote(np.full(5, 0.1))
        assert np.abs(remote(np.full(4, 0.2)) - 0.2).max() < 1e-3


def test_a_layer_too_large_for_the_client_is_refused(tls):
    layer = EncryptedLinear(np.eye(4), params=FAST)
    with (
        running(layer, tls, Limits(max_seconds=1, timeout=1)) as (port, _, _),
        pytest.raises(LayoutError, match="max_bytes"),
    ):
        RemoteLayer("127.0.0.1", port, tls[0], max_bytes=1000)


def talk(port: int, tls) -> ssl.SSLSocket:
    raw = socket.create_connection(("127.0.0.1", port), 5)
    connection = client_context(tls[0], None, None).wrap_socket(raw, server_hostname="127.0.0.1")
    receive(connection, {Frame.HELLO: 1000}, 5)
    return connection


def test_hostile_clients_end_their_connection_and_nothing_else(tls):
    layer = EncryptedLinear(np.eye(4), params=FAST)
    owner, stranger = client(FAST), HEClient(FAST)
    keys = owner.evaluation_keys(layer.plan).to_bytes()
    message = owner.encrypt(np.full(4, 0.2), layer.plan).to_bytes()
    foreign = stranger.encrypt(np.full(4, 0.2), layer.plan).to_bytes()
    attacks = [
        ([(Frame.QUERY, message)], "before the first query"),
        ([(Frame.KEYS, keys), (Frame.KEYS, keys)], "already"),
        ([(Frame.KEYS, b"nonsense")], "envelope"),
        ([(Frame.KEYS, keys[:-1] + b"\0")], "damaged"),
        ([(Frame.KEYS, keys), (Frame.QUERY, foreign)], "belongs to key"),
        ([(Frame.KEYS, keys), (Frame.QUERY, message[:-40])], "announced"),
        ([(Frame.RESULT, b"")], "none was due"),
        ([(Frame.QUERY, bytes(1 << 18))], "at most"),
    ]
    rng = np.random.default_rng(0)
    with running(layer, tls, Limits(1, 30, timeout=2)) as (port, log, answered):
        for frames, _ in attacks:
            with talk(port, tls) as connection:
                with contextlib.suppress(PeerError):
                    for frame, payload in frames:
                        send(connection, frame, payload, 5)
                # Where the server stops reading a long frame, its answer may be cut off too.
                with pytest.raises(PeerError):
                    receive(connection, {}, 5)
        for size in (0, 1, 5, 300):
            with socket.create_connection(("127.0.0.1", port), 5) as raw:
                raw.sendall(rng.bytes(size))
        with RemoteLayer("127.0.0.1", port, tls[0]) as remote:
            assert np.abs(remote(np.full(4, 0.2)) - 0.2).max() < 1e-3
    assert answered == [1]
    for _, expected in attacks:
        assert any(expected in line for line in log)


def test_an_error_that_nobody_thought_of_ends_one_connection(tls):
    layer = EncryptedLinear(np.eye(4), params=FAST)

    class Faulty:
        plan, broken = layer.plan, True

        def __call__(self, encrypted, keys):
            if self.broken:
                self.broken = False
                raise IndexError("a value of 17")
            return layer(encrypted, keys)

    with running(Faulty(), tls, one()) as (port, log, answered):
        with (
            RemoteLayer("127.0.0.1", port, tls[0]) as remote,
            pytest.raises(PeerError, match="internal error$"),
        ):
            remote(np.full(4, 0.2))
        with RemoteLayer("127.0.0.1", port, tls[0]) as remote:
            assert np.abs(remote(np.full(4, 0.2)) - 0.2).max() < 1e-3
    assert answered == [1]
    assert any(line.endswith("internal error: IndexError") for line in log)
    assert not any("17" in line for line in log)


def test_clients_are_served_side_by_side(tls):
    """One that has connected and says nothing keeps nobody waiting; all get their own answers."""
    rng = np.random.default_rng(1)
    weight = unit_rows(rng, 60, 40)
    layer = EncryptedLinear(weight, params=FAST)
    values = unit_rows(rng, 3, 40)
    got = {}

    def ask(index: int, remote: RemoteLayer) -> None:
        got[index] = [remote(values[index]) for _ in range(2)]

    with (
        running(layer, tls, Limits(6, 30, timeout=5)) as (port, log, answered),
        talk(port, tls),
        contextlib.ExitStack() as stack,
    ):
        remotes = [stack.enter_context(RemoteLayer("127.0.0.1", port, tls[0])) for _ in values]
        run_all([lambda i=i, remote=remote: ask(i, remote) for i, remote in enumerate(remotes)])
    assert answered == [6]
    assert len(log) == 4
    for index, answers in got.items():
        for answer in answers:
            assert np.abs(answer[0] - weight @ values[index]).max() < 1e-3
    assert len(got) == 3


def test_no_more_clients_than_the_limit(tls):
    layer = EncryptedLinear(np.eye(4), params=FAST)
    limits = Limits(1, 20, timeout=1, clients=2)
    with (
        running(layer, tls, limits) as (port, log, answered),
        talk(port, tls),
        talk(port, tls),
        # The third waits for its greeting until one of the others gives up its place.
        RemoteLayer("127.0.0.1", port, tls[0]) as remote,
    ):
        assert any("too slow" in line or "failed" in line for line in log)
        assert np.abs(remote(np.full(4, 0.2)) - 0.2).max() < 1e-3
    assert answered == [1]


def test_a_count_of_queries_holds_over_all_clients(tls):
    layer = EncryptedLinear(np.eye(4), params=FAST)
    answers: list[object] = []

    def ask() -> None:
        with contextlib.suppress(PeerError), RemoteLayer("127.0.0.1", port, tls[0]) as remote:
            for _ in range(2):
                answers.append(remote(np.full(4, 0.2)))

    with running(layer, tls, one(3)) as (port, _, answered):
        run_all([ask] * 3)
    assert len(answers) == 3
    assert answered == [3]


def test_a_silent_client_is_cut_off(tls):
    layer = EncryptedLinear(np.eye(4), params=FAST)
    with (
        running(layer, tls, Limits(max_seconds=2, timeout=0.3)) as (port, log, _),
        talk(port, tls) as connection,
        pytest.raises(PeerError),
    ):
        receive(connection, {}, 1.5)
    assert any("too slow" in line or "failed" in line for line in log)


def test_the_command_lines(tls, tmp_path, capsys):
    rng = np.random.default_rng(0)
    gallery = unit_rows(rng, 50, 16)
    np.save(tmp_path / "gallery.npy", gallery)
    np.save(tmp_path / "queries.npy", gallery[[3, 7]])
    layer = load_layer(tmp_path / "gallery.npy")
    with running(layer, tls, one(2)) as (port, _, _):
        code = query_module.main(
            [
                str(tmp_path / "queries.npy"),
                *("--ca", str(tls[0]), "--port", str(port), "--top", "1"),
                *("--out", str(tmp_path / "scores.npy")),
            ]
        )
    captured = capsys.readouterr()
    assert code == 0
    assert json.loads(captured.out)["top"] == [[3], [7]]
    assert "128-bit security" in captured.err
    scores = np.load(tmp_path / "scores.npy")
    assert np.abs(scores - gallery[[3, 7]] @ gallery.T).max() < 1e-3


def test_the_server_command_stops_by_itself(tls, tmp_path, capsys):
    np.savez(tmp_path / "layer.npz", weight=np.eye(3), bias=np.ones(3))
    arguments = ["--cert", str(tls[0]), "--key", str(tls[1]), "--seconds", "0.2"]
    assert serve_module.main([str(tmp_path / "layer.npz"), *arguments]) == 0
    assert "listening on 127.0.0.1:" in capsys.readouterr().err


def test_files_that_are_not_weights_are_refused(tls, tmp_path, capsys):
    np.savez(tmp_path / "other.npz", bias=np.ones(3))
    (tmp_path / "text.npy").write_text("no array")
    np.save(tmp_path / "objects.npy", np.array([{}], dtype=object), allow_pickle=True)
    for name in ("other.npz", "text.npy", "objects.npy", "absent.npy"):
        with pytest.raises(ParameterError):
            load_layer(tmp_path / name)
    arguments = ["--cert", str(tls[0]), "--key", str(tls[0]), "--seconds", "1"]
    np.save(tmp_path / "gallery.npy", np.eye(3))
    assert serve_module.main([str(tmp_path / "absent.npy"), *arguments]) == 2
    assert serve_module.main([str(tmp_path / "gallery.npy"), *arguments]) == 2
    assert "error: " in capsys.readouterr().err


def test_the_private_key_of_a_self_signed_certificate_is_private(tls):
    assert tls[1].stat().st_mode & 0o077 == 0
