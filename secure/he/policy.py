"""Terms of a federation that sums under encryption: what fits, what is refused, what is noised.

entries = [update · f / bound] [1] [f] [m · metric / 16, m] …    f = min(1, examples / max_weight)

A metric comes with the weight m that it counts with: f, or 0 where it is no number in range.
"""

import math
import os
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from secure.aggregation._payload import Aggregate, Layout
from secure.errors import IntegrityError, ParameterError, PeerError
from secure.he.aggregation import max_summands, sum_error
from secure.he.client import HEClient
from secure.he.errors import WireError
from secure.he.params import HEParams
from secure.he.release import ReleasePolicy

# The smallest degree that has room for a 60-bit prime, the largest that SEAL has. The scale takes
# all that the sum leaves over: what the clients tell the server must drown the ciphertext's noise.
_DEGREE, _BITS, _LEAST_SCALE = 4096, 60, 30
_METRIC_UNIT = 16.0
_MAX_METRIC = 1024.0
_ADVANTAGE = 2.0**-10
_COUNTS, _A_METRIC = 2, 2
_LEAST_WEIGHT = 1e-3  # of an example: what weighs less is the noise of the sum
_MOST_KEY_BYTES = 1 << 23  # 16 primes of 60 bits at N = 32768 take half of that


@dataclass(frozen=True)
class HEPolicy:
    """Terms that the clients and the server of a federation have in common.

    Each party builds them from its own copy of the configuration; to a client they are the floor
    below which it refuses.

    Args:
        clients: Most clients in one sum, at least `quorum`.
        bound: Largest change of a parameter in a round. An update beyond it is not sent; one
            within it has a Euclidean norm of at most `bound * sqrt(parameters)`.
        rounds: Sums that a client decrypts in the life of the key.
        quorum: Fewest clients in a sum that a client decrypts, at least 3: the sum of two tells
            each of them the other's.
        max_weight: Number of examples at which a client's weight is clamped.
        entries: Square of the largest norm of an encoded vector: the number of parameters,
            with 4,097 for each metric, may not exceed it.

    Raises:
        ParameterError: A value is out of its range, or so many clients do not fit.

    Example:
        >>> policy = HEPolicy(clients=10, bound=1.0, rounds=6)
        >>> policy.bytes_per_parameter
        7.5
    """

    clients: int
    bound: float
    rounds: int
    quorum: int = 3
    max_weight: int = 1000
    entries: int = 1 << 20

    def __post_init__(self) -> None:
        if not 3 <= self.quorum <= self.clients:
            raise ParameterError(
                f"quorum must be in [3, clients], got {self.quorum} of {self.clients} clients"
            )
        if not (math.isfinite(self.bound) and self.bound > 0):
            raise ParameterError(f"bound must be positive, got {self.bound}")
        if min(self.rounds, self.max_weight, self.entries) < 1:
            raise ParameterError("rounds, max_weight and entries must be at least 1")

    @cached_property
    def params(self) -> HEParams:
        """Encryption parameters: the largest scale at which `clients` vectors can be added."""
        for scale_bits in range(_BITS, _LEAST_SCALE - 1, -1):
            try:
                params = HEParams(
                    _DEGREE, (_BITS,), scale_bits, math.sqrt(self.entries), "a released sum"
                )
            except ParameterError:
                continue
            if max_summands(params) >= self.clients:
                return params
        raise ParameterError(
            f"{self.clients} vectors of {self.entries} entries do not fit {_BITS} bits: "
            "lower clients or entries"
        )

    @property
    def bytes_per_parameter(self) -> float:
        """Bytes of an encrypted parameter in a client's vector; a sum has twice as many."""
        return _BITS / 8

    def release(self, length: int) -> ReleasePolicy:
        """Return what noise a decrypted sum of `length` entries gets before the server sees it.

        Without it, one ciphertext and its decryption give the key away. With it, all rounds
        together leave a server that follows the protocol an advantage of at most 2^-10.
        """
        error = sum_error(self.params, self.clients)
        return ReleasePolicy.for_advantage(error, length, self.rounds, _ADVANTAGE)

    def noise(self, length: int) -> float:
        """Return the standard deviation of that noise on an entry of the weighted sum."""
        return self.bound * self.release(length).sigma

    def length(self, layout: Layout) -> int:
        """Return the number of entries under encryption."""
        return layout.length + _COUNTS + _A_METRIC * len(layout.metrics)

    def encode(
        self, vector: NDArray[np.floating], weight: float, metrics: Mapping[str, float]
    ) -> NDArray[np.float64]:
        """Weight an update and put its counts and metrics behind it.

        Args:
            vector: Update, shape `(parameters,)`.
            weight: Number of examples, finite and at least 0; clamped at `max_weight`.
            metrics: Numbers by name; one that is not finite, or of magnitude beyond 1,024, is left
                out of its mean.

        Returns:
            Shape `(parameters + 2 + 2 * metrics,)`, float64, of norm at most `sqrt(entries)`.

        Raises:
            ParameterError: Something is not finite or beyond its bound; nothing of the update
                is in the message.
        """
        if not (math.isfinite(weight) and weight >= 0):
            raise ParameterError("the number of examples must be finite and at least 0")
        wide = vector.astype(np.float64)
        if not np.abs(wide).max(initial=0.0) <= self.bound:
            raise ParameterError("the update is beyond update_bound or not finite; it was not sent")
        share = min(weight, self.max_weight) / self.max_weight
        tail = [1.0, share]
        for name in sorted(metrics):
            sound = abs(metrics[name]) <= _MAX_METRIC
            tail += [share * metrics[name] / _METRIC_UNIT, share] if sound else [0.0, 0.0]
        entries = np.concatenate([wide * (share / self.bound), tail])
        if not float(np.dot(entries, entries)) <= self.entries:
            raise ParameterError(
                f"{len(vector)} parameters are too many for entries={self.entries}"
            )
        return entries

    def count(self, total: NDArray[np.float64], parameters: int) -> int:
        """Return how many clients a decrypted sum says that it holds.

        Raises:
            IntegrityError: The entry that counts them holds no whole number.
        """
        value = float(total[parameters])
        if not (math.isfinite(value) and abs(value - round(value)) < 0.1):
            raise IntegrityError("the decrypted vector is no sum of clients' vectors")
        return round(value)

    def decode(self, total: NDArray[np.float64], layout: Layout, clients: int) -> Aggregate:
        """Turn a decrypted sum into means.

        Raises:
            IntegrityError: The sum is not one of `clients` vectors of this layout.
            PeerError: The weights add up to nothing, so that there is no mean.
        """
        if total.shape != (self.length(layout),) or not np.isfinite(total).all():
            raise IntegrityError(f"a sum has {self.length(layout)} finite entries")
        size = layout.length
        if self.count(total, size) != clients:
            raise IntegrityError(f"the decrypted sum does not count {clients} clients")
        share, least = float(total[size + 1]), _LEAST_WEIGHT / self.max_weight * clients
        if not share >= least:
            raise PeerError("the clients' weights add up to zero: there is no mean")
        sums, shares = total[size + _COUNTS :: _A_METRIC], total[size + _COUNTS + 1 :: _A_METRIC]
        metrics = {
            name: float(each) * _METRIC_UNIT / float(weight)
            for name, each, weight in zip(layout.metrics, sums, shares, strict=True)
            if weight >= least
        }
        partial = tuple(
            name
            for name, weight in zip(layout.metrics, shares, strict=True)
            if weight < share - least
        )
        mean = total[:size] * (self.bound / share)
        return Aggregate(mean, share * self.max_weight, metrics, clients, partial=partial)


