"""Sums under encryption: the server adds what it cannot read.

A second way to aggregate, beside masks. It is labelled for what it is: `LABEL`.
"""

import math
from collections.abc import Iterable, Sequence

import numpy as np
from numpy.typing import NDArray

from secure.errors import ParameterError
from secure.he._arguments import real, whole
from secure.he._bounds import ERROR_STD, FLOAT, summand_error
from secure.he._seal import engine
from secure.he.ciphertext import Encrypted, Piece
from secure.he.client import HEClient
from secure.he.errors import LayoutError, RangeError
from secure.he.params import HEParams
from secure.he.plans import SumPlan

LABEL = "server-blind; clients share one key and must not collude with the server"

# Standard deviations that a coefficient's noise may reach.
_SIGMAS = 8.2
_DEGREE = 2048
_BITS = range(28, 54)


def max_summands(params: HEParams) -> int:
    """Return how many vectors of norm `max_abs` can be added without leaving the range.

    A coefficient of an encoded block is at most the mean magnitude of its slots, which by
    Cauchy and Schwarz is at most its norm over sqrt(slots). So n summands stay below half the
    modulus while `n * (scale * max_abs / sqrt(slots) + noise) < q / 2`.
    """
    value = 2.0**params.scale_bits * params.max_abs / math.sqrt(params.slots)
    half = math.prod(engine(params).primes()) / 2
    return int(half / (value + _SIGMAS * ERROR_STD + 1))


def sum_error(params: HEParams, summands: int) -> float:
    """Bound the ciphertext's noise in an entry of a sum: what depends on the key.

    Exceeded with probability 3e-14 an entry.
    """
    return summand_error(params.poly_modulus_degree, summands) * 2.0**-params.scale_bits


def sum_tolerance(params: HEParams, summands: int) -> float:
    """Bound the error of an entry of a sum: noise, and the rounding of float64."""
    return sum_error(params, summands) + FLOAT * summands * params.max_abs


def sum_params(clients: int, clip_norm: float, error: float) -> HEParams:
    """Choose the shortest modulus for a sum, at N=2048: bytes grow with it and nothing else.

    Args:
        clients: Most vectors that will be added.
        clip_norm: Largest Euclidean norm of a vector.
        error: Largest error of an entry of the sum.

    Raises:
        ParameterError: No modulus under the 128-bit table reaches the error.

    Example:
        >>> sum_params(clients=10, clip_norm=1.0, error=1e-5).coeff_bits
        (30,)
    """
    if whole(clients, "clients") < 1 or not (
        real(clip_norm, "clip_norm") > 0 and real(error, "error") > 0
    ):
        raise ParameterError("clients, clip_norm and error must be positive")
    for bits in _BITS:
        for scale_bits in range(8, bits):
            try:
                params = HEParams(_DEGREE, (bits,), scale_bits, clip_norm, "a sum")
            except ParameterError:
                break
            if sum_tolerance(params, clients) <= error and max_summands(params) >= clients:
                return params
    raise ParameterError(
        f"an error of {error:.1e} over {clients} vectors of norm {clip_norm:g} does not fit "
        f"{_BITS[-1]} bits: allow a larger error"
    )


