"""Serve an encrypted layer or gallery over TLS: `python -m secure.he.serve`.

One client at a time, each on a deadline. A client gets the parameters and the layout, sends its
evaluation keys once, then queries; the server never holds anything that decrypts.
"""

import argparse
import socket
import ssl
import struct
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import numpy as np

from secure.errors import ParameterError, PeerError, SecureError
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
        timeout: Seconds that a client has for one frame.
    """

    max_queries: int | None = None
    max_seconds: float | None = None
    queries_per_connection: int = 1000
    timeout: float = 30.0


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
        log: Called with one line an event; never with anything that a client encrypted.

    Returns:
        The number of results given.

    Guarantees:
        The server sees ciphertexts and public keys. Hostile bytes end their connection, not
        the process. Anyone who can connect can query, and so learn the weights, unless
        `client_ca` says who may.
    """
    limits = limits or Limits()
    context = server_context(certificate, private_key, client_ca)
    end = None if limits.max_seconds is None else time.monotonic() + limits.max_seconds
    answered = 0
    with socket.create_server((host, port)) as listener:
        ready(listener.getsockname()[1])
        while limits.max_queries is None or answered < limits.max_queries:
            rest = None if end is None else end - time.monotonic()
            if rest is not None and rest <= 0:
                break
            listener.settimeout(rest)
            try:
                raw, address = listener.accept()
            except TimeoutError:
                break
            allowed = limits.queries_per_connection
            if limits.max_queries is not None:
                allowed = min(allowed, limits.max_queries - answered)
            given, outcome = _connection(raw, context, layer, allowed, limits.timeout, end)
            answered += given
            log(f"{address[0]}: {given} results, {outcome}")
    return answered


def _connection(
    raw: socket.socket,
    context: ssl.SSLContext,
    layer: Layer,
    allowed: int,
    timeout: float,
    end: float | None,
) -> tuple[int, str]:
    """Serve one client; return the number of results and how it ended."""
    given = 0
    raw.settimeout(timeout)
    try:
        with context.wrap_socket(raw, server_side=True) as connection:
            try:
                for _ in _answers(connection, layer, allowed, timeout, end):
                    given += 1
            except PeerError as error:
                return given, str(error)
            except SecureError as error:
                text = f"{type(error).__name__}: {error}".encode()[:1000]
                send(connection, Frame.ERROR, text, timeout)
                return given, f"refused: {error}"
    except (OSError, PeerError) as error:
        return given, f"connection failed: {error}"
    finally:
        raw.close()
    return given, "limit reached"


def _answers(
    connection: socket.socket, layer: Layer, allowed: int, timeout: float, end: float | None
):
    plan = layer.plan
    params = plan.params.to_bytes()
    hello = HELLO.pack(len(params)) + params + plan.tag
    send(connection, Frame.HELLO, hello, timeout)
    keys: EvaluationKeys | None = None
    limits = {Frame.KEYS: key_bytes(plan, public=True), Frame.QUERY: message_bytes(plan)}
    for _ in range(allowed + 1):
        wait = timeout if end is None else max(min(timeout, end - time.monotonic()), 0.0)
        frame, payload = receive(connection, limits, wait)
        if frame is Frame.KEYS:
            if keys is not None:
                raise LayoutError("keys were sent already")
            keys = EvaluationKeys.from_bytes(payload, plan.params)
            keys.require(plan)
            continue
        if keys is None:
            raise LayoutError("send evaluation keys before the first query")
        result = layer(Encrypted.from_bytes(payload, plan.params), keys)
        send(connection, Frame.RESULT, result.to_bytes(), timeout)
        yield None


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
    params = HEParams.select(depth=0, max_abs=max_abs, abs_error=abs_error)
    try:
        loaded = np.load(path, allow_pickle=False)
    except (OSError, ValueError) as error:
        raise ParameterError(f"{path} is no .npy or .npz file of plain arrays: {error}") from error
    if isinstance(loaded, np.ndarray):
        return EncryptedGallery(loaded, params)
    with loaded:
        if "weight" not in loaded:
            raise ParameterError(f"{path} has no array named 'weight'")
        return EncryptedLinear(loaded["weight"], loaded.get("bias"), params=params)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line; return the exit code."""
    parser = argparse.ArgumentParser(prog="python -m secure.he.serve", description=__doc__)
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
        layer = load_layer(options.weights, max_abs=options.max_abs, abs_error=options.error)
        _print(layer.plan.params.explain())
        serve(
            layer,
            certificate=options.cert,
            private_key=options.key,
            client_ca=options.client_ca,
            host=options.host,
            port=options.port,
            limits=Limits(options.queries, options.seconds),
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
