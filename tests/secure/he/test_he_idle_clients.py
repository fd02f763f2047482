"""A server that any client may try to hold: silence, half messages, floods of connections."""

import contextlib
import os
import resource
import socket
import ssl
import struct
import threading
import time

import numpy as np
import pytest

from secure.errors import PeerError
from secure.he import EncryptedLinear
from secure.he import _places as places_module
from secure.he._transport import client_context
from secure.he.certificates import write_self_signed
from secure.he.query import RemoteLayer
from secure.he.serve import Limits

from .he_tools import FAST
from .test_he_serve import running, talk

LAYER = EncryptedLinear(np.eye(4), params=FAST)


@pytest.fixture(scope="module")
def tls(tmp_path_factory):
    return write_self_signed(tmp_path_factory.mktemp("tls"))


def asks(port: int, tls) -> None:
    with RemoteLayer("127.0.0.1", port, tls[0]) as remote:
        assert np.abs(remote(np.full(4, 0.2)) - 0.2).max() <= LAYER.error


def raw(port: int) -> socket.socket:
    return socket.create_connection(("127.0.0.1", port), 5)


@pytest.mark.parametrize("stage", ["tcp", "half a handshake", "tls", "half a frame"])
def test_idle_clients_give_up_their_places_to_others(tls, stage):
    """All places are taken by clients that are silent: the next one is served soon all the same."""
    limits = Limits(1, 30, timeout=60, clients=3, patience=0.3)
    with running(LAYER, tls, limits) as (port, log, answered), contextlib.ExitStack() as stack:
        for _ in range(3):
            if stage in ("tcp", "half a handshake"):
                held = stack.enter_context(raw(port))
                if stage == "half a handshake":
                    held.sendall(b"\x16\x03\x01\x02\x00\x01")
            else:
                held = stack.enter_context(talk(port, tls))
                if stage == "half a frame":
                    held.sendall(struct.pack("<BQ", 2, 1000) + b"x" * 400)
        time.sleep(0.5)
        start = time.monotonic()
        asks(port, tls)
        assert time.monotonic() - start < 8
        stack.close()
    assert answered == [1]
    assert len(log) == 4


def test_a_client_at_work_keeps_its_place(tls):
    """Others crowd the door; who asks and is answered is not the one that is sent away."""
    limits = Limits(12, 30, timeout=60, clients=2, patience=0.5)
    with running(LAYER, tls, limits) as (port, _, answered), contextlib.ExitStack() as stack:
        remote = stack.enter_context(RemoteLayer("127.0.0.1", port, tls[0]))
        for _ in range(12):
            stack.enter_context(raw(port))
            assert np.abs(remote(np.full(4, 0.2)) - 0.2).max() <= LAYER.error
            time.sleep(0.1)
        stack.close()
    assert answered == [12]


def test_a_want_of_file_descriptors_ends_nothing(tls, monkeypatch):
    """`accept` fails where none is left, or where the client went away: the server goes on."""
    failed = []
    take = socket.socket.accept

    def sometimes(self):
        if len(failed) < 3:
            failed.append(True)
            raise OSError(24, "Too many open files")
        return take(self)

    monkeypatch.setattr(places_module, "_PAUSE_S", 0.01)
    monkeypatch.setattr(socket.socket, "accept", sometimes)
    with running(LAYER, tls, Limits(1, 30, timeout=5)) as (port, log, answered):
        asks(port, tls)
    assert answered == [1]
    assert sum("Too many open files" in line for line in log) == 3


def test_many_clients_that_come_and_go_cost_no_memory_and_no_descriptor(tls):
    before = len(os.listdir("/proc/self/fd"))
    limits = Limits(1, 40, timeout=2, clients=4, patience=0.1)
    rng = np.random.default_rng(0)
    with running(LAYER, tls, limits) as (port, _, answered):
        for index in range(60):
            with raw(port) as connection:
                connection.sendall(rng.bytes(int(rng.integers(0, 200))))
                if index % 3 == 0:
                    # Reset instead of closed.
                    linger = struct.pack("ii", 1, 0)
                    connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, linger)
        asks(port, tls)
        assert len(os.listdir("/proc/self/fd")) < before + 20
    assert answered == [1]
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss < 1 << 22


def test_a_client_of_half_tls_ends_in_an_error_of_ours(tls):
    """The other way round: a server that says nothing, or nonsense, ends the client's wait."""
    for answer in (b"", b"HTTP/1.1 200 OK\r\n\r\n", b"\x16\x03\x03\x00\x7a"):
        with socket.create_server(("127.0.0.1", 0)) as false_server:
            false_server.settimeout(5)
            port = false_server.getsockname()[1]

            def once(answer=answer, listener=false_server):
                connection, _ = listener.accept()
                with connection:
                    connection.sendall(answer)
                    time.sleep(0.7 if answer else 0.0)

            thread = threading.Thread(target=once)
            thread.start()
            with pytest.raises(PeerError, match="no TLS connection"):
                RemoteLayer("127.0.0.1", port, tls[0], timeout=0.5)
            thread.join(5)


def test_a_context_that_trusts_one_certificate_trusts_no_other(tls):
    context = client_context(tls[0], None, None)
    assert context.verify_mode is ssl.CERT_REQUIRED
    assert context.check_hostname
