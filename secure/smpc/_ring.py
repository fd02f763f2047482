"""The ring Z/2^64 and its fixed point: CrypTen's sharing, with rounding done right.

A share is an int64 tensor; two shares add up, modulo 2^64, to `round(x · 2^bits)`. That is the
sharing of CrypTen's `ArithmeticSharedTensor` (16 bits by default), so a share can be handed to
CrypTen and back as it is.
"""

import math

import torch
from torch import Tensor

from secure.errors import ParameterError

WORD_BITS = 64
#: Values of the fixed point stay under 2^61, which leaves every protocol its headroom of 2^62.
LIMIT_BITS = 61
#: Below this many multiplications, integer matmul beats splitting into floats.
_SMALL_MATMUL = 1 << 14
_EXACT_BITS = 53


def encode(value: Tensor, bits: int) -> Tensor:
    """Return `round(value · 2^bits)` as int64.

    Args:
        value: Any real dtype and shape; finite, with |value| · 2^bits < 2^61.
        bits: Fraction bits, 0 to 60.

    Returns:
        int64 tensor of the same shape, rounded to the nearest integer (CrypTen's encoder cuts).

    Raises:
        ParameterError: A value is not finite or too large.

    Example:
        >>> encode(torch.tensor([-1.00001, 0.5]), 16).tolist()
        [-65537, 32768]
    """
    if value.is_meta:
        return value.to(torch.int64)
    scaled = value.to(torch.float64) * float(1 << bits)
    if scaled.numel() and not bool((scaled.abs() < 2.0**LIMIT_BITS).all()):
        raise ParameterError(f"a value is not finite or has no fixed point with {bits} bits")
    return scaled.round().to(torch.int64)


def decode(value: Tensor, bits: int) -> Tensor:
    """Return `value / 2^bits` as float64: exact up to float64's own rounding."""
    return value.to(torch.float64) / float(1 << bits)


def shift_right(value: Tensor, bits: int) -> Tensor:
    """Shift int64 words right with zeros coming in (torch's own shift keeps the sign)."""
    if bits == 0:
        return value
    return (value >> bits) & ((1 << (WORD_BITS - bits)) - 1)


def low_bits(value: Tensor, bits: int) -> Tensor:
    """Return `value mod 2^bits`, between 0 and 2^bits − 1 (the word itself when bits is 64)."""
    return value if bits == WORD_BITS else value & ((1 << bits) - 1)


def magnitude_bits(value: float) -> int:
    """Return the smallest m with |value| <= 2^m (m may be negative; −60 for zero)."""
    return -60 if value <= 2.0**-60 else math.ceil(math.log2(value))


def _limbs(value: Tensor, width: int, count: int) -> list[Tensor]:
    """Split int64 words into `count` unsigned digits of `width` bits, as float64."""
    mask = (1 << width) - 1
    return [(shift_right(value, width * i) & mask).to(torch.float64) for i in range(count)]


def matmul(x: Tensor, y: Tensor) -> Tensor:
    """Multiply int64 matrices modulo 2^64, exactly, at the speed of float64 products.

    Both operands are split into digits so small that each float64 product sums without rounding.

    Args:
        x: int64, shape `(..., n, k)`.
        y: int64, shape `(..., k, m)` with the same leading shape, or `(k, m)`.

    Returns:
        int64 of shape `(..., n, m)`.
    """
    if x.is_meta or x.shape[-2] * x.shape[-1] * y.shape[-1] < _SMALL_MATMUL:
        return x @ y
    # Unsigned digits: k · 2^(2w) <= 2^53 keeps each sum exact.
    width = (_EXACT_BITS - math.ceil(math.log2(x.shape[-1]))) // 2
    count = -(-WORD_BITS // width)
    left, right = _limbs(x, width, count), _limbs(y, width, count)
    total = torch.zeros((*x.shape[:-1], y.shape[-1]), dtype=torch.int64)
    for j, digit in enumerate(right):
        # Digits whose weight reaches 2^64 vanish; the others share one product, stacked.
        kept = [i for i in range(count) if width * (i + j) < WORD_BITS]
        products = torch.stack([left[i] for i in kept]) @ digit
        for i, product in zip(kept, products.to(torch.int64), strict=True):
            total += product << (width * (i + j))
    return total


class SmallMatrix:
    """An int64 matrix of small entries, kept as float64 to multiply full words quickly.

    The model owner's weights have 20 bits or so; splitting only the other operand makes an exact
    product cost three float64 products.

    Args:
        entries: int64, shape `(k, m)`, |entries| < 2^40.
    """

    def __init__(self, entries: Tensor) -> None:
        self.shape = entries.shape
        self._meta = entries.is_meta
        largest = 1 if self._meta or not entries.numel() else max(1, int(entries.abs().max()))
        slack = largest.bit_length() + math.ceil(math.log2(max(2, entries.shape[0])))
        self._width = _EXACT_BITS - slack
        if self._width < 1:
            raise ParameterError("a weight is too large for its fixed point")
        self._entries = entries if self._meta else entries.to(torch.float64)

    def rmatmul(self, x: Tensor) -> Tensor:
        """Return `x @ self` modulo 2^64 for int64 `x` of shape `(..., k)`."""
        if self._meta:
            return x @ self._entries
        count = -(-WORD_BITS // self._width)
        flat = x.reshape(-1, x.shape[-1])
        digits = torch.cat(_limbs(flat, self._width, count))
        products = (digits @ self._entries).to(torch.int64).view(count, flat.shape[0], -1)
        total = products[0].clone()
        for i in range(1, count):
            total += products[i] << (self._width * i)
        return total.view(*x.shape[:-1], -1)
