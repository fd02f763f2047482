"""Certificates: how long they live, who renews them, and what an expired or damaged one says."""

import datetime
import random
import stat

import pytest
from cryptography import x509

from secure.errors import IntegrityError, ParameterError, PeerError
from secure.smpc import Identity, add_client, connect, identities, make_identities, renew
from secure.smpc.dealer import Dealer, main
from tests.secure.smpc.serving import TIMEOUT, attempt, remote, run_dealer
from tests.secure.smpc.tiny import tiny


def _expire(monkeypatch):
    """Let certificates that are issued from here on be of last week."""
    monkeypatch.setattr(identities, "_CLOCK_SLACK", datetime.timedelta(days=400))
    build = identities._builder

    def builder(subject, public_key, days):
        ends = datetime.datetime.now(datetime.UTC) - datetime.timedelta(days=7)
        made = build(subject, public_key, days)
        return made if days > 825 else _replaced(made, ends)

    monkeypatch.setattr(identities, "_builder", builder)


def _replaced(builder, ends):
    builder._not_valid_after = ends.replace(tzinfo=None)
    return builder


def test_m8_the_lifetime_is_chosen_and_renewal_keeps_the_keys(tmp_path, capsys):
    folder = tmp_path / "ids"
    assert main(["identities", str(folder), "--days", "90"]) == 0
    assert main(["identities", str(folder), "--client", "alice", "--days", "5"]) == 0
    now = datetime.datetime.now(datetime.UTC)
    assert (identities.expiry(folder / "client.pem") - now).days in (89, 90)
    assert (identities.expiry(folder / "alice" / "client.pem") - now).days in (4, 5)
    keys = {path: path.read_bytes() for path in folder.rglob("*.key")}
    old = (folder / "server.pem").read_bytes()
    authority = (folder / "authority.pem").read_bytes()
    capsys.readouterr()
    assert main(["identities", str(folder), "--renew", "--days", "200"]) == 0
    assert len(capsys.readouterr().out.split()) == 4
    assert {path: path.read_bytes() for path in folder.rglob("*.key")} == keys
    assert (folder / "authority.pem").read_bytes() == authority
    assert (folder / "server.pem").read_bytes() != old
    for path in (folder / "server.pem", folder / "alice" / "client.pem"):
        assert (identities.expiry(path) - now).days in (199, 200)
    assert all(stat.S_IMODE(path.stat().st_mode) == 0o600 for path in keys)
    name = x509.load_pem_x509_certificate((folder / "alice" / "client.pem").read_bytes()).subject
    assert name.rfc4514_string() == "CN=alice"
    program = tiny()[2].program
    with run_dealer(Dealer(program), folder) as dealing:
        remote("server", dealing.port, folder).setup(program)
        with pytest.raises(PeerError, match="only the server"):
            remote("client", dealing.port, folder / "alice").setup(program)


def test_m8_wrong_requests_for_certificates_are_refused(tmp_path):
    folder = tmp_path / "ids"
    make_identities(folder)
    for name in ("", "../x", "a b", "é" * 65, "a/b"):
        with pytest.raises(ParameterError, match="name"):
            add_client(folder, name)
    add_client(folder, "bob")
    with pytest.raises(ParameterError, match="exists already"):
        add_client(folder, "bob")
    with pytest.raises(ParameterError, match="825"):
        renew(folder, 826)
    assert main(["identities", str(folder), "--days", "0"]) == 2
    assert main(["identities", str(folder)]) == 2
    (folder / "authority.key").unlink()
    for act in (lambda: renew(folder), lambda: add_client(folder, "eve")):
        with pytest.raises(ParameterError, match=r"no authority\.key"):
            act()
    (tmp_path / "file").write_text("")
    assert main(["identities", str(tmp_path / "file" / "ids")]) == 2


def test_m8_an_expired_certificate_says_so_on_every_side(tmp_path, monkeypatch):
    program = tiny()[2].program
    folder = tmp_path / "ids"
    make_identities(folder)
    log = []
    with run_dealer(Dealer(program), folder, log=log.append) as dealing:
        remote("server", dealing.port, folder).setup(program)  # it has looked at its own by now
        with monkeypatch.context() as patch:
            _expire(patch)
            renew(folder)
        # One's own, before a link is opened.
        with pytest.raises(ParameterError, match=r"server\.pem expired on 20..-..-..; whoever"):
            remote("server", dealing.port, folder).setup(program)
        # With a clock that is wrong: each side hears it of the other's.
        monkeypatch.setattr(Identity, "require_valid", lambda self: None)
        with pytest.raises(IntegrityError, match="the dealer was refused: its certificate has exp"):
            connect("127.0.0.1", dealing.port, Identity(folder, "client"), "dealer", TIMEOUT)
        expired = (folder / "client.pem").read_bytes()
        renew(folder)
        (folder / "client.pem").write_bytes(expired)
        channel = connect("127.0.0.1", dealing.port, Identity(folder, "client"), "dealer", TIMEOUT)
        with pytest.raises(PeerError, match="expired|broke|away"):
            channel.receive(8)
        # Renewed, it's served by the same process.
        remote("server", dealing.port, folder).setup(program)
    assert any("its certificate has expired; have it renewed" in line for line in log)


def test_m8_damaged_identity_files_are_one_clear_error(tmp_path):
    folder = tmp_path / "ids"
    make_identities(folder)
    draw = random.Random(8)
    for name in ("authority.pem", "client.pem", "client.key"):
        whole = (folder / name).read_bytes()
        for _ in range(25):
            data = bytearray(whole)
            match draw.randrange(3):
                case 0:
                    data[draw.randrange(len(data))] ^= 1 << draw.randrange(8)
                case 1:
                    data = data[: draw.randrange(len(data))]
                case _:
                    data = bytearray(draw.randbytes(50))
            (folder / name).write_bytes(data)
            _, error = attempt(Identity(folder, "client").require_valid)
            assert error is None or isinstance(error, ParameterError)
        (folder / name).write_bytes(whole)
    Identity(folder, "client").require_valid()
    # Another certificate's key.
    (folder / "client.key").write_bytes((folder / "server.key").read_bytes())
    with pytest.raises(ParameterError, match="can't be used"):
        Identity(folder, "client").require_valid()
