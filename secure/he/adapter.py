"""Two layers in a row on encrypted vectors: a small adapter, or a LoRA kept apart."""

import math
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from secure.errors import ParameterError
from secure.he._arguments import as_matrix, real
from secure.he._bounds import FLOAT, rounding
from secure.he._chain_bounds import (
    first_error,
    input_error,
    last_error,
    rotated,
    squared_error,
)
from secure.he._periodic import (
    PeriodicLayer,
    add_periodic,
    pair,
    pair_bound,
    pair_rows,
    rescale,
)
from secure.he._rotations import encode_weights, weight_bits
from secure.he._seal import engine, native_errors
from secure.he.chain_plan import periodic_split
from secure.he.ciphertext import Encrypted
from secure.he.errors import DepthError, MissingKeyError, RangeError
from secure.he.keys import EvaluationKeys
from secure.he.linear import as_result
from secure.he.params import HEParams
from secure.he.plans import ChainPlan


class _Chain:
    """First layer, rescaling, optionally a square and a rescaling; the second layer follows."""

    def __init__(
        self,
        plan: ChainPlan,
        weight: NDArray[np.float64],
        bias: NDArray[np.float64],
        ratio: float = 0.0,
    ) -> None:
        self.plan = plan
        self.params = plan.params
        needed = 2 if plan.square else 1
        if self.params.depth < needed:
            raise DepthError(
                f"this needs {needed} rescalings, the parameters have room for "
                f"{self.params.depth}: choose HEParams.select(depth={needed}, ...)"
            )
        n, hidden, _ = plan.sizes
        bound = np.linalg.norm(weight, axis=1) * self.params.max_abs + np.abs(bias)
        peak = float(bound.max(initial=0.0))
        primes = engine(self.params).primes()
        scale = 2.0**self.params.scale_bits
        # Weights at the scale of the prime that the rescaling drops: the input's scale comes back.
        self._require_room(peak, 0, self.params.scale_bits + math.log2(primes[-1]))
        padded = np.zeros((hidden, n))
        padded[: weight.shape[0], : weight.shape[1]] = weight
        _, giant = periodic_split(n, hidden)
        folds, period = max(n // hidden, 1), max(n, hidden)
        self.spectral = float(np.linalg.norm(weight, 2))
        self._first_error = first_error(self.params, self.spectral, period, giant, folds)
        self._row_errors = math.sqrt(2) * first_error(
            self.params, float(np.linalg.norm(weight, axis=1).max()), period, giant, folds
        )
        self._first = PeriodicLayer(self.params, padded, 0, float(primes[-1]))
        self._bias = np.zeros(hidden)
        self._bias[: len(bias)] = bias
        self.level, self.scale = 1, scale
        self._linear = None
        if plan.square:
            self._require_room(peak * (peak + abs(ratio)), 1, 2 * self.params.scale_bits)
            norm = np.linalg.norm(weight, 2) * self.params.max_abs + np.linalg.norm(bias)
            self._bound = bound * (bound + abs(ratio))
            self._peaks, self._gains = bound, 2 * bound + abs(ratio)
            self._norm = float(norm * (peak + abs(ratio)))
            self.level, self.scale = 2, scale * scale / primes[-2]
            constant = np.full(self.params.slots, ratio)
            self._linear = encode_weights(self.params, constant, scale, 1, None)

    def largest_product(self, weight: NDArray[np.float64]) -> NDArray[np.float64]:
        """Bound each entry of `weight` times the squared hidden vector: the better of two norms."""
        by_entry = np.abs(weight) @ self._bound
        by_norm = np.linalg.norm(weight, axis=1) * self._norm
        return np.minimum(by_entry, by_norm)

    def square_error(self, weight: NDArray[np.float64], bits: float) -> float:
        """Bound the error of `weight` times the squared hidden vector, at these weight bits."""
        params = self.params
        _, hidden, m = self.plan.sizes
        _, giant = periodic_split(hidden, m)
        folds, period = max(hidden // m, 1), max(hidden, m)
        switch = params.switching(2)
        pairs = np.abs(pair_rows(np.abs(weight), weight.shape[1], m))
        # The derivative of z^2 + r z weighs the hidden vector's error; what is left is its square.
        gains = np.linalg.norm(pairs * self._gains, axis=1)
        second = pairs.sum(axis=1) * self._row_errors**2
        constant = pairs @ self._peaks * 2.0**-params.scale_bits
        own = squared_error(params, self.scale) + rotated(switch, self.scale)
        total = gains * self._first_error + second + constant + np.linalg.norm(pairs, axis=1) * own
        weights = rounding(2 * period) * self._norm * 2.0**-bits
        after = last_error(switch, self.scale * 2.0**bits, period, giant, folds)
        return float(total.max()) + weights + after

    def lora_error(
        self, base: NDArray[np.float64], update: NDArray[np.float64], bits: float
    ) -> float:
        """Bound the error of `base` times the input plus `update` times the hidden vector."""
        params = self.params
        n, hidden, m = self.plan.sizes
        switch, scale = params.switching(1), 2.0**params.scale_bits
        own, low = (
            np.linalg.norm(pair_rows(each, each.shape[1], m), axis=1) for each in (base, update)
        )
        total = own * input_error(params) + low * (self._first_error + rotated(switch, scale))
        reach = params.max_abs * 2.0**-bits
        error = float(total.max())
        for width, size in ((n, 1.0), (hidden, self.spectral)):
            _, giant = periodic_split(width, m)
            folds, period = max(width // m, 1), max(width, m)
            error += rounding(2 * period) * size * reach
            error += last_error(switch, scale * 2.0**bits, period, giant, folds)
        return error

    def _require_room(self, peak: float, level: int, scale_bits: float) -> None:
        modulus = sum(math.log2(prime) for prime in engine(self.params).primes(level))
        if scale_bits + math.log2(max(peak, 2.0**-40)) > modulus - 1.5:
            raise RangeError(
                f"hidden values up to {peak:.3g} leave the plaintext range at level {level}: "
                "scale the weights down, or choose a smaller scale or a longer modulus"
            )

    def second(self, weight: NDArray[np.float64], largest: float) -> tuple[PeriodicLayer, float]:
        """Encode the second layer, two outputs a complex slot; return it and its weight bits."""
        _, hidden, m = self.plan.sizes
        peak = float(np.abs(weight).max())
        bits = weight_bits(self.params, largest, self.level, self.scale, peak)
        packed = pair_rows(weight, hidden, m)
        return PeriodicLayer(self.params, packed, self.level, 2.0**bits), bits

    def hidden(self, encrypted: Encrypted, keys: EvaluationKeys | None) -> tuple[Any, Any]:
        """Return the input's and the hidden vector's SEAL ciphertexts."""
        encrypted.require_input_of(self.plan, None if keys is None else keys.fingerprint)
        if keys is None:
            raise MissingKeyError("this layer rotates: pass the client's evaluation keys")
        keys.require(self.plan)
        seal = engine(self.params)
        source = encrypted.load()[0]
        inner = self._first.apply(source, keys)
        add_periodic(self.params, inner, self._bias)
        inner = rescale(self.params, inner)
        if self.plan.square:
            squared = seal.api.Ciphertext()
            seal.evaluator.square(inner, squared)
            seal.evaluator.relinearize_inplace(squared, keys.relin)
            if self._linear is not None:
                seal.evaluator.multiply_plain_inplace(inner, self._linear)
                seal.evaluator.add_inplace(squared, inner)
            inner = rescale(self.params, squared)
        return source, inner


class EncryptedAdapter:
    """`y = W2 p(W1 x + b1) + b2` on an encrypted `x`, with a polynomial p of degree 2.

    With `r = a1 / a2`, the server computes `z^2 + r z`: both terms have the same scale before
    the one rescaling that follows. `a2` goes into `W2` and `a0` into `b2`, so that any polynomial
    of degree 2 costs the depth of a square.

    Args:
        first: `(W1, b1)`: shapes `(hidden, in)` and `(hidden,)`; the bias may be None.
        second: `(W2, b2)`: shapes `(out, hidden)` and `(out,)`; the bias may be None.
        params: Parameters of depth 2.
        polynomial: `(a0, a1, a2)`, `a2` not zero. The default is the square.

    Attributes:
        error: Bound on the error of an entry, as for `EncryptedLinear`.

    Guarantees:
        As for `EncryptedLinear`: the input is hidden from the server, the weights are not
        hidden from a client that asks often enough.

    Raises:
        DepthError: The parameters have fewer than two rescalings.
        RangeError: A hidden value or a result could leave the plaintext range.

    Example:
        >>> params = HEParams.select(depth=2, max_abs=1.0, abs_error=1e-2)
        >>> adapter = EncryptedAdapter((np.eye(4), None), (np.ones((1, 4)), None), params=params)
        >>> adapter.plan.square
        True
    """

    def __init__(
        self,
        first: tuple[ArrayLike, ArrayLike | None],
        second: tuple[ArrayLike, ArrayLike | None],
        *,
        params: HEParams,
        polynomial: tuple[float, float, float] = (0.0, 0.0, 1.0),
    ) -> None:
        w1, b1 = _layer(first, "first")
        w2, b2 = _layer(second, "second")
        if w2.shape[1] != w1.shape[0]:
            raise ParameterError(f"{w1.shape[0]} hidden values meet {w2.shape[1]} weights")
        a0, a1, a2 = as_matrix(polynomial, 1, "polynomial")
        if a2 == 0:
            raise ParameterError("the polynomial needs finite coefficients and a2 other than 0")
        b2 = b2 + w2.sum(axis=1) * a0
        w2 = w2 * a2
        self.plan = ChainPlan(params, w1.shape[1], w1.shape[0], w2.shape[0], True)
        self._chain = _Chain(self.plan, w1, b1, a1 / a2)
        m = self.plan.sizes[2]
        peaks = self._chain.largest_product(w2) + np.abs(b2)
        self._second, bits = self._chain.second(w2, pair_bound(peaks, m))
        self.error = self._chain.square_error(w2, bits) + 8 * FLOAT * float(peaks.max())
        self._bias = pair(b2, m)

    @native_errors()
    def __call__(self, encrypted: Encrypted, keys: EvaluationKeys | None) -> Encrypted:
        """Apply the adapter; raises as `EncryptedLinear` does."""
        _, hidden = self._chain.hidden(encrypted, keys)
        assert keys is not None  # noqa: S101  # `hidden` has refused None
        result = self._second.apply(hidden, keys)
        add_periodic(self._chain.params, result, self._bias)
        return as_result(encrypted, [result])


class EncryptedLoRA:
    """`y = W x + b + s * B (A x)` with the low-rank product kept apart from W.

    For a server with one W and many adapters. Where W and adapter go together, fold them
    (`EncryptedProjection` does): one product, depth 0, and a smaller error.

    Args:
        weight: W, shape `(out, in)`.
        bias: b, shape `(out,)`, or None.
        down: A, shape `(rank, in)`.
        up: B, shape `(out, rank)`.
        scaling: s.
        params: Parameters of depth 1.

    Attributes:
        error: Bound on the error of an entry, as for `EncryptedLinear`.

    Raises:
        DepthError: The parameters have no rescaling.
        RangeError: A result could leave the plaintext range.

    Example:
        >>> params = HEParams.select(depth=1, max_abs=1.0, abs_error=1e-2)
        >>> layer = EncryptedLoRA(np.eye(4), None, np.ones((1, 4)), np.ones((4, 1)), 0.5,
        ...                       params=params)
        >>> layer.plan.hidden_features
        1
    """

    def __init__(
        self,
        weight: ArrayLike,
        bias: ArrayLike | None,
        down: ArrayLike,
        up: ArrayLike,
        scaling: float,
        *,
        params: HEParams,
    ) -> None:
        base, shift = _layer((weight, bias), "weight")
        a = as_matrix(down, 2, "down")
        with np.errstate(over="ignore"):
            b = as_matrix(as_matrix(up, 2, "up") * real(scaling, "scaling"), 2, "up times scaling")
        if a.shape[1] != base.shape[1] or b.shape != (base.shape[0], a.shape[0]):
            raise ParameterError(f"A {a.shape} and B {b.shape} do not fit W {base.shape}")
        self.plan = ChainPlan(params, a.shape[1], a.shape[0], b.shape[0], False)
        self._chain = _Chain(self.plan, a, np.zeros(a.shape[0]))
        n, _, m = self.plan.sizes
        norms = np.linalg.norm(base + b @ a, axis=1) + np.linalg.norm(base, axis=1)
        peaks = norms * params.max_abs + np.abs(shift)
        self._second, bits = self._chain.second(b, pair_bound(peaks, m))
        self.error = self._chain.lora_error(base, b, bits) + 8 * FLOAT * float(peaks.max())
        self._base = PeriodicLayer(params, pair_rows(base, n, m), 1, 2.0**bits)
        self._bias = pair(shift, m)

    @native_errors()
    def __call__(self, encrypted: Encrypted, keys: EvaluationKeys | None) -> Encrypted:
        """Apply the layer; raises as `EncryptedLinear` does."""
        source, hidden = self._chain.hidden(encrypted, keys)
        assert keys is not None  # noqa: S101  # `hidden` has refused None
        seal = engine(self._chain.params)
        seal.evaluator.mod_switch_to_next_inplace(source)
        result = self._base.apply(source, keys)
        update = self._second.apply(hidden, keys)
        # The rescaling gave the scale back up to rounding in the last bit; SEAL wants it equal.
        update.scale = result.scale
        seal.evaluator.add_inplace(result, update)
        add_periodic(self._chain.params, result, self._bias)
        return as_result(encrypted, [result])


def _layer(
    pair: tuple[ArrayLike, ArrayLike | None], what: str
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    weight = as_matrix(pair[0], 2, what)
    bias = np.zeros(weight.shape[0]) if pair[1] is None else as_matrix(pair[1], 1, f"{what} bias")
    if bias.shape != (weight.shape[0],):
        raise ParameterError(f"the {what} bias has {len(bias)} entries for {weight.shape[0]} rows")
    return weight, bias
