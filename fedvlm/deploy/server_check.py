"""Is the server there: over TLS, by its certificate, and with the same time."""

import email.utils
import http.client
import ssl
import time
from dataclasses import dataclass
from pathlib import Path

CLOCK_S = 300.0
"""Seconds that two clocks may differ: messages over the connection are signed with the time."""
_TIMEOUT_S = 10.0


@dataclass(frozen=True)
class Line:
    """One line of a check.

    Attributes:
        what: What was looked at.
        ok: Whether it is fine.
        told: What was found, or what is wrong and how to mend it.
    """

    what: str
    ok: bool
    told: str


def host_and_port(server: str) -> tuple[str, int]:
    """Split host:port; IPv6 addresses stand in brackets."""
    host, _, port = server.rpartition(":")
    return host.strip("[]"), int(port)


def check_server(server: str, ca: Path, timeout_s: float = _TIMEOUT_S) -> list[Line]:
    """Call a SuperLink; returns the lines `server` and `clock`.

    Args:
        server: host:port.
        ca: Certificate authority that its certificate must come from.
        timeout_s: Seconds to wait for it.
    """
    host, port = host_and_port(server)
    try:
        trusted = ssl.create_default_context(cafile=str(ca))
    except (OSError, ssl.SSLError) as error:
        return [Line("server", False, f"{ca} holds no certificate ({error}); ask the organiser")]
    connection = http.client.HTTPSConnection(host, port, timeout=timeout_s, context=trusted)
    try:
        connection.request("GET", "/")
        date = connection.getresponse().getheader("Date")
    except ssl.SSLCertVerificationError as error:
        return [Line("server", False, _distrusted(server, error))]
    except ssl.SSLError:
        fix = "it was started without a certificate: the server's side uses start-server.sh"
        return [Line("server", False, f"{server} doesn't speak TLS; {fix}")]
    except (OSError, http.client.HTTPException) as error:
        reason = getattr(error, "strerror", None) or type(error).__name__
        fix = "is start-server.sh running there, and does the firewall let this machine call it?"
        return [Line("server", False, f"{server} can't be reached ({reason}); {fix}")]
    finally:
        connection.close()
    return [Line("server", True, f"{server} answers over TLS"), check_clock(date)]


def _distrusted(server: str, error: ssl.SSLCertVerificationError) -> str:
    reason = error.verify_message or "not trusted"
    if "expired" in reason or "not yet valid" in reason:
        return f"{server}: certificate {reason}; is this machine's clock right? else make new ones"
    return (
        f"{server} shows a certificate that isn't this federation's ({reason}); don't take part, "
        "and ask the organiser: it is another server, or tls/ca.crt is of another federation"
    )


def check_clock(date: str | None) -> Line:
    """Compare this machine's clock with a server's `Date`."""
    try:
        other = email.utils.parsedate_to_datetime(date or "").timestamp()
    except (TypeError, ValueError):
        return Line("clock", True, "the server tells no time to compare with")
    apart = time.time() - other
    if abs(apart) <= CLOCK_S:
        return Line("clock", True, f"{abs(apart):.0f} s from the server's")
    way = "ahead of" if apart > 0 else "behind"
    hours = abs(apart) / 3600
    return Line(
        "clock",
        False,
        f"{hours:.1f} h {way} the server's; set it by NTP (timedatectl set-ntp true), for "
        "connections are signed with the time",
    )
