"""A linear layer whose weights stay hidden from the client, beyond what its results say."""

import math

import numpy as np
from numpy.typing import ArrayLike

from secure.errors import ParameterError, PolicyError
from secure.he._periodic import (
    PeriodicLayer,
    add_periodic,
    pair,
    pair_bound,
    pair_rows,
)
from secure.he._rotations import shortened, weight_bits
from secure.he._seal import engine, native_errors
from secure.he.ciphertext import Encrypted
from secure.he.errors import RangeError
from secure.he.keys import EvaluationKeys
from secure.he.linear import as_matrix, as_result
from secure.he.params import HEParams
from secure.he.plans import PeriodicPlan
from secure.he.release import gaussian
from secure.random import SecureRandom


class GuardedLinear:
    """`y = W x + b` where a result tells the client `y`, and of W nothing more.

    A result of `EncryptedLinear` also carries partial sums in its unread slots, noise that W
    has shaped, and a second polynomial that is a public function of W. Here every slot holds an
    output, a fresh encryption of zero under the client's public key hides the second
    polynomial, and Gaussian noise floods the first: Gentry, "A Fully Homomorphic Encryption
    Scheme", 2009, section 21.1, on circuit privacy.

    Args:
        weight: Shape `(out_features, in_features)`.
        bias: Shape `(out_features,)`, or None.
        params: Encryption parameters; flooding takes `statistical_bits` of their precision.
        max_queries: Results that this object gives; `in_features` of them determine W, so it
            must be smaller.
        statistical_bits: Statistical distance of a result from one that depends on `y` alone
            is at most 2^-statistical_bits.
        max_error: Largest error of a result that is acceptable.

    Guarantees:
        Against a client that follows the protocol (its evaluation keys are what they should
        be, its noise no larger than honest): each result is within 2^-statistical_bits of a
        function of `y`, public values and the scale of the result, which tells the largest norm
        of a row to a factor of two. `y` itself is linear in W. Input privacy is that of
        `EncryptedLinear`.

    Raises:
        RangeError: The parameters have no room for the flooding.

    Example:
        >>> params = HEParams(16384, (60, 60, 60, 60), 90)
        >>> layer = GuardedLinear(np.eye(4), params=params, max_queries=2)
        >>> layer.error < 1e-4
        True
    """

    def __init__(
        self,
        weight: ArrayLike,
        bias: ArrayLike | None = None,
        *,
        params: HEParams,
        max_queries: int,
        statistical_bits: int = 40,
        max_error: float = 1e-3,
    ) -> None:
        matrix = as_matrix(weight, 2, "weight")
        shift = np.zeros(len(matrix)) if bias is None else as_matrix(bias, 1, "bias")
        if len(shift) != len(matrix):
            raise ParameterError(f"bias has {len(shift)} entries for {len(matrix)} outputs")
        if not 1 <= max_queries < matrix.shape[1]:
            raise ParameterError(
                f"max_queries must be in [1, {matrix.shape[1] - 1}]: as many queries as inputs "
                f"determine W; got {max_queries}"
            )
        if not 1 <= statistical_bits <= 64:
            raise ParameterError(f"statistical_bits must be in [1, 64], got {statistical_bits}")
        self.plan = PeriodicPlan(params, matrix.shape[1], matrix.shape[0])
        self.max_queries = max_queries
        self.queries = 0
        n, m = self.plan.sizes
        norms = np.linalg.norm(matrix, axis=1)
        peak = pair_bound(norms * params.max_abs + np.abs(shift), m)
        # Giant steps and folds add noise at the result's scale: small beside it, and counted.
        noise = params.noise() * (pair_bound(norms, m) + 2.0**-20)
        self.sigma = math.sqrt(params.slots) * noise * 2.0 ** (statistical_bits - 1)
        self.error = 6 * self.sigma + noise
        if self.error > max_error:
            raise RangeError(
                f"flooding by {statistical_bits} bits makes an error of {self.error:.1e}, above "
                f"{max_error:.1e}: choose parameters with a larger scale, such as "
                "HEParams(16384, (60, 60, 60, 60), 90)"
            )
        bits = weight_bits(params, peak + 10 * self.sigma, 0, 2.0**params.scale_bits)
        if bits < 20:
            raise RangeError(f"{bits} bits are left for the weights, and 20 are needed")
        self._layer = PeriodicLayer(params, pair_rows(matrix, n, m), 0, 2.0**bits)
        self._bias = pair(shift, m)
        self._random = SecureRandom()

    @native_errors()
    def __call__(self, encrypted: Encrypted, keys: EvaluationKeys) -> Encrypted:
        """Apply the layer, re-randomise and flood the result.

        Args:
            encrypted: An input, packed by this layer's `plan`.
            keys: Made with `HEClient.evaluation_keys(plan, public=True)`.

        Raises:
            PolicyError: `max_queries` results were given.
            MissingKeyError: A rotation or the public key is missing.
        """
        if self.queries >= self.max_queries:
            raise PolicyError(f"{self.max_queries} results were given: more would tell the weights")
        params = self.plan.params
        encrypted.require_input_of(self.plan, keys.fingerprint)
        keys.require(self.plan)
        encryptor = keys.zero_encryptor
        self.queries += 1
        seal = engine(params)
        result = self._layer.apply(encrypted.load()[0], keys)
        add_periodic(params, result, self._bias)
        zero = seal.api.Ciphertext()
        encryptor.encrypt_zero(result.parms_id(), zero)
        zero.scale = result.scale
        seal.evaluator.add_inplace(result, zero)
        draws = self.sigma * gaussian(self._random, 2 * params.slots)
        add_periodic(params, result, draws[: params.slots] + 1j * draws[params.slots :])
        return as_result(encrypted, [shortened(params, result)])
