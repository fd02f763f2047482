"""A SuperNode that runs one app only: `python -m fedvlm.deploy.supernode …`.

Takes the arguments of `flower-supernode`. What a SuperLink brings as the app of a run is hashed
and compared with the app that this machine's own fedvlm is; another one gets Flower's own error
for an app that isn't trusted, and none of its code is run.
"""

import hashlib
import inspect
import logging
import sys
import time
from collections.abc import Callable
from typing import Any

from fedvlm.deploy.bundle import app_hash
from fedvlm.errors import ProtocolError

log = logging.getLogger("flwr")

# What the SuperLink answers to a node that it doesn't let in; longest and usual wait, in seconds.
_REFUSED, _AGAIN_S, _PAUSE_S = 412, 120.0, 5.0
_PULL, _VERIFY = "_pull_and_store_message", "_verify_fab"


def pin(module: Any, expected: str) -> None:
    """Have Flower's SuperNode take apps of one hash alone.

    Flower checks apps by signatures that a SuperLink without Flower's own hub can't deliver; the
    check takes their place, so that what follows from a refusal stays Flower's.

    Args:
        module: `flwr.supernode.start_client_internal`.
        expected: SHA-256 of the app, in hex.

    Raises:
        ProtocolError: This version of Flower checks apps in another way, so that nothing would
            be held.
    """
    pull, verify = getattr(module, _PULL, None), getattr(module, _VERIFY, None)
    needed = {"get_fab", "trusted_entities"}
    if pull is None or verify is None or not needed <= set(inspect.signature(pull).parameters):
        raise ProtocolError(
            "this version of Flower checks apps in a way that is not known here, and a node that "
            "runs any app that the server brings holds to no floor; install flwr as pinned"
        )

    def right(fab: Any, trusted: dict[str, str]) -> bool:
        found = hashlib.sha256(fab.content).hexdigest()
        if found != expected:
            log.error(
                "refused: the run's app is %s…, this node's is %s…; the server needs the same "
                "version of fedvlm, and an app that deploy init wrote",
                *(found[:12], expected[:12]),
            )
        return found == expected

    def checked(get_fab: Callable[..., Any]) -> Callable[..., Any]:
        def get(*args: Any, **kwargs: Any) -> Any:
            fab = get_fab(*args, **kwargs)
            fab.verifications["valid_license"] = "by hash"  # what leads to `right`, and no more
            return fab

        return get

    def pinned(**kwargs: Any) -> Any:
        kwargs |= {"get_fab": checked(kwargs["get_fab"]), "trusted_entities": {"app": expected}}
        return pull(**kwargs)

    setattr(module, _PULL, pinned)
    setattr(module, _VERIFY, right)


def patient(client: Any, seconds: float) -> None:
    """Have a SuperNode that comes back after it died wait until its SuperLink lets it in.

    For a minute the SuperLink takes its last process for alive, and refuses another one with the
    same key; Flower ends then. A key that isn't registered is refused alike: it only ends later.

    Args:
        client: `flwr.supernode.fleet_http_client.FleetHttpClient`.
        seconds: Longest to try again.
    """
    activate = client.ActivateNode

    def again(self: Any, request: Any) -> Any:
        end, told = time.monotonic() + seconds, False
        while True:
            try:
                return activate(self, request)
            except Exception as error:
                code = getattr(getattr(error, "response", None), "status_code", 0)
                if code != _REFUSED or time.monotonic() + _PAUSE_S > end:
                    raise
            if not told:
                told = True
                log.warning(
                    "the SuperLink doesn't let this node in: its last process is taken for alive, "
                    "or its key isn't registered; trying again for %.0f s",
                    seconds,
                )
            time.sleep(_PAUSE_S)

    client.ActivateNode = again


def _waits(arguments: list[str]) -> float:
    """Return how long to try again: never longer than its owner waits for a server."""
    name = "--max-wait-time"
    for place, word in enumerate(arguments):
        value = word.removeprefix(f"{name}=") if word.startswith(f"{name}=") else None
        if word == name and place + 1 < len(arguments):
            value = arguments[place + 1]
        if value is not None:
            try:
                return min(_AGAIN_S, float(value))
            except ValueError:
                break
    return _AGAIN_S


def main() -> None:
    """Start Flower's SuperNode with the app pinned."""
    from flwr.supernode import start_client_internal
    from flwr.supernode.cli import flower_supernode
    from flwr.supernode.fleet_http_client import FleetHttpClient

    pin(start_client_internal, app_hash())
    patient(FleetHttpClient, _waits(sys.argv[1:]))
    sys.argv[0] = "flower-supernode"
    flower_supernode()


if __name__ == "__main__":
    main()
