"""Serve an encrypted layer or gallery over TLS: `python -m secure.he.serve`.

A bounded number of clients at a time, each on a deadline; one result is computed at a time, while
the others' bytes are on their way. A client gets the parameters and the layout, sends its
evaluation keys once, then queries; the server never holds anything that decrypts.
"""

import argparse
import math
import socket
import ssl
import struct
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import numpy as np

from secure.errors import ParameterError, PeerError, SecureError
from secure.he._arguments import as_matrix, real, whole
from secure.he._files import load_array, member
from secure.he._places import Place, accept, listen, make_room
from secure.he._transport import Frame, receive, send, server_context
from secure.he.ciphertext import Encrypted
from secure.he.errors import LayoutError
from secure.he.gallery import EncryptedGallery
from secure.he.keys import EvaluationKeys
from secure.he.linear import EncryptedLinear
from secure.he.params import HEParams
from secure.he.plans import Plan
from secure.he.sizes import key_bytes, message_bytes

# Length of the parameters, which come before the tag of the plan.
HELLO = struct.Struct("<B")
_POLL_S = 0.1
_MOST_BYTES = 1 << 34


class Layer(Protocol):
    """Anything that computes on encrypted inputs."""

    @property
    def plan(self) -> Plan:
        """How inputs are packed."""
        ...

    def __call__(self, encrypted: Encrypted, keys: EvaluationKeys) -> Encrypted:
        """Return the encrypted result."""
        ...


@dataclass(frozen=True)
class Limits:
    """When the server stops, and what it bears.

    Attributes:
        max_queries: Results after which the server stops; None means no limit.
        max_seconds: Seconds after which it stops; None means no limit.
        queries_per_connection: Results that one connection gets.
        timeout: Seconds that a client has for one frame, the greeting's TLS handshake among them.
        clients: Connections that are open at a time; others wait until one of them ends.
        patience: Seconds after which a client that has sent nothing whole gives up its place,
            once another one waits for it.
    """

    max_queries: int | None = None
    max_seconds: float | None = None
    queries_per_connection: int = 1000
    timeout: float = 30.0
    clients: int = 8
    patience: float = 5.0

    def __post_init__(self) -> None:
        for count in (self.max_queries, self.queries_per_connection, self.clients):
            if count is not None and whole(count, "a limit") < 1:
                raise ParameterError(f"a limit must be at least 1, got {count}")
        for seconds in (self.max_seconds, self.timeout, self.patience):
            if seconds is not None and not real(seconds, "seconds") > 0:
                raise ParameterError(f"seconds must be positive, got {seconds}")


class _Service:
    """What all connections share: the layer, used by one at a time, and what was given."""

    def __init__(self, layer: Layer, limits: Limits) -> None:
        self.plan = layer.plan
        self.limits = limits
        self.given = 0
        self._layer = layer
        self._end = math.inf
        if limits.max_seconds is not None:
            self._end = time.monotonic() + limits.max_seconds
        self._lock = threading.Lock()

    @property
    def over(self) -> bool:
        """Whether a limit is reached."""
        return self.left(math.inf) <= 0 or self._spent()

    def _spent(self) -> bool:
        return self.limits.max_queries is not None and self.given >= self.limits.max_queries

    def left(self, longest: float) -> float:
        """Return the seconds that are left, at most `longest`."""
        return max(min(longest, self._end - time.monotonic()), 0.0)

    def result(self, encrypted: Encrypted, keys: EvaluationKeys) -> Encrypted | None:
        """Compute a result; None where all were given."""
        with self._lock:
            if self._spent():
                return None
            result = self._layer(encrypted, keys)
            self.given += 1
            return result


def serve(
    layer: Layer,
    *,
    certificate: Path,
    private_key: Path,
    client_ca: Path | None = None,
    host: str = "127.0.0.1",
    port: int = 0,
    limits: Limits | None = None,
    ready: Callable[[int], None] = lambda port: None,
    log: Callable[[str], None] = lambda text: None,
) -> int:
    """Serve a layer until a limit is reached.

    Args:
        layer: `EncryptedLinear`, `EncryptedProjection`, `EncryptedGallery`, ...
        certificate: PEM file of the server's certificate.
        private_key: PEM file of its key.
        client_ca: PEM file; where given, clients must show a certificate that it signed.
        host: Address to listen on.
        port: Port to listen on; 0 takes a free one.
        limits: When to stop, and what to bear.
        ready: Called with the port once the server listens.
        log: Called with one line an event, by any thread; never with anything that a client
            encrypted.

    Returns:
        The number of results given, once all connections have ended.

    Guarantees:
        The server sees ciphertexts and public keys. Hostile bytes end their connection, not
        the process; nor does a lack of file descriptors. A client that says nothing whole for
        `limits.patience` seconds loses its place to the next one that comes. Anyone who
        can connect can query, and so learn the weights, unless `client_ca` says who may.

    Raises:
        ParameterError: The address can't be listened on, or certificate and key are not usable.
    """
    service = _Service(layer, limits or Limits())
    context = server_context(certificate, private_key, client_ca)
    clients = service.limits.clients
    with listen(host, port) as listener, ThreadPoolExecutor(clients) as threads:
        ready(listener.getsockname()[1])
        open_: dict[Future[str], Place] = {}
        while not service.over:
            if len(open_) == clients:
                wait(open_, service.left(_POLL_S), FIRST_COMPLETED)
            for each in [each for each in open_ if each.done()]:
                del open_[each]
                log(each.result())
            if len(open_) == clients:
                make_room(listener, open_.values(), service.limits.patience)
                continue
            place = accept(listener, service.left(_POLL_S) or _POLL_S, log)
            if place is not None:
                open_[threads.submit(_connection, place, context, service)] = place
        for each in open_:
            log(each.result())
    return service.given


