"""Public tables: piecewise quadratics for 1/√v, 1/s, 1/s², and the circle.

Each party multiplies its share by the same public number, so the two must compute it to the last
bit: a difference of one unit, times a uniform share, is noise. Everything here is therefore made
of operations that IEEE 754 rounds correctly (+, −, ×, ÷, √), one at a time; the sine table alone
asks the platform's library, and its fingerprint is compared before an inference.
"""

import hashlib
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from secure.errors import ParameterError

#: Bits of the argument below the table's index: the quadratic's variable.
LOW_BITS = 12
#: Fraction bits of an interpolated value, relative to the table's largest.
VALUE_BITS = 44
#: A residue that is opened for a series has this many bits: three bytes.
ANGLE_BITS = 24
_CIRCLE_BITS = 11
_CIRCLE_SCALE = 2.0**40


@dataclass(frozen=True)
class Table:
    """A public function on [0, 2^top_bits), tabulated at 2^index_bits nodes.

    Attributes:
        kind: `rsqrt` (1/√(v/divisor + offset)), `inverse` (1/v) or `inverse_square` (1/v²).
        top_bits: The argument stays under 2^top_bits.
        index_bits: Number of bits of the index.
        floor: Smallest argument that it's right for; below it the value at the floor is given.
        scale_bits: Values are at most 2^scale_bits.
        divisor: For `rsqrt`.
        offset: For `rsqrt`: LayerNorm's epsilon.
    """

    kind: str
    top_bits: int
    index_bits: int
    floor: float
    scale_bits: int
    divisor: float = 1.0
    offset: float = 0.0

    def function(self, argument: NDArray[Any]) -> NDArray[np.float64]:
        """Return the tabulated function in float64."""
        clipped = np.maximum(argument, self.floor)
        if self.kind == "rsqrt":
            return 1.0 / np.sqrt(clipped / self.divisor + self.offset)
        if self.kind == "inverse":
            return 1.0 / clipped
        if self.kind == "inverse_square":
            return 1.0 / (clipped * clipped)
        raise ParameterError(f"unknown table {self.kind!r}")

    @property
    def step(self) -> float:
        """Distance of two nodes."""
        return 2.0 ** (self.top_bits - self.index_bits)


@lru_cache(maxsize=128)
def constants(table: Table, bits: int) -> Tensor:
    """Return the table's values at its nodes, int64 with `bits` fraction bits: `(2^index_bits,)`.

    The index that a truncation delivers may be one too high, so a node stands for the interval
    on both its sides.
    """
    nodes = np.arange(1 << table.index_bits) * table.step
    return torch.from_numpy(np.rint(table.function(nodes) * 2.0**bits).astype(np.int64))


@lru_cache(maxsize=128)
def quadratics(table: Table) -> Tensor:
    """Return integer coefficients of the interpolation: int64, shape `(3, 2^index_bits)`.

    With `low` the argument minus its node in units of step · 2^−LOW_BITS, between −2^LOW_BITS and
    2^LOW_BITS, the value is (t0 + t1·low + t2·low²) · 2^(scale_bits − VALUE_BITS). The quadratic
    meets the function at three Chebyshev points of that interval.
    """
    nodes = np.arange(1 << table.index_bits) * table.step
    far = np.sqrt(3.0) / 2.0
    reach = far * table.step
    middle = table.function(nodes)
    above, below = table.function(nodes + reach), table.function(nodes - reach)
    first = (above - below) / (2.0 * far)
    second = (above + below - 2.0 * middle) / (2.0 * far * far)
    unit = 2.0 ** (VALUE_BITS - table.scale_bits)
    rows = [
        middle * unit,
        first * unit / 2.0**LOW_BITS,
        second * unit / 2.0 ** (2 * LOW_BITS),
    ]
    return torch.from_numpy(np.rint(np.stack(rows)).astype(np.int64))


@lru_cache(maxsize=8)
def _circle(bits: int) -> tuple[Tensor, ...]:
    """Return cos and sin of the high and of the low part of a `bits`-bit angle."""
    high = np.arange(1 << min(bits, _CIRCLE_BITS)) / 2.0 ** min(bits, _CIRCLE_BITS)
    low = np.arange(1 << max(0, bits - _CIRCLE_BITS)) / 2.0**bits
    parts = []
    for turns in (high, low):
        for wave in (np.cos, np.sin):
            exact = np.rint(wave(2.0 * np.pi * turns) * _CIRCLE_SCALE) / _CIRCLE_SCALE
            parts.append(torch.from_numpy(exact))
    return tuple(parts)


def rotate(residue: Tensor, bits: int) -> tuple[Tensor, Tensor]:
    """Return cos and sin of 2π · residue / 2^bits in float64, the same on every machine.

    Args:
        residue: int64 in [0, 2^bits).
        bits: Bits of a full turn, at most 30.
    """
    if residue.is_meta:
        return residue.to(torch.float64), residue.to(torch.float64)
    low_bits = max(0, bits - _CIRCLE_BITS)
    cos_high, sin_high, cos_low, sin_low = _circle(bits)
    high, low = residue >> low_bits, residue & ((1 << low_bits) - 1)
    ch, sh, cl, sl = cos_high[high], sin_high[high], cos_low[low], sin_low[low]
    return ch * cl - sh * sl, sh * cl + ch * sl


@lru_cache(maxsize=1)
def fingerprint() -> str:
    """Return a SHA-256 of this machine's public tables; both parties' must agree."""
    digest = hashlib.sha256()
    for part in _circle(ANGLE_BITS):
        digest.update(part.numpy().tobytes())
    probe = Table("rsqrt", 3, 8, 0.05, 3, divisor=7.0, offset=1e-5)
    digest.update(quadratics(probe).numpy().tobytes())
    return digest.hexdigest()
