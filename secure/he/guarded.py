"""A linear layer whose weights stay hidden from the client, beyond what its results say."""

import math
from typing import Any

import numpy as np
from numpy.typing import ArrayLike

from secure.errors import ParameterError, PolicyError
from secure.he._arguments import as_matrix, whole
from secure.he._bounds import ERROR_STD, FLOAT, KEY_TAIL, rounding
from secure.he._exact import residues_of
from secure.he._flood import SHIFT, TERMS, flood
from secure.he._periodic import (
    PeriodicLayer,
    add_periodic,
    pair,
    pair_bound,
    pair_rows,
)
from secure.he._rotations import shortened, weight_bits
from secure.he._seal import engine, native_errors
from secure.he.chain_plan import periodic_split
from secure.he.ciphertext import Encrypted
from secure.he.errors import RangeError
from secure.he.keys import EvaluationKeys
from secure.he.linear import as_result
from secure.he.params import HEParams
from secure.he.plans import PeriodicPlan
from secure.random import SecureRandom

_LEAST_BITS = 20
# Standard deviations that a slot's flooding may reach: with 2^15 slots, once in 2^43 results.
_FLOOD_TAIL = 9.0
# What the root mean square of thousands of slots of honest noise may be over its expectation.
_SPREAD = 2.0
# Slots 0, 1, ... of a key switch's bias are as 1, 1/3, 1/9, ...: all of them as 1.1 of the first.
_BIAS_SLOTS = 1.1


