"""The page of a run that goes on: from this machine, to who was told, and only while it runs."""

import http.client
import socket
import threading
import time

import pytest

from fedvlm.config import config_from
from fedvlm.errors import ConfigError
from fedvlm.reporting.live import HOST, watched_page
from fedvlm.watching import Nobody, port_of, watched
from tests.fedvlm.reporting.samples import Parsed, result

CONFIG = config_from({"training.rounds": 6})


def ask(address: str, path: str = "", method: str = "GET", host: str | None = None):
    """Ask the address for something, by what name one likes."""
    place, _, secret = address.removeprefix("http://").partition("/")
    connection = http.client.HTTPConnection(place, timeout=10)
    connection.putrequest(method, f"/{secret}{path}", skip_host=True)
    for name in (host or place).split("|"):
        connection.putheader("Host", name)
    connection.endheaders()
    answer = connection.getresponse()
    body = answer.read().decode()
    connection.close()
    return answer, body


@pytest.fixture
def live():
    said: list[str] = []
    with watched_page(CONFIG, 0, said.append) as page:
        yield page, said[0].removeprefix("live at ")


def test_the_page_grows_by_round(live):
    page, address = live
    answer, body = ask(address)
    assert answer.status == 200
    assert "Preparing" in Parsed(body).text
    seen = {ask(address, "version")[1]}
    for entry in result().rounds[:3]:
        page.event({"event": "round", "time": float(entry["round"]), "entry": entry})
        page.round(entry)
        seen.add(ask(address, "version")[1])
    assert len(seen) == 4
    text = Parsed(ask(address, "page")[1]).text
    assert "2 of 6 rounds are done; about 4 s left." in text
    assert "37 % against 25 % before" in text.replace("\u202f", " ")
    assert "Nobody has attacked this run" not in text
    page.end(result())
    assert "The run has ended." in ask(address)[1]
    assert ask(address, "version")[1] == "ended"


def test_who_doesnt_know_the_path_sees_nothing(live):
    _, address = live
    place = address.removeprefix("http://").partition("/")[0]
    for path in ("/", "/x/", "/x/page", "//", "/../../etc/passwd", address[-40:] + "x"):
        assert ask(f"http://{place}", path[1:])[0].status in (403, 404)
    for path in ("page/", "../page", "page?x", "favicon.ico", "version/../../"):
        answer, body = ask(address, path)
        assert (answer.status, body) == (404, "nothing here\n")


@pytest.mark.parametrize(
    "host", ["evil.example", "evil.example:80", "127.0.0.1", "localhost", "", "127.0.0.1:1"]
)
def test_another_name_for_this_address_is_refused(live, host):
    """A stranger's page whose DNS name points here would be of the same origin as ours."""
    answer, body = ask(live[1], host=host or "|")
    assert answer.status == 403
    assert "fedvlm" not in body


def test_two_names_at_once_are_refused(live):
    place = live[1].removeprefix("http://").partition("/")[0]
    assert ask(live[1], host=f"{place}|evil.example")[0].status == 403
    port = place.partition(":")[2]
    assert ask(live[1], host=f"localhost:{port}")[0].status == 200


@pytest.mark.parametrize("method", ["POST", "PUT", "DELETE", "HEAD", "OPTIONS", "TRACE", "X"])
def test_it_is_only_read(live, method):
    assert ask(live[1], method=method)[0].status == 501


def test_nobody_frames_or_keeps_it(live):
    answer, body = ask(live[1])
    assert answer.headers["Cache-Control"] == "no-store"
    assert "frame-ancestors 'none'" in answer.headers["Content-Security-Policy"]
    assert answer.headers["Access-Control-Allow-Origin"] is None
    assert answer.headers["X-Content-Type-Options"] == "nosniff"
    assert "Python" not in (answer.headers["Server"] or "")
    policies = [value for _, _, value in Parsed(body).attributes if "default-src" in value]
    assert "connect-src 'self'" in policies[0]


def test_it_listens_on_this_machine_alone_and_stops_with_the_run():
    said: list[str] = []
    with watched_page(CONFIG, 0, said.append):
        address = said[0].removeprefix("live at ")
        port = int(address.split(":")[2].partition("/")[0])
        assert address.startswith("http://127.0.0.1:")
        taken = pytest.raises(ConfigError, match=f"can't listen on 127.0.0.1:{port}")
        with taken, watched_page(CONFIG, port, said.append):
            pass
    with pytest.raises(ConnectionRefusedError):
        socket.create_connection((HOST, port), timeout=2)
    with watched_page(CONFIG, 0, said.append):
        pass
    secrets = {line.rpartition("/")[0].rpartition("/")[2] for line in said}
    assert len(secrets) == 2
    assert all(len(secret) == 32 for secret in secrets)


def test_a_run_that_fails_stops_it_too():
    said: list[str] = []
    with pytest.raises(ValueError, match="broke"), watched_page(CONFIG, 0, said.append) as page:
        raise ValueError("broke")
    assert page.ended
    assert "stopped" in page.text()
    assert not [t for t in threading.enumerate() if "serve_forever" in t.name]


def test_an_open_page_gets_to_see_the_end():
    said: list[str] = []
    seen: list[str] = []

    def look() -> None:
        address = said[0].removeprefix("live at ")
        while not seen:
            told = ask(address, "version")[1]
            if told == "ended":
                seen.append(ask(address, "page")[1])
            time.sleep(0.05)

    with watched_page(CONFIG, 0, said.append) as page:
        looker = threading.Thread(target=look)
        looker.start()
        time.sleep(0.2)
        page.end(result())
    looker.join(5)
    assert "The run has ended." in seen[0]


def test_nothing_listens_unless_asked(monkeypatch):
    def never(*_):
        raise AssertionError("somebody listens")

    monkeypatch.setattr(socket.socket, "bind", never)
    with watched(CONFIG, port_of(False, None), print) as shown:
        assert isinstance(shown, Nobody)
        shown.event({"event": "start"})
        shown.round({"round": 0})
        shown.end()


def test_what_was_told_before_a_resume_is_told_once(live):
    page, address = live
    rounds = result().rounds
    for entry in (rounds[1], rounds[0], rounds[1]):
        page.round(entry)
    text = Parsed(ask(address)[1]).text
    assert text.count("sent by a client") == 2  # in the table of costs, and in that of rounds
    assert "1 round" in text