def _connection(place: Place, context: ssl.SSLContext, service: _Service) -> str:
    """Serve one client; return in a line how it ended."""
    given, outcome = 0, "limit reached"
    timeout = service.limits.timeout
    place.raw.settimeout(timeout)
    try:
        with place.over_tls(context) as connection:
            connection.do_handshake()
            try:
                for _ in _answers(connection, service, place):
                    given += 1
            except PeerError as error:
                outcome = str(error)
            except SecureError as error:
                outcome = f"refused: {error}"
                text = f"{type(error).__name__}: {error}".encode()[:1000]
                send(connection, Frame.ERROR, text, timeout)
            except OSError:
                raise
            except Exception as error:
                # It ends this connection, not the others; its text could quote a value.
                outcome = f"internal error: {type(error).__name__}"
                send(connection, Frame.ERROR, b"internal error", timeout)
    except (OSError, PeerError) as error:
        outcome = f"connection failed: {error}"
    except Exception as error:
        outcome = f"connection failed: {type(error).__name__}"
    finally:
        place.raw.close()
    return f"{place.address}: {given} results, {outcome}"


def _answers(connection: socket.socket, service: _Service, place: Place) -> Iterator[None]:
    """Answer a client; yield after each result."""
    plan, timeout = service.plan, service.limits.timeout
    params = plan.params.to_bytes()
    hello = HELLO.pack(len(params)) + params + plan.tag
    send(connection, Frame.HELLO, hello, timeout)
    keys: EvaluationKeys | None = None
    limits = {Frame.KEYS: key_bytes(plan, public=True), Frame.QUERY: message_bytes(plan)}
    given = 0
    while given < service.limits.queries_per_connection and not service.over:
        place.waits(True)
        frame, payload = receive(connection, limits, service.left(timeout))
        place.waits(False)
        if frame is Frame.KEYS:
            if keys is not None:
                raise LayoutError("keys were sent already")
            keys = EvaluationKeys.from_bytes(payload, plan.params)
            keys.require(plan)
            continue
        if keys is None:
            raise LayoutError("send evaluation keys before the first query")
        result = service.result(Encrypted.from_bytes(payload, plan.params), keys)
        if result is None:
            return
        place.waits(True)
        send(connection, Frame.RESULT, result.to_bytes(), timeout)
        given += 1
        yield


def load_layer(
    path: Path, *, max_abs: float = 1.0, abs_error: float = 3e-4
) -> EncryptedGallery | EncryptedLinear:
    """Load what is served from a file.

    Args:
        path: `.npy` with gallery embeddings, shape `(items, dimension)`; or `.npz` with
            `weight`, shape `(out, in)`, and optionally `bias`.
        max_abs: Largest norm of a query.
        abs_error: Error wanted, for weight rows of unit norm.

    Raises:
        ParameterError: The file is not one of these.
    """
    loaded = load_array(path)
    if isinstance(loaded, np.ndarray):
        rows, bias = as_matrix(loaded, 2, str(path)), None
    else:
        with loaded:
            if "weight" not in loaded:
                raise ParameterError(f"{path} has no array named 'weight'")
            rows = as_matrix(member(loaded, "weight", path, _MOST_BYTES), 2, f"{path}: weight")
            bias = member(loaded, "bias", path, _MOST_BYTES) if "bias" in loaded else None
    params = HEParams.select(depth=0, max_abs=max_abs, abs_error=abs_error)
    if isinstance(loaded, np.ndarray):
        return EncryptedGallery(rows, params)
    return EncryptedLinear(rows, bias, params=params)


def main(arguments: Sequence[str] | None = None, name: str = "python -m secure.he.serve") -> int:
    """Run the command line, called by a name; return the exit code."""
    parser = argparse.ArgumentParser(prog=name, description=__doc__)
    parser.add_argument("weights", type=Path, help=".npy gallery, or .npz with weight and bias")
    parser.add_argument("--cert", type=Path, required=True, help="PEM certificate of the server")
    parser.add_argument("--key", type=Path, required=True, help="PEM key of the server")
    parser.add_argument("--client-ca", type=Path, help="PEM that must have signed the clients'")
    parser.add_argument("--host", default="127.0.0.1")
    parser.add_argument("--port", type=int, default=0, help="0 takes a free port")
    parser.add_argument("--max-abs", type=float, default=1.0, help="largest norm of a query")
    parser.add_argument("--error", type=float, default=3e-4, help="error wanted on a result")
    parser.add_argument("--queries", type=int, help="stop after so many results")
    parser.add_argument("--seconds", type=float, help="stop after so many seconds")
    options = parser.parse_args(arguments)
    try:
        limits = Limits(options.queries, options.seconds)
        # What would fail once the weights are encoded is tried before.
        server_context(options.cert, options.key, options.client_ca)
        listen(options.host, options.port).close()
        layer = load_layer(options.weights, max_abs=options.max_abs, abs_error=options.error)
        _print(layer.plan.params.explain())
        _print(f"a result errs by at most {layer.error:.1e}")
        serve(
            layer,
            certificate=options.cert,
            private_key=options.key,
            client_ca=options.client_ca,
            host=options.host,
            port=options.port,
            limits=limits,
            ready=lambda port: _print(f"listening on {options.host}:{port}"),
            log=_print,
        )
    except ParameterError as error:
        _print(f"error: {error}")
        return 2
    except (SecureError, OSError) as error:
        _print(f"error: {error}")
        return 3 if isinstance(error, SecureError) else 1
    return 0


def _print(text: str) -> None:
    sys.stderr.write(text + "\n")
    sys.stderr.flush()


if __name__ == "__main__":
    sys.exit(main())