class GuardedLinear:
    """`y = W x + b` where a result tells the client `y`, and of W nothing more.

    A result of `EncryptedLinear` also carries partial sums in its unread slots, noise that W
    has shaped, and a second polynomial that is a public function of W. Here every slot holds an
    output, a fresh encryption of zero under the client's public key hides the second
    polynomial, and integer noise floods every coefficient of the first, down to its last bit
    (`secure.he._flood`): Gentry, "A Fully Homomorphic Encryption Scheme", 2009, section 21.1,
    on circuit privacy.

    With v the integer polynomial that an honest input decrypts to, split into the encoded values m
    and noise e, a result decrypts to `L(m) + b + D + f`: L is the layer as it was encoded, D holds
    L(e) and the noise of rotations and of the encryption of zero, and f is the flooding. Inputs
    and weights are polynomials in X^(N / 2P), so that `L(m) + b` repeats `y` in the slots exactly
    and is a function of `y`. What is left, D, is an integer vector, and f hides it: their
    sum is within `SHIFT * |D| / R` of f in total variation.

    Args:
        weight: Shape `(out_features, in_features)`.
        bias: Shape `(out_features,)`, or None.
        params: Encryption parameters; flooding takes `statistical_bits` of their precision.
        max_queries: Results that this object gives; `in_features` of them determine W, so it
            must be smaller.
        statistical_bits: Total variation of a result from one that depends on `y` alone is at
            most 2^-statistical_bits.
        max_error: Largest error of a result that is acceptable.

    Attributes:
        error: Bound on the error of an entry, for an input of norm `max_abs`.
        sigma: Standard deviation of the flooding in an entry.

    Guarantees:
        Against a client that follows the protocol (its evaluation keys are what they should
        be, its input is encoded by `HEClient`, its noise no larger than honest): each result is
        within 2^-statistical_bits, beside the hardness of ring-LWE, of a function of `y`
        and public values. `y` is `W' x + b`, with W' the weights as they were rounded when
        they were encoded; it is linear in W'. The scale of the result and the size of the
        flooding tell the largest norm of a row and the largest result, each to a factor of
        two. Input privacy is that of `EncryptedLinear`. A client that departs from the
        protocol is not covered: noise of its own choice can be larger than what f hides.

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
        if not 1 <= whole(max_queries, "max_queries") < matrix.shape[1]:
            raise ParameterError(
                f"max_queries must be in [1, {matrix.shape[1] - 1}]: as many queries as inputs "
                f"determine W; got {max_queries}"
            )
        if not 1 <= whole(statistical_bits, "statistical_bits") <= 64:
            raise ParameterError(f"statistical_bits must be in [1, 64], got {statistical_bits}")
        self.plan = PeriodicPlan(params, matrix.shape[1], matrix.shape[0])
        self.max_queries = max_queries
        self.queries = 0
        n, m = self.plan.sizes
        norms = np.linalg.norm(matrix, axis=1)
        # The scale of a result is public: it follows from these two, to a factor of two.
        norm = _up(pair_bound(norms, m))
        peak = _up(pair_bound(norms * params.max_abs + np.abs(shift), m))
        # The flooding takes of the range what the weights could have; fewer bits, more flooding.
        width = self._width(norm, _LEAST_BITS, statistical_bits)
        self.sigma = self._deviation(width, _LEAST_BITS)
        self.error = self._error(norm, peak, _LEAST_BITS)
        if not self.error <= max_error:
            raise RangeError(
                f"flooding by {statistical_bits} bits makes an error of {self.error:.1e}, above "
                f"{max_error:.1e}: choose parameters with a larger scale, such as "
                "HEParams(16384, (60, 60, 60, 60), 90)"
            )
        largest = peak + norm * math.sqrt(2) * params.noise() + _FLOOD_TAIL * self.sigma
        bits = math.floor(weight_bits(params, largest, 0, 2.0**params.scale_bits, norm))
        if bits < _LEAST_BITS:
            raise RangeError(f"{bits} bits are left for the weights, and {_LEAST_BITS} are needed")
        self._flooding = self._width(norm, bits, statistical_bits)
        self.sigma = self._deviation(self._flooding, bits)
        self.error = self._error(norm, peak, bits)
        self._layer = PeriodicLayer(params, pair_rows(matrix, n, m), 0, 2.0**bits)
        self._bias = pair(shift, m)
        self._random = SecureRandom()

    def _width(self, norm: float, bits: int, statistical_bits: int) -> int:
        """Return the R that hides D: `SHIFT * |D| / R` is at most 2^-statistical_bits.

        The norm of D's coefficients is the root mean square of its slots.
        """
        params = self.plan.params
        n, m = self.plan.sizes
        _, giant = periodic_split(n, m)
        folds, slots, degree = max(n // m, 1), params.slots, params.poly_modulus_degree
        switch = params.switching()
        bias = KEY_TAIL * _BIAS_SLOTS * switch.bias
        # A row of W meets the noise of its inputs, rotated; the bias is in one slot a giant step.
        input_noise = _SPREAD * params.fresh_and_switched()
        shaped = math.hypot(input_noise, bias * math.sqrt(giant * folds / slots))
        # Each fold doubles what was there before it.
        steps = (giant + 2) * folds
        after = steps * (_SPREAD * switch.std + bias / math.sqrt(slots))
        # e u + e1 + e2 s: products of Gaussian and ternary polynomials.
        zero = 2 * _SPREAD * ERROR_STD * degree * math.sqrt(4 / 3)
        spread = max(norm * 2.0**bits, 1.0) * shaped + after + zero
        return math.ceil(SHIFT * spread) << statistical_bits

    def _deviation(self, width: int, bits: int) -> float:
        """Return the standard deviation of the flooding in the real part of a slot."""
        scale_bits = self.plan.params.scale_bits + bits
        return width * math.sqrt(TERMS / 12 * self.plan.params.slots) * 2.0**-scale_bits

    def _error(self, norm: float, peak: float, bits: int) -> float:
        params = self.plan.params
        weights = rounding(2 * max(self.plan.sizes)) * params.max_abs * 2.0**-bits
        noise = norm * params.noise() + FLOAT * peak
        # What is added at the result's scale is part of what the flooding drowns.
        return noise + weights + (_FLOOD_TAIL + 2.0**-8) * self.sigma

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
        result = self._flooded(result)
        return as_result(encrypted, [shortened(params, result)])

    def _flooded(self, result: Any) -> Any:
        """Add noise to every coefficient, modulo every prime: exact integers throughout."""
        seal = engine(self.plan.params)
        level = seal.level_of(result)
        primes = seal.primes(level)
        noise = flood(self._random, self.plan.params.poly_modulus_degree, self._flooding)
        residues = seal.residues(result, level)
        modulus = np.array(primes, dtype=np.uint64)[:, None]
        residues[0] = (residues[0] + seal.to_ntt(residues_of(noise, primes), level)) % modulus
        return seal.load_ciphertext(residues, b"", level, result.scale)


def _up(value: float) -> float:
    """Return the smallest power of two that is at least `value`, and at least 2^-20."""
    return 2.0 ** math.ceil(math.log2(max(value, 2.0**-20)))
