"""Dealer and owner as services: no single party ends them, blocks the others or fills memory."""

import contextlib
import errno
import socket
import subprocess
import sys
import threading
import time

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from secure.errors import ParameterError, PeerError, PolicyError
from secure.random import SecureRandom
from secure.smpc import (
    Folder,
    Identity,
    Limits,
    MaterialError,
    Owner,
    Query,
    add_client,
    connect,
    make_identities,
)
from secure.smpc._open_parcels import OpenParcels
from secure.smpc._service import Turns
from secure.smpc.dealer import Dealer, write_files
from tests.secure.smpc.conversation import TOP, Endless, ask_dealer, converse, hello, raw
from tests.secure.smpc.serving import TIMEOUT, client_of, remote, run_dealer, run_owner
from tests.secure.smpc.tiny import tiny


@pytest.fixture(scope="module")
def identities(tmp_path_factory):
    folder = tmp_path_factory.mktemp("identities")
    make_identities(folder, days=1)
    add_client(folder, "another", days=1)
    return folder


def test_m6_one_certificate_with_hundreds_of_half_parcels_keeps_nobody_out(identities, tmp_path):
    plan = tiny()[2]
    dealer = Dealer(plan.program)
    for _ in range(400):
        ask_dealer(dealer, "client", b"attacker", ask="open", query=TOP.to_wire())
    assert len(dealer.waiting) == 64
    with run_dealer(dealer, identities) as dealing:
        owner = Owner(plan, remote("server", dealing.port, identities))
        with run_owner(owner, identities) as serving:
            source = remote("client", dealing.port, identities)
            client = client_of(plan.program, source, serving.port, identities)
            assert client.ask(raw(), TOP).value.shape == (1, 1)
            # Nothing is left of a session that went well, nor (for long) of one that didn't.
            assert len(dealer.waiting) == 64
            assert not source._held


def test_m6_a_half_whose_client_died_expires():
    dealer = Dealer(tiny()[2].program, lifetime_s=0.05)
    (answer,) = ask_dealer(dealer, "client", b"a", ask="open", query=TOP.to_wire())
    assert len(dealer.waiting) == 1
    time.sleep(0.1)
    assert len(dealer.waiting) == 0
    with pytest.raises(MaterialError, match="has expired"):
        ask_dealer(
            dealer,
            "server",
            b"s",
            ask="parcel",
            query=TOP.to_wire(),
            setup=answer[:16].hex(),
            parcel=answer[16:32].hex(),
        )


@settings(max_examples=60, deadline=None)
@given(st.lists(st.tuples(st.sampled_from("abc"), st.booleans()), max_size=80))
def test_m6_open_parcels_are_bounded_and_a_client_loses_only_its_own_oldest(steps):
    waiting = OpenParcels(SecureRandom(), most=20, most_each=5)
    known = {"a": [], "b": [], "c": []}
    for name, takes in steps:
        if takes and known[name]:
            parcel = known[name].pop()
            assert waiting.take(parcel, TOP).client == name.encode()
            with pytest.raises(MaterialError):
                waiting.take(parcel, TOP)
        else:
            known[name] = [*known[name], waiting.open(TOP, name.encode())[0]][-5:]
        assert len(waiting) == sum(map(len, known.values()))
    for parcels in known.values():
        for parcel in parcels:
            waiting.take(parcel, TOP)
    assert len(waiting) == 0


def test_m6_where_all_are_taken_the_greediest_client_loses():
    waiting = OpenParcels(SecureRandom(), most=6, most_each=5)
    greedy = [waiting.open(TOP, b"greedy")[0] for _ in range(5)]
    modest = [waiting.open(TOP, name)[0] for name in (b"x", b"y", b"z")]
    for parcel in (*greedy[2:], *modest):
        waiting.take(parcel, TOP)
    with pytest.raises(MaterialError):
        waiting.take(greedy[1], TOP)
    with pytest.raises(ParameterError):
        OpenParcels(SecureRandom(), lifetime_s=0)


