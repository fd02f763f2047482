"""Integer noise of any width, with every bit drawn: what hides an exact integer.

The sum of four uniform integers on [0, R) is bell-shaped, has no last bit that is not noise, and is
drawn exactly from random bits. Shifting it by an integer vector D changes its distribution by at
most `SHIFT * |D| / R` in total variation, |D| the Euclidean norm:

    H^2(f, f + D) <= sum_j H^2(f_j, f_j + D_j) <= |D|^2 sum_x (sqrt p(x + 1) - sqrt p(x))^2

by subadditivity of the squared Hellinger distance over independent coordinates and the triangle
inequality over unit shifts, with H^2 = sum (sqrt p - sqrt q)^2 >= TV^2. The last sum times R^2
falls to 0.7789, a quarter of the Fisher information of the Irwin-Hall law of four, as R grows:
`SHIFT^2` is above it from R = 256 on.
"""

import numpy as np
from numpy.typing import NDArray

from secure.errors import ParameterError
from secure.random import SecureRandom

TERMS = 4
SHIFT = 0.8827
_HIGH_BITS = 17
_LEAST_WIDTH = 256


def flood(random: SecureRandom, count: int, width: int) -> NDArray[np.object_]:
    """Draw noise.

    Args:
        random: Where the bits come from.
        count: Number of draws.
        width: R, at least 256; rounded up by less than a part in 2^16.

    Returns:
        Shape `(count,)`, Python integers in [-2R, 2R], of standard deviation R / sqrt(3).
    """
    if width < _LEAST_WIDTH:
        raise ParameterError(f"the width must be at least {_LEAST_WIDTH}, got {width}")
    low_bits = max(width.bit_length() - _HIGH_BITS, 0) // 32 * 32
    high = -(-width >> low_bits)
    total = np.full(count, -2 * ((high << low_bits) - 1), dtype=object)
    for _ in range(TERMS):
        total += random.below(high, count).astype(object) << low_bits
        for position in range(0, low_bits, 32):
            word = random.below(1 << 32, count).astype(object)
            total += word << position
    return total
