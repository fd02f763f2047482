"""Dealers and owners that serve in a thread of this process, for tests."""

import threading

from secure.errors import SecureError
from secure.smpc import Client, Identity, connect, listen
from secure.smpc.dealer import Remote

TIMEOUT = 20.0


def attempt(function):
    """Return (what it gives, None) or (None, the library's own error); others are raised."""
    try:
        return function(), None
    except SecureError as error:
        return None, error


class Running:
    """A thread that serves until it is stopped."""

    def __init__(self, serve, port=0, wrap=lambda listener: listener):
        listener = listen("127.0.0.1", port)
        self.port = listener.getsockname()[1]
        self.stop = threading.Event()
        self.thread = threading.Thread(target=serve, args=(wrap(listener), self.stop), daemon=True)
        self.thread.start()

    def __enter__(self):
        return self

    def __exit__(self, *error):
        self.stop.set()
        self.thread.join(TIMEOUT)
        assert not self.thread.is_alive()


def run_dealer(dealer, identities, port=0, log=lambda text: None, **more):
    identity = Identity(identities, "dealer")
    return Running(
        lambda listener, stop: dealer.serve(listener, identity, stop, TIMEOUT, log), port, **more
    )


def run_owner(owner, identities, log=lambda text: None, timeout_s=TIMEOUT, **more):
    identity = Identity(identities, "server")
    return Running(
        lambda listener, stop: owner.serve(listener, identity, stop, None, timeout_s, log), **more
    )


def client_of(program, source, port, identities):
    identity = Identity(identities, "client")
    return Client(program, source, lambda: connect("127.0.0.1", port, identity, "server", TIMEOUT))


def remote(role, port, identities):
    return Remote("127.0.0.1", port, Identity(identities, role), TIMEOUT)
