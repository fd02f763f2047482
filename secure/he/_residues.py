"""The residue layout on the server: one exact integer product on all residues at once."""

import math

import numpy as np
from numpy.typing import NDArray

from secure.he._bounds import FLOAT, rounding
from secure.he._rotations import weight_bits
from secure.he._seal import engine
from secure.he.ciphertext import Piece
from secure.he.errors import RangeError
from secure.he.residue_plan import ResiduePlan

_LIMB_BITS = 27
_EXACT_BITS = 53  # integers up to 2^53 are exact in float64
_MAX_WIDTH = 2048  # wider inputs are summed in parts, so that weights keep 15 bits
_COLUMNS = 512
_LIMB_MASK = np.uint64((1 << _LIMB_BITS) - 1)


class ResidueLayer:
    """Integer weights of one layer, for the residue layout.

    The weights are rounded to integers, and their scale goes into the scale of the result. Wide
    layers have few bits in one exact float64 product; where rounding to them would err by more
    than the parameters allow, the integers are cut into digits, with a product each.

    Args:
        plan: The layout.
        weight: Shape `(out_features, in_features)`.
        bias: Shape `(out_features,)`, or None.

    Attributes:
        error: Bound on the error of an entry, for any input of norm up to `max_abs`.
    """

    def __init__(
        self,
        plan: ResiduePlan,
        weight: NDArray[np.float64],
        bias: NDArray[np.float64] | None,
    ) -> None:
        self.plan = plan
        params = plan.params
        self._bias = np.zeros(plan.out_features) if bias is None else bias
        norms = np.linalg.norm(weight, axis=1)
        # Two tokens share a slot.
        reach = norms * (params.max_abs + math.sqrt(2) * params.noise()) + abs(self._bias)
        largest = math.sqrt(2) * float(np.maximum(reach, 2 * abs(self._bias)).max())
        peak = float(np.abs(weight).max()) or 1.0
        room = weight_bits(params, largest, 0, 2.0**params.scale_bits, peak)
        self._digit_bits = _EXACT_BITS - _LIMB_BITS - _width_bits(plan.in_features)
        allowed = rounding(params.poly_modulus_degree) * max(float(norms.max()), 1.0) * 2.0**-room
        digits = 1
        while True:
            factor = min(2.0 ** (digits * self._digit_bits) / peak, 2.0**room)
            integers = np.rint(weight * factor)
            # A ciphertext has a second polynomial: a row of zeros gets the smallest weight.
            integers[~integers.any(axis=1), 0] = 1.0
            # Of the weights as they are rounded, not of any: for every input, a bound.
            rounded = np.linalg.norm(integers / factor - weight, axis=1)
            if rounded.max() <= allowed or factor == 2.0**room:
                break
            digits += 1
        self.weight_scale = factor
        self._digits = _digits(integers, self._digit_bits)
        noise = np.linalg.norm(integers / factor, axis=1) * params.noise()
        values = norms * params.max_abs + abs(self._bias)
        # The bias is encoded with an error of half a unit, and the result's scale is far above it.
        error = noise + rounded * params.max_abs + 4 * FLOAT * values
        self.error = float(error.max()) + 1 / (2.0**params.scale_bits * factor)
        if rounded.max() > allowed:
            raise RangeError(
                f"{plan.in_features} weights of {room:.0f} bits in a row err by "
                f"{rounded.max():.1e}: choose parameters with a longer modulus"
            )

    def apply(self, pieces: tuple[Piece, ...]) -> tuple[Piece, ...]:
        """Return the result's ciphertexts for the input's."""
        return self.pack(self.multiply(self.residues(pieces)))

    def residues(self, pieces: tuple[Piece, ...]) -> NDArray[np.uint64]:
        """Return the input's residues, seeds expanded: `(blocks, in_features, 2, primes, N)`."""
        plan, seal = self.plan, engine(self.plan.params)
        scale = 2.0**plan.params.scale_bits
        full = np.empty(
            (len(pieces), 2, len(seal.primes()), plan.params.poly_modulus_degree), dtype=np.uint64
        )
        for out, piece in zip(full, pieces, strict=True):
            if piece.seed:
                loaded = seal.load_ciphertext(piece.residues, piece.seed, 0, scale)
                out[:] = seal.residues(loaded, 0)
            else:
                out[:] = piece.residues
        return full.reshape(plan.token_blocks, plan.in_features, *full.shape[1:])

    def multiply(self, residues: NDArray[np.uint64]) -> NDArray[np.uint64]:
        """Return `(blocks, out_features, 2, primes, N)`: the layer on all residues."""
        plan, primes = self.plan, engine(self.plan.params).primes()
        shape = (plan.token_blocks, plan.out_features, *residues.shape[2:])
        out = np.empty(shape, dtype=np.uint64)
        for block in range(plan.token_blocks):
            for index, prime in enumerate(primes):
                matrix = residues[block, :, :, index].reshape(plan.in_features, -1)
                product = self._product(matrix, prime)
                out[block, :, :, index] = product.reshape(plan.out_features, 2, -1)
        return out

    def _product(self, matrix: NDArray[np.uint64], prime: int) -> NDArray[np.uint64]:
        total = matmul_mod(self._digits[0], matrix, prime)
        for digit in self._digits[1:]:
            shifted = total.view(np.int64)
            _reduce(shifted, np.zeros(1), prime, self._digit_bits)
            total = (total + matmul_mod(digit, matrix, prime)) % np.uint64(prime)
        return total

    def pack(self, product: NDArray[np.uint64]) -> tuple[Piece, ...]:
        """Add the bias, and return the ciphertexts of the result."""
        plan, seal = self.plan, engine(self.plan.params)
        if self._bias.any():
            scale = 2.0**plan.params.scale_bits * self.weight_scale
            primes = np.array(seal.primes(), dtype=np.uint64)[:, None]
            for feature, shift in enumerate(self._bias):
                slots = np.full(plan.params.slots, complex(shift, shift))
                plain = seal.plain_residues(seal.encode(slots, scale), 0)
                product[:, feature, 0] = (product[:, feature, 0] + plain) % primes
        flat = product.reshape(-1, *product.shape[2:])
        return tuple(Piece(one) for one in flat)


