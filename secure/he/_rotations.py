"""The rotation layout on the server: encoded diagonals, baby steps, giant steps."""

import functools
import math
from collections.abc import Callable, Iterator
from itertools import islice
from typing import Any

import numpy as np
from numpy.typing import NDArray

from secure.he._bounds import FLOAT, headroom, rounding
from secure.he._dense import MAX_PRIME_BITS, DenseProducts
from secure.he._seal import engine
from secure.he.errors import RangeError
from secure.he.keys import EvaluationKeys
from secure.he.params import MAX_WEIGHT_BITS, HEParams
from secure.he.rotation_plan import RotationPlan
from secure.random import SecureRandom

_MIN_WEIGHT_BITS = 8
# Taking ciphertexts out of SEAL and back costs what 10 products and 4 products save.
_DENSE_SUMS, _DENSE_TERMS = 20, 8


def weight_bits(
    params: HEParams, largest: float, level: int, scale: float, peak: float = 1.0
) -> float:
    """Return the bits that weights can have without the result leaving the range.

    Args:
        params: Encryption parameters.
        largest: Largest mean magnitude of a result's slots, noise included.
        level: Level at which the product is taken.
        scale: Scale of the ciphertext.
        peak: Largest weight; the float64 that encodes it has no more bits below.

    Raises:
        RangeError: Fewer than 8 bits are left.
    """
    modulus = sum(math.log2(prime) for prime in engine(params).primes(level))
    # SEAL encodes nothing within two bits of the modulus.
    most = min(MAX_WEIGHT_BITS, modulus - 3) - max(math.log2(max(peak, 2.0**-40)), 0.0)
    bits = min(modulus - headroom(largest) - math.log2(scale), most)
    if not bits >= _MIN_WEIGHT_BITS:
        raise RangeError(
            f"results up to {largest:.3g} leave {max(bits, 0):.0f} bits for the weights, and "
            f"{_MIN_WEIGHT_BITS} are needed: choose parameters with a longer modulus"
        )
    return bits


def encode_weights(
    params: HEParams, values: NDArray, scale: float, level: int, dither: SecureRandom | None
) -> Any | None:
    """Encode one diagonal; None where it is zero, which SEAL would refuse to multiply by.

    Args:
        params: Encryption parameters.
        values: Shape `(slots,)`.
        scale: Scale of the weights.
        level: Level of the ciphertexts that it will meet.
        dither: Where from comes a uniform offset of each coefficient before it is rounded to the
            nearest, which makes its error unbiased; None rounds without.
    """
    if not np.any(values):
        return None
    if dither is not None:
        offsets = dither.uniform(params.poly_modulus_degree) - 0.5
        values = values + slots_of(offsets) / scale
    plain = engine(params).encode(values, scale, level)
    return None if plain.is_zero() else plain


def unit(params: HEParams, scale: float, level: int) -> Any:
    """Encode the smallest weight there is: what stands for a layer without weights.

    SEAL has no ciphertext without a second polynomial, which a sum of nothing would be. The
    result errs by the input over `scale`: less than `rounding` allows.
    """
    return engine(params).encode(np.full(params.slots, 1 / scale), scale, level)


def slots_of(coefficients: NDArray[np.float64]) -> NDArray[np.complex128]:
    """Return the slots `(N / 2,)` of a real polynomial `(N,)`: its values at zeta^(3^i)."""
    degree = len(coefficients)
    twist, order = _transform(degree)
    return np.fft.ifft(coefficients * twist)[order]


