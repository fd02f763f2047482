"""Query a served layer or gallery over TLS: `python -m secure.he.query`."""

import argparse
import json
import socket
import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import ArrayLike, NDArray

from secure.errors import ParameterError, PeerError, SecureError
from secure.he._arguments import as_matrix
from secure.he._files import load_array, require_writable
from secure.he._transport import Frame, client_context, receive, send
from secure.he.ciphertext import Encrypted
from secure.he.client import HEClient
from secure.he.errors import LayoutError, WireError
from secure.he.gallery import top_k
from secure.he.params import HEParams
from secure.he.plans import TAG_BYTES, PeriodicPlan, Plan, plan_from_tag
from secure.he.serve import HELLO
from secure.he.sizes import key_bytes, message_bytes, result_bytes

_MAX_PARAMS = 64


class RemoteLayer:
    """A served layer, as a function on plaintext vectors: a key of its own for each connection.

    Args:
        host: Name or address; the server's certificate must be for it.
        port: Port.
        ca: PEM file of the certificate to trust.
        certificate: PEM file to show, where the server asks for one.
        private_key: Its key.
        timeout: Seconds for one answer.
        max_bytes: Most bytes of keys, of a query or of a result that this side bears.

    Guarantees:
        The server gets ciphertexts, at parameters of at least 128 bits whatever it proposes
        (`HEParams` refuses others). It can answer with wrong numbers: do not let it see what
        you do with them. `python -m secure.he.query` shows the parameters it agreed to.

    Raises:
        PeerError: No connection, or the server refuses.
        WireError: The server's bytes are not of this protocol.
    """

    def __init__(
        self,
        host: str,
        port: int,
        ca: Path,
        *,
        certificate: Path | None = None,
        private_key: Path | None = None,
        timeout: float = 60.0,
        max_bytes: int = 1 << 28,
    ) -> None:
        self._timeout = timeout
        context = client_context(ca, certificate, private_key)
        try:
            raw = socket.create_connection((host, port), timeout)
            try:
                self._connection = context.wrap_socket(raw, server_hostname=host)
            except (OSError, ValueError):
                raw.close()
                raise
        except (OSError, ValueError, OverflowError) as error:
            raise PeerError(f"no TLS connection to {host}:{port}: {error}") from error
        try:
            self.plan = self._hello()
            largest = max(
                key_bytes(self.plan, public=True),
                message_bytes(self.plan),
                result_bytes(self.plan),
            )
            if largest > max_bytes:
                raise LayoutError(
                    f"this layer takes messages of {largest} bytes, and max_bytes is {max_bytes}"
                )
        except SecureError:
            self.close()
            raise
        self.params = self.plan.params
        self._client: HEClient | None = None
        self.key_bytes = self.upload_bytes = self.download_bytes = 0

    def _hello(self) -> Plan:
        limit = HELLO.size + _MAX_PARAMS + TAG_BYTES
        _, payload = receive(self._connection, {Frame.HELLO: limit}, self._timeout)
        size = payload[0] if payload else 0
        if len(payload) != HELLO.size + size + TAG_BYTES:
            raise WireError("the server's greeting has another length than it says")
        params = HEParams.from_bytes(payload[HELLO.size : HELLO.size + size])
        return plan_from_tag(params, payload[HELLO.size + size :])

    def __call__(self, values: ArrayLike) -> NDArray[np.float64]:
        """Return the layer's result for plaintext values that never leave this process.

        Raises:
            RangeError: The values are larger than the server's parameters admit.
            PeerError: The server refuses, or is gone.
        """
        if self._client is None:
            self._client = HEClient(self.params)
            public = isinstance(self.plan, PeriodicPlan)
            keys = self._client.evaluation_keys(self.plan, public).to_bytes()
            self.key_bytes = len(keys)
            send(self._connection, Frame.KEYS, keys, self._timeout)
        message = self._client.encrypt(values, self.plan).to_bytes()
        self.upload_bytes = len(message)
        send(self._connection, Frame.QUERY, message, self._timeout)
        limit = {Frame.RESULT: result_bytes(self.plan)}
        _, answer = receive(self._connection, limit, self._timeout)
        self.download_bytes = len(answer)
        result = Encrypted.from_bytes(answer, self.params)
        if result.plan.tag != self.plan.tag:
            raise LayoutError("the server answered with the result of another layer")
        return self._client.decrypt(result)

    def close(self) -> None:
        """Close the connection."""
        self._connection.close()

    def __enter__(self) -> "RemoteLayer":
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()


def _rows(path: Path) -> NDArray[np.float64]:
    """Read queries, one a row: at least one, of finite numbers."""
    loaded = load_array(path)
    if not isinstance(loaded, np.ndarray):
        loaded.close()
        raise ParameterError(f"{path} is an .npz; a query is an .npy with one vector a row")
    if loaded.ndim not in (1, 2) or 0 in loaded.shape:
        raise ParameterError(
            f"{path} has shape {loaded.shape}; a query is one vector, or one a row, and not empty"
        )
    return as_matrix(np.atleast_2d(loaded), 2, str(path))


def main(arguments: Sequence[str] | None = None, name: str = "python -m secure.he.query") -> int:
    """Run the command line, called by a name; return the exit code."""
    parser = argparse.ArgumentParser(prog=name, description=__doc__)
    parser.add_argument("query", type=Path, help=".npy with one vector a row, or one vector")
    parser.add_argument("--ca", type=Path, required=True, help="PEM certificate to trust")
    parser.add_argument("--host", default="127.0.0.1")
    parser.add_argument("--port", type=int, required=True)
    parser.add_argument("--cert", type=Path, help="PEM certificate to show")
    parser.add_argument("--key", type=Path, help="its PEM key")
    parser.add_argument("--top", type=int, help="print the indices of the k highest scores")
    parser.add_argument("--out", type=Path, help="write the results to this .npy")
    options = parser.parse_args(arguments)
    try:
        rows = _rows(options.query)
        if options.top is not None and options.top < 1:
            raise ParameterError(f"--top must be at least 1, got {options.top}")
        if options.out is not None:
            require_writable(options.out)
        with RemoteLayer(
            options.host,
            options.port,
            options.ca,
            certificate=options.cert,
            private_key=options.key,
        ) as layer:
            sys.stderr.write(layer.params.explain() + "\n")
            results = np.concatenate([layer(row) for row in rows])
            report: dict[str, object] = {
                "results": len(results),
                "key_bytes": layer.key_bytes,
                "upload_bytes": layer.upload_bytes,
                "download_bytes": layer.download_bytes,
            }
        if options.top is not None:
            report["top"] = [top_k(row, options.top).tolist() for row in results]
        if options.out is not None:
            with options.out.open("wb") as file:
                np.save(file, results)
    except (SecureError, OSError) as error:
        sys.stderr.write(f"error: {error}\n")
        if isinstance(error, ParameterError):
            return 2
        return 3 if isinstance(error, SecureError) else 1
    sys.stdout.write(json.dumps(report) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
