"""Stochastic rounding onto levels, in fixed point: unbiased, and every level kept exactly."""

import math

import numpy as np
from numpy.typing import NDArray

from secure.errors import ParameterError
from secure.random import SecureRandom

# A double in [2^52, 2^53) is 2^52 plus an integer, which stands in its low 52 bits: adding 2^52
# rounds to integers and converts them in one step.
_TO_INTEGER = float(1 << 52)
_EXPONENT = 0x433 << 52
_MAX_POINT = 32
_BLOCK = 1 << 14


def norm_at_most(vector: NDArray[np.floating]) -> float:
    """Return a number that the L2 norm of a vector doesn't exceed, within 1e-9 of it; or NaN, inf.

    Products of one sign, added in float64 by blocks of 2^14 and then 2^16 such sums, are within
    (2^14 + 2^16)·2^-53 < 1e-11 of their sum (Higham 2002, section 4.2): the 1e-10 covers them for
    up to 2^30 values.
    """
    buffer = np.empty(min(_BLOCK, len(vector)))
    total = 0.0
    for start in range(0, len(vector), _BLOCK):
        block = vector[start : start + _BLOCK]
        wide = np.multiply(block, 1.0, out=buffer[: len(block)], dtype=np.float64)
        total += float(np.dot(wide, wide))
    # What squares below the smallest number is lost: 2^30 values of 2^-537 have a norm of 2^-522.
    return math.sqrt(total) * (1 + 1e-10) + 2.0**-522


class Rounding:
    """Rounds `scale * x` in [−bound, bound] at random onto `levels` levels; reuses its buffer.

    Args:
        bound: Largest magnitude, positive.
        levels: Number of levels, from 2 to 2^31.
        scale: Factor applied in float64 before rounding.
        norm: Number that the L2 norm of all that is rounded doesn't exceed; where it keeps every
            value inside the bound, pieces need no check of their own.

    Attributes:
        base: What the exponent of a double leaves in every level, to be taken off in the end.
    """

    def __init__(self, bound: float, levels: int, scale: float, norm: float = math.inf) -> None:
        # Fixed point within 52 bits: 32 after the point, or what the levels leave.
        self._point = min(_MAX_POINT, 51 - (levels - 1).bit_length())
        self._top = (levels - 1) * 2.0**self._point
        self._unit = scale * (self._top / (2 * bound))
        self._bound = bound
        self.base = _EXPONENT >> self._point
        self._inside = norm * abs(scale) <= bound
        self._buffer = np.empty(0)

    def draw(self, count: int, rng: SecureRandom) -> NDArray[np.uint32]:
        """Return the random bits for `count` values."""
        drawn = rng.words((count + 1) // 2).view(np.uint32)
        if self._point < _MAX_POINT:
            drawn >>= np.uint32(_MAX_POINT - self._point)
        return drawn

    def levels(self, piece: NDArray[np.floating], drawn: NDArray[np.uint32]) -> NDArray[np.int64]:
        """Return a piece's levels plus `base`; the buffer that they stand in is used again.

        Raises:
            ParameterError: A value is not finite or beyond the bound.
        """
        count = len(piece)
        if count > len(self._buffer):
            self._buffer = np.empty(count)
        y = np.multiply(piece, self._unit, out=self._buffer[:count], dtype=np.float64)
        if not self._inside and count:
            self._check(y)
        y += self._top / 2 + _TO_INTEGER
        fixed = y.view(np.int64)
        fixed += drawn[:count]
        fixed >>= self._point
        return fixed

    def _check(self, y: NDArray[np.float64]) -> None:
        low, high, half = float(y.min()), float(y.max()), self._top / 2
        # The clip leaves a norm a rounding error above its target; that much is no overstep.
        # Written so that a NaN fails the comparison too.
        if not (low >= -half * (1 + 2e-6) and high <= half * (1 + 2e-6)):
            raise ParameterError(
                f"the update has a value that is not finite or beyond ±{self._bound:g}; "
                "clip it, or raise the plan's bound"
            )
        if low < -half or high > half:
            np.clip(y, -half, half, out=y)