def test_m6_idle_connections_without_a_certificate_end_nothing_and_keep_nobody_out(
    identities, tmp_path
):
    plan = tiny()[2]
    write_files(plan.program, TOP, 1, tmp_path)
    limits = Limits(handshakes=4)
    owner = Owner(plan, Folder(tmp_path / "server", 0), limits=limits)
    log = []
    with contextlib.ExitStack() as stack:
        serving = stack.enter_context(run_owner(owner, identities, log.append))
        before = threading.active_count()
        for _ in range(60):
            stack.enter_context(socket.create_connection(("127.0.0.1", serving.port), TIMEOUT))
        client = client_of(plan.program, Folder(tmp_path / "client", 1), serving.port, identities)
        assert client.ask(raw(), TOP).value.shape == (1, 1)
        # Four that say nothing are left, the others were dropped for newer ones.
        assert threading.active_count() <= before + limits.handshakes + 1
        assert sum("refused" in line for line in log) >= 50


def test_m6_an_idle_connection_times_out(identities, tmp_path):
    plan = tiny()[2]
    write_files(plan.program, TOP, 1, tmp_path)
    owner = Owner(plan, Folder(tmp_path / "server", 0), limits=Limits(handshake_s=0.3))
    with (
        run_owner(owner, identities) as serving,
        socket.create_connection(("127.0.0.1", serving.port), TIMEOUT) as idle,
    ):
        end = time.monotonic() + TIMEOUT
        with contextlib.suppress(OSError):
            while time.monotonic() < end:  # a byte now and then buys no more time
                idle.sendall(b"\x16")
                time.sleep(0.1)
        assert time.monotonic() < end


class Scarce:
    """A listener in a process that has no descriptor left, for a while."""

    def __init__(self, listener):
        self._listener, self._left = listener, 3

    def __enter__(self):
        return self

    def __exit__(self, *error):
        self._listener.close()

    def fileno(self):
        return self._listener.fileno()

    def accept(self):
        if self._left:
            self._left -= 1
            raise OSError(errno.EMFILE, "Too many open files")
        return self._listener.accept()


def test_m6_accept_survives_that_no_descriptor_is_left(identities):
    dealer, log = Dealer(tiny()[2].program), []
    with run_dealer(dealer, identities, log=log.append, wrap=Scarce) as dealing:
        remote("server", dealing.port, identities).setup(tiny()[2].program)
    assert log[:3] == ["refused: Too many open files"] * 3


@pytest.mark.slow
def test_m6_a_dealer_with_few_descriptors_outlives_idle_connections(identities, tmp_path):
    program = tiny()[2].program
    (tmp_path / "program.json").write_text(program.to_json())
    code = (
        "import resource, sys; from secure.smpc.dealer import main; "
        "resource.setrlimit(resource.RLIMIT_NOFILE, (40, 40)); sys.exit(main(sys.argv[1:]))"
    )
    serve = ("serve", tmp_path / "program.json", "--identity", identities, "--port", 0)
    process = subprocess.Popen(
        [sys.executable, "-c", code, *map(str, serve)], stdout=subprocess.PIPE, text=True
    )
    try:
        port = int(process.stdout.readline().rsplit(" ", 1)[1])
        with contextlib.ExitStack() as stack:
            for _ in range(100):
                stack.enter_context(socket.create_connection(("127.0.0.1", port), TIMEOUT))
            remote("server", port, identities).setup(program)
        assert process.poll() is None
    finally:
        process.kill()
        process.communicate(timeout=TIMEOUT)


def test_m6_a_restarted_dealer_is_taken_on_by_a_running_owner(identities):
    plan = tiny()[2]
    first = run_dealer(Dealer(plan.program), identities)
    with first:
        owner = Owner(plan, remote("server", first.port, identities))
        serving = run_owner(owner, identities)
        source = remote("client", first.port, identities)
        client = client_of(plan.program, source, serving.port, identities)
        expected = client.ask(raw(), TOP).value
    with serving:
        with pytest.raises(PeerError, match="no link to the dealer"):
            client.ask(raw(), TOP)
        masks = owner._masked
        with run_dealer(Dealer(plan.program), identities, first.port):
            assert torch.equal(client.ask(raw(), TOP).value, expected)
            assert owner._masked.setup.key != masks.setup.key
            assert not torch.equal(
                owner._masked.weights["head.weight"], masks.weights["head.weight"]
            )
            assert torch.equal(client.ask(raw(), TOP).value, expected)