class EncryptedSum:
    """The server's running sum.

    Args:
        params: Encryption parameters.
        length: Entries of each vector.

    Guarantees:
        The server learns no entry of any vector or of the sum, as long as no client hands it
        the key. Whoever holds the key and a client's ciphertext reads that client's vector. The
        bound on norms is kept by `HEClient.encrypt`; a client that gets around it spoils the
        sum, and nobody notices.
    """

    def __init__(self, params: HEParams, length: int) -> None:
        self.plan = SumPlan(params, length)
        self._limit = max_summands(params)
        self._count = 0
        self._fingerprint = b""
        self._total: NDArray[np.uint64] | None = None

    @property
    def count(self) -> int:
        """Vectors added so far."""
        return self._count

    def add(self, data: bytes | memoryview) -> None:
        """Add one client's serialized vector.

        Raises:
            RangeError: One summand more could leave the plaintext range.
            KeyMismatchError: Encrypted under another key than the vectors before it.
            WireError: Damaged bytes.
            LayoutError: Not a fresh vector of this length.
        """
        if self._count >= self._limit:
            raise RangeError(f"{self._limit} vectors are all that the plaintext range has room for")
        encrypted = Encrypted.from_bytes(data, self.plan.params)
        encrypted.require_input_of(self.plan, self._fingerprint or None)
        seal = engine(self.plan.params)
        scale = encrypted.scale
        primes = np.array(seal.primes(), dtype=np.uint64)[:, None]
        full = [
            seal.residues(seal.load_ciphertext(piece.residues, piece.seed, 0, scale), 0)
            if piece.seed
            else piece.residues
            for piece in encrypted.pieces
        ]
        stacked = np.stack(full)
        self._total = stacked if self._total is None else (self._total + stacked) % primes
        self._fingerprint = encrypted.fingerprint
        self._count += 1

    def result(self) -> Encrypted:
        """Return the encrypted sum of what was added.

        Raises:
            LayoutError: Nothing was added.
        """
        if self._total is None:
            raise LayoutError("nothing was added")
        pieces = tuple(Piece(one) for one in self._total)
        scale = 2.0**self.plan.params.scale_bits
        return Encrypted(self.plan, self._fingerprint, True, 0, scale, pieces)


class HEAggregator:
    """Sums the clients' vectors under encryption, all parties in one process.

    Every vector goes through the wire format, so that what is simulated is what would be sent.

    Args:
        clients: Most vectors in one sum.
        clip_norm: Largest Euclidean norm of a vector.
        error: Largest error of an entry of the sum.

    Attributes:
        label: What protects whom, for reports.
        tolerance: Largest error of an entry: exceeded with probability 3e-14 an entry.

    Guarantees:
        Against a server that follows the protocol and gets the key from nobody: it learns
        nothing but lengths. ONE CLIENT THAT COLLUDES WITH THE SERVER reads every other
        client's vector: SEAL has no threshold keys. Masks (`secure.aggregation`) have no such
        client, and stay the default.

    Example:
        >>> aggregator = HEAggregator(clients=3, clip_norm=2.0)
        >>> total = aggregator.sum([np.full(4, 0.5, dtype=np.float32)] * 3)
        >>> total.round(3).tolist()
        [1.5, 1.5, 1.5, 1.5]
    """

    def __init__(self, clients: int, clip_norm: float, error: float = 1e-5) -> None:
        self.label = LABEL
        self.clients = clients
        self.params = sum_params(clients, clip_norm, error)
        self.tolerance = sum_tolerance(self.params, clients)
        self.upload_bytes = 0
        self.download_bytes = 0
        self._client = HEClient(self.params)

    def sum(self, vectors: Sequence[NDArray[np.float32]]) -> NDArray[np.float64]:
        """Return the sum of `(length,)` vectors as float64 `(length,)`.

        Sets `upload_bytes` and `download_bytes` to what one client sent and received.

        Raises:
            ParameterError: No vector, more than `clients`, or unequal lengths.
            RangeError: A vector is not finite, or its norm is above `clip_norm`.
        """
        if not 1 <= len(vectors) <= self.clients:
            raise ParameterError(f"1 to {self.clients} vectors can be added, got {len(vectors)}")
        lengths = {np.shape(vector) for vector in vectors}
        if len(lengths) != 1 or len(next(iter(lengths))) != 1:
            raise ParameterError(f"vectors of one axis and equal length needed, got {lengths}")
        plan = SumPlan(self.params, next(iter(lengths))[0])
        server = EncryptedSum(self.params, plan.length)
        for message in self._messages(vectors, plan):
            self.upload_bytes = len(message)
            server.add(message)
        answer = server.result().to_bytes()
        self.download_bytes = len(answer)
        return self._client.decrypt(Encrypted.from_bytes(answer, self.params))[0]

    def _messages(self, vectors: Sequence[NDArray[np.float32]], plan: SumPlan) -> Iterable[bytes]:
        for vector in vectors:
            yield self._client.encrypt(vector, plan).to_bytes()