@functools.lru_cache(maxsize=8)
def _transform(degree: int) -> tuple[NDArray[np.complex128], NDArray[np.int64]]:
    """Return what turns an inverse DFT into values at odd powers of zeta, and the slots' order."""
    powers = [1]
    for _ in range(degree // 2 - 1):
        powers.append(powers[-1] * 3 % (2 * degree))
    twist = np.exp(1j * np.pi / degree * np.arange(degree)) * degree
    return twist, np.array(powers) // 2


class RotationLayer:
    """Encoded weights of one layer, for the rotation layout.

    Args:
        plan: The layout.
        weight: Shape `(out_features, in_features)`.
        bias: Shape `(out_features,)`, or None.
        progress: Called with the fraction that is encoded.
    """

    def __init__(
        self,
        plan: RotationPlan,
        weight: NDArray[np.float64],
        bias: NDArray[np.float64] | None,
        progress: Callable[[float], None] = lambda done: None,
    ) -> None:
        self.plan = plan
        params = plan.params
        outputs, m = plan.output_blocks, plan.m
        padded = np.zeros((outputs * 2 * m, plan.input_blocks * plan.n))
        padded[: weight.shape[0], : weight.shape[1]] = weight
        halves = padded.reshape(outputs, 2, m, plan.input_blocks, plan.n)
        packed = halves[:, 0] + 1j * halves[:, 1]
        shift = np.zeros(outputs * 2 * m)
        if bias is not None:
            shift[: len(bias)] = bias
        pairs = shift.reshape(outputs, 2, m)
        self._shift = pairs[:, 0] + 1j * pairs[:, 1]
        norms = np.sqrt(np.sum(np.abs(packed) ** 2, axis=(2, 3)))
        # The copies' and folds' partial sums of an output add up to no more than it alone could be.
        noise = math.sqrt(2 * plan.copies * plan.folds) * params.noise()
        means = norms * (params.max_abs + noise) + np.abs(self._shift)
        means = np.maximum(means, 2 * np.abs(self._shift))
        largest = float(means.sum(axis=1).max()) / params.slots
        self._scale = 2.0**params.scale_bits
        peak = float(np.abs(weight).max())
        self.weight_scale = 2.0 ** weight_bits(params, largest, 0, self._scale, peak)
        self._dither = SecureRandom()
        self.error = self._bound(norms)
        self._dense = self._make_dense()
        self._diagonals: list[list[list[Any]]] = []  # by sum, input block, baby step
        self._present: list[bool] = []  # by sum: whether any diagonal is other than zero
        for block in range(outputs):
            rows = self._encode_block(packed[block])
            if not any(plain for step in rows for row in step for plain in row):
                rows[0][0][0] = unit(params, self.weight_scale, 0)
            self._keep(block, rows)
            progress((block + 1) / outputs)
        self._bias: dict[int, Any] = {}

    def _bound(self, norms: NDArray[np.float64]) -> float:
        """Bound the error of any entry of a result; `norms` are those of pairs of outputs."""
        plan, params = self.plan, self.plan.params
        level, scale = shortened_to(params, 0, self._scale * self.weight_scale)
        sums = (plan.giant_steps - 1) * plan.copies * plan.folds + plan.copies * plan.folds * level
        weights = rounding(params.poly_modulus_degree) * params.max_abs / self.weight_scale
        values = norms * params.max_abs + np.abs(self._shift)
        worst = norms * params.noise() + FLOAT * values
        bias = rounding(params.poly_modulus_degree) / scale
        return float(worst.max()) + weights + bias + params.after_noise(level, scale, sums)

    def _make_dense(self) -> DenseProducts | None:
        """Return where all diagonals go if sums outside SEAL are cheaper, or None."""
        plan, primes = self.plan, engine(self.plan.params).primes()
        sums = plan.output_blocks * plan.giant_steps
        terms = plan.input_blocks * plan.baby_steps
        exact = len(primes) == 1 and primes[0].bit_length() <= MAX_PRIME_BITS
        if not exact or sums < _DENSE_SUMS or terms < _DENSE_TERMS:
            return None
        return DenseProducts(primes[0], plan.params.poly_modulus_degree, sums, terms)

    def _keep(self, block: int, rows: list[list[list[Any]]]) -> None:
        """Keep a block's plaintexts, as SEAL's or as residues."""
        if self._dense is None:
            self._diagonals += rows
            return
        seal = engine(self.plan.params)
        for index, step in enumerate(rows, block * self.plan.giant_steps):
            plains = [plain for row in step for plain in row]
            self._present.append(any(plains))
            for term, plain in enumerate(plains):
                if plain is not None:
                    self._dense.put(index, term, seal.plain_residues(plain, 0)[0])

    def _encode_block(self, packed: NDArray[np.complex128]) -> list[list[list[Any]]]:
        """Encode `(m, input_blocks, n)` as plaintexts [giant][input block][baby]."""
        plan = self.plan
        entry, copy = plan.positions()
        used = copy < plan.copies
        steps = []
        for giant in range(plan.giant_steps):
            row = []
            for block in range(plan.input_blocks):
                plains = []
                for baby in range(plan.baby_steps):
                    offset = giant * plan.baby_steps + baby
                    source = (entry + copy * plan.diagonals + offset) % plan.n
                    values = np.where(used, packed[entry % plan.m, block, source], 0)
                    values = np.roll(values, giant * plan.baby_steps * plan.stride)
                    plains.append(
                        encode_weights(plan.params, values, self.weight_scale, 0, self._dither)
                    )
                row.append(plains)
            steps.append(row)
        return steps

    def apply(self, inputs: list[Any], keys: EvaluationKeys) -> list[Any]:
        """Return the result's SEAL ciphertexts for the inputs' SEAL ciphertexts."""
        plan = self.plan
        results = []
        for start in range(0, len(inputs), plan.input_blocks):
            babies = [self._babies(one, keys) for one in inputs[start : start + plan.input_blocks]]
            sums = self._sums(babies)
            results += [
                self._horner(block, list(islice(sums, plan.giant_steps)), keys)
                for block in range(plan.output_blocks)
            ]
        return results

    def _babies(self, ciphertext: Any, keys: EvaluationKeys) -> list[Any]:
        plan, seal = self.plan, engine(self.plan.params)
        rest = [
            seal.rotate(ciphertext, step * plan.stride, keys.galois)
            for step in range(1, plan.baby_steps)
        ]
        return [ciphertext, *rest]

    def _sums(self, babies: list[list[Any]]) -> Iterator[Any | None]:
        """Yield the sum of products of each block's giant steps; None where all are zero."""
        seal = engine(self.plan.params)
        if self._dense is None:
            yield from (sum_of_products(seal, babies, step) for step in self._diagonals)
            return
        inputs = np.stack([seal.residues(one, 0)[:, 0] for row in babies for one in row])
        scale = self._scale * self.weight_scale
        for residues, present in zip(self._dense(inputs), self._present, strict=True):
            yield seal.load_ciphertext(residues[:, None], b"", 0, scale) if present else None

    def _horner(self, block: int, sums: list[Any | None], keys: EvaluationKeys) -> Any:
        plan, seal = self.plan, engine(self.plan.params)
        total = None
        # Horner's rule: one step, and so one key, does for all giant steps.
        for inner in reversed(sums):
            if total is not None:
                total = seal.rotate(total, plan.baby_steps * plan.stride, keys.galois)
            if inner is None:
                continue
            # Rescaled before it is rotated: a rotation costs less with fewer primes.
            inner = shortened(plan.params, inner)
            if total is None:
                total = inner
            else:
                seal.evaluator.add_inplace(total, inner)
        self._add_bias(block, total)
        return total

    def _add_bias(self, block: int, total: Any) -> None:
        if not self._shift[block].any():
            return
        seal, plan = engine(self.plan.params), self.plan
        if block not in self._bias:
            entry, copy = plan.positions()
            # Once only: the client adds up the copies and folds.
            values = np.where((copy == 0) & (entry < plan.m), self._shift[block, entry % plan.m], 0)
            offsets = self._dither.uniform(plan.params.poly_modulus_degree) - 0.5
            values = values + slots_of(offsets) / total.scale
            self._bias[block] = seal.encode(values, total.scale, seal.level_of(total))
        seal.evaluator.add_plain_inplace(total, self._bias[block])


def sum_of_products(seal: Any, babies: list[list[Any]], rows: list[list[Any]]) -> Any | None:
    """Return the sum of ciphertext times plaintext over all pairs, or None where all are zero."""
    total = None
    product = seal.api.Ciphertext()
    for ciphertexts, plains in zip(babies, rows, strict=True):
        for ciphertext, plain in zip(ciphertexts, plains, strict=True):
            if plain is None:
                continue
            if total is None:
                total = seal.api.Ciphertext()
                seal.evaluator.multiply_plain(ciphertext, plain, total)
            else:
                seal.evaluator.multiply_plain(ciphertext, plain, product)
                seal.evaluator.add_inplace(total, product)
    return total


def shortened(params: HEParams, ciphertext: Any) -> Any:
    """Rescale while the scale stays at the inputs' or above: fewer primes to send back."""
    seal = engine(params)
    level = seal.level_of(ciphertext)
    end, _ = shortened_to(params, level, ciphertext.scale)
    for _ in range(level, end):
        seal.evaluator.rescale_to_next_inplace(ciphertext)
    return ciphertext


def shortened_to(params: HEParams, level: int, scale: float) -> tuple[int, float]:
    """Return level and scale that `shortened` ends at."""
    seal = engine(params)
    while level < params.depth and scale / seal.primes(level)[-1] >= 2.0**params.scale_bits:
        scale /= seal.primes(level)[-1]
        level += 1
    return level, scale