def _width_bits(in_features: int) -> int:
    return math.ceil(math.log2(min(in_features, _MAX_WIDTH)))


def _digits(integers: NDArray[np.float64], bits: int) -> list[NDArray[np.float64]]:
    """Cut integers into digits of at most `2^bits` in size, the highest first."""
    found = []
    while np.abs(integers).max() > 2.0**bits:
        higher = np.rint(integers * 2.0**-bits)
        found.append(integers - higher * 2.0**bits)
        integers = higher
    return [integers, *reversed(found)]


def matmul_mod(
    integers: NDArray[np.float64], residues: NDArray[np.uint64], prime: int
) -> NDArray[np.uint64]:
    """Multiply an integer matrix by residues, exactly, modulo a prime.

    Each residue is cut into limbs of 27 bits, small enough for a float64 product to be exact;
    the limbs are put together in 64-bit arithmetic that wraps, with the quotient by the prime
    estimated in floating point and corrected by one at most.

    Args:
        integers: Shape `(m, n)`, integer-valued, at most `2^(26 - log2 min(n, 2048))` in size.
        residues: Shape `(n, k)`, each below `prime`.
        prime: Below 2^61.

    Returns:
        Shape `(m, k)`, each below `prime`.
    """
    total = None
    for start in range(0, residues.shape[0], _MAX_WIDTH):
        part = slice(start, start + _MAX_WIDTH)
        product = _matmul_mod_part(integers[:, part], residues[part], prime)
        total = product if total is None else (total + product) % np.uint64(prime)
    assert total is not None  # noqa: S101  # residues have at least one row
    return total


def _matmul_mod_part(
    integers: NDArray[np.float64], residues: NDArray[np.uint64], prime: int
) -> NDArray[np.uint64]:
    limbs = -(-prime.bit_length() // _LIMB_BITS)
    out = np.empty((integers.shape[0], residues.shape[1]), dtype=np.int64)
    # Columns by the block: what is put together stays in the cache.
    for start in range(0, residues.shape[1], _COLUMNS):
        block = residues[:, start : start + _COLUMNS]
        total = np.zeros((integers.shape[0], block.shape[1]), dtype=np.int64)
        for index in reversed(range(limbs)):
            limb = (block >> np.uint64(_LIMB_BITS * index)) & _LIMB_MASK
            _reduce(total, integers @ limb.astype(np.float64), prime)
        out[:, start : start + _COLUMNS] = total
    return out.view(np.uint64)


def _reduce(
    total: NDArray[np.int64], low: NDArray[np.float64], prime: int, bits: int = _LIMB_BITS
) -> None:
    """Set `total`, in [0, prime), to `(total * 2^bits + low) mod prime`.

    Exact for `bits` up to 27 and `|low| <= 2^53`.
    """
    quotient = total * float(1 << bits)
    quotient += low
    quotient *= 1.0 / prime
    np.floor(quotient, out=quotient)
    # The true remainder is small, so arithmetic that wraps modulo 2^64 gives it exactly.
    total <<= bits
    total += low.astype(np.int64)
    total -= quotient.astype(np.int64) * prime
    total += (total >> 63) & prime
    total -= prime
    total += (total >> 63) & prime