def provision_key(path: Path | str, policy: HEPolicy) -> None:
    """Draw the key that all clients share, and write it to a file that its owner alone can read.

    Every client gets a copy by a way that the server does not see. WHOEVER HOLDS IT READS EVERY
    CLIENT'S UPDATE from what the server receives.

    Raises:
        ParameterError: The file is there already, or can't be written.

    Example:
        >>> import tempfile
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     policy = HEPolicy(clients=3, bound=1.0, rounds=1)
        ...     provision_key(Path(folder) / "he.key", policy)
        ...     load_key(Path(folder) / "he.key").params == policy.params
        True
    """
    try:
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    except FileExistsError:
        raise ParameterError(f"{path} is there already; name another file") from None
    except OSError as error:
        raise ParameterError(f"{path} can't be written: {error.strerror}") from None
    with os.fdopen(descriptor, "wb") as file:
        file.write(HEClient(policy.params).export_secret())


def load_key(path: Path | str) -> HEClient:
    """Read what `provision_key` wrote.

    Raises:
        ParameterError: The file can't be read.
        WireError: It holds no key.
    """
    try:
        with Path(path).open("rb") as file:
            data = file.read(_MOST_KEY_BYTES + 1)
    except OSError:
        raise ParameterError(f"{path} can't be read; make a key with provision_key()") from None
    if len(data) > _MOST_KEY_BYTES:
        raise WireError(f"{path} is longer than any key; make one with provision_key()")
    return HEClient.from_secret(data)