def test_m6_clients_that_stall_hold_half_of_the_turns_and_for_so_long_only(identities, tmp_path):
    plan = tiny()[2]
    write_files(plan.program, TOP, 2, tmp_path)
    limits = Limits(at_once=2, session_s=2.0)
    owner = Owner(plan, Folder(tmp_path / "server", 0), limits=limits)
    log = []
    with run_owner(owner, identities, log.append) as serving, contextlib.ExitStack() as stack:
        me = Identity(identities / "another", "client")
        for _ in range(3):  # they have a certificate, and say nothing
            stalled = connect("127.0.0.1", serving.port, me, "server", TIMEOUT)
            stack.callback(stalled.close)
        client = client_of(plan.program, Folder(tmp_path / "client", 1), serving.port, identities)
        start = time.monotonic()
        assert client.ask(raw(), TOP).value.shape == (1, 1)
        assert time.monotonic() - start < 2.0
        end = time.monotonic() + TIMEOUT
        while sum("took over 2 s" in line for line in log) < 3 and time.monotonic() < end:
            time.sleep(0.1)
        assert sum("took over 2 s" in line for line in log) == 3


def test_m6_turns_are_counted_by_certificate():
    turns = Turns(Limits(at_once=2, per_client=2, connections=3))
    with turns.turn(b"a", 0.0):
        with pytest.raises(PeerError, match="busy"), turns.turn(b"a", 0.0):
            pass
        with turns.turn(b"b", 0.0), pytest.raises(PeerError, match="busy"), turns.turn(b"c", 0.0):
            pass
    with turns.turn(b"a", 0.0), turns.turn(b"b", 0.0):
        turns._here[b"a"] += 1
        with pytest.raises(PolicyError, match="with this certificate"), turns.turn(b"a", 0.0):
            pass
        with pytest.raises(PolicyError, match="too many connections;"), turns.turn(b"c", 0.0):
            pass
        turns._here[b"a"] -= 1
    assert not turns._here
    assert not turns._working


def test_m6_large_queries_are_refused_by_dealer_and_owner(identities, tmp_path):
    plan = tiny()[2]
    dealer = Dealer(plan.program, limits=Limits(batch=2, labels=3))
    owner = Owner(
        plan,
        Endless(plan.program),
        embed_labels=len,  # never asked
        reveals=("top", "scores"),
        limits=Limits(batch=2, labels=3),
    )
    for query, message in [
        (Query("top", batch=64, labels=2), "at most 2 inputs here, this one has 64"),
        (Query("top", labels=256), "at most 3 labels here, this one has 256"),
    ]:
        with pytest.raises(PolicyError, match=message):
            ask_dealer(dealer, "client", b"a", ask="open", query=query.to_wire())
        with pytest.raises(PolicyError, match=message):
            converse(owner, [hello(query, ["x"] * query.labels)])
    for bad in ({"batch": 0}, {"labels": 257}, {"at_once": True}, {"session_s": float("nan")}):
        with pytest.raises(ParameterError):
            Limits(**bad)


def test_m8_a_peers_reason_is_repeated_once_and_not_sent_back(identities):
    plan = tiny()[2]
    log = []
    dealer = run_dealer(Dealer(plan.program), identities)
    with dealer:
        owner = Owner(plan, remote("server", dealer.port, identities))
        source = remote("client", dealer.port, identities)
        with run_owner(owner, identities, log.append) as serving:
            client = client_of(plan.program, source, serving.port, identities)
            with pytest.raises(PeerError) as caught:
                client.ask(raw(), Query("scores"))
    assert str(caught.value) == "the server stopped: this owner doesn't reveal 'scores'"
    assert log == ["stopped: this owner doesn't reveal 'scores'"]
