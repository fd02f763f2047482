"""Trigonometric series that stand for GELU, tanh and exp: fitted here, never copied from a table.

A function f on [−R, R] is written as

    f(x) ≈ slope · x + Σ_{k=0..K} c_k cos(2πkx/P) + s_k sin(2πkx/P),   P > 2R a power of two,

by least squares. The period P makes the argument a residue modulo P: opened minus a uniform
residue, it says nothing about x, and one opening evaluates every harmonic.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray
from scipy.linalg import lstsq
from scipy.special import ndtr

from secure.errors import ParameterError
from secure.smpc.errors import CalibrationError

Array = NDArray[np.float64]
_GRID = 801
# Large coefficients that cancel would drown in the fixed point: a little ridge avoids them.
_RIDGES = (1e-16, 1e-12, 1e-9)
_RANK = 1e-15
MAX_RADIUS = 64.0
_MAX_HARMONICS = 160
_WIDE = 12.0


def gelu(x: Array) -> Array:
    """GELU, x·Φ(x)."""
    return x * ndtr(x)


def gelu_tanh(x: Array) -> Array:
    """GELU in its tanh form."""
    return 0.5 * x * (1 + np.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3)))


def quick_gelu(x: Array) -> Array:
    """QuickGELU of OpenAI's CLIP, x·sigmoid(1.702x)."""
    return x / (1 + np.exp(-1.702 * x))


FUNCTIONS: dict[str, tuple[Callable[[Array], Array], float, str]] = {
    # name: (function, slope of the part taken out, parity of the rest)
    "gelu": (gelu, 0.5, "even"),
    "gelu_tanh": (gelu_tanh, 0.5, "even"),
    "quick_gelu": (quick_gelu, 0.5, "even"),
    "tanh": (np.tanh, 0.0, "odd"),
    "exp": (np.exp, 0.0, "both"),
}


#: Fraction bits of the shared harmonics and of the public coefficients. The result has twice as
#: many: 36 leave room for a product with weights; those of exp are cut down at once.
PRECISION_BITS = {"gelu": 18, "gelu_tanh": 18, "quick_gelu": 18, "tanh": 18, "exp": 22}


@dataclass(frozen=True)
class Series:
    """A public trigonometric series.

    Attributes:
        function: Name in `FUNCTIONS`.
        radius: It holds on [−radius, radius]; outside it is bounded but wrong.
        period_bits: The period is 2^period_bits.
        slope: Coefficient of x beside the series: 0 or 0.5.
        cosines: c_0 … c_K.
        sines: s_1 … s_K (zeros for an even function).
        max_error: Largest absolute error found on [−radius, radius] (relative to max(1, f) for
            exp), rounding of the fixed point included.
    """

    function: str
    radius: float
    period_bits: int
    slope: float
    cosines: tuple[float, ...]
    sines: tuple[float, ...]
    max_error: float

    @property
    def harmonics(self) -> int:
        """Number K of harmonics above the constant."""
        return len(self.cosines) - 1

    def evaluate(self, x: Array) -> Array:
        """Return the series at `x` in float64: the plaintext twin of the protocol."""
        angle = 2 * math.pi * np.multiply.outer(x, np.arange(self.harmonics + 1))
        angle /= 2.0**self.period_bits
        return (
            self.slope * x
            + np.cos(angle) @ np.array(self.cosines)
            + np.sin(angle) @ np.array((0.0, *self.sines))
        )


def _weight(name: str, x: Array) -> Array:
    """Weight of an error at x: absolute, but relative where exp is over 1."""
    return 1 / np.maximum(1.0, np.exp(x)) if name == "exp" else np.ones_like(x)


def _basis(x: Array, count: int, period_bits: int, parity: str) -> Array:
    angle = 2 * math.pi * np.multiply.outer(x, np.arange(count + 1)) / 2.0**period_bits
    parts = []
    if parity != "odd":
        parts.append(np.cos(angle))
    if parity != "even":
        parts.append(np.sin(angle[:, 1:]))
    return np.concatenate(parts, axis=1)


def _fit_once(name: str, radius: float, period_bits: int, count: int, ridge: float) -> Series:
    function, slope, parity = FUNCTIONS[name]
    x = radius * np.cos(np.linspace(0, math.pi, _GRID))
    target = function(x) - slope * x
    weight = _weight(name, x)
    basis = _basis(x, count, period_bits, parity)
    penalty = math.sqrt(ridge * _GRID) * np.eye(basis.shape[1])
    rows = np.concatenate([basis * weight[:, None], penalty])
    right = np.concatenate([target * weight, np.zeros(basis.shape[1])])
    found: Array = lstsq(rows, right, cond=_RANK, lapack_driver="gelsy", check_finite=False)[0]  # pyright: ignore
    cosines = found[: count + 1] if parity != "odd" else np.zeros(count + 1)
    sines = found[-count:] if parity != "even" else np.zeros(count)
    series = Series(
        name, radius, period_bits, slope, tuple(cosines.tolist()), tuple(sines.tolist()), 0.0
    )
    check = np.linspace(-radius, radius, 2 * _GRID + 1)
    fitted = np.abs(series.evaluate(check) - function(check)) * _weight(name, check)
    # Rounding of the shared harmonics and of the public coefficients, at their worst.
    ulp = 2.0 ** -(PRECISION_BITS[name] + 1)
    rounding = ulp * (np.abs(found).sum() + 2 * len(found))
    return replace(series, max_error=float(fitted.max() + rounding))


@lru_cache(maxsize=256)
def fit(name: str, radius: float, tolerance: float) -> Series:
    """Fit the cheapest series for a function on [−radius, radius].

    Args:
        name: `gelu`, `gelu_tanh`, `quick_gelu`, `tanh` or `exp`.
        radius: Half-width of the range, over 0 and at most 128.
        tolerance: Largest error allowed on the range (for exp: relative to max(1, f)), fixed-point
            rounding of the coefficients included.

    Returns:
        The fit with the fewest harmonics (from radius 12 on: to a tenth) whose error, looked for
        on a grid of its own, is within the tolerance.

    Raises:
        ParameterError: Unknown function or radius out of range.
        CalibrationError: 160 harmonics don't reach the tolerance.

    Example:
        >>> fit("gelu", 6.0, 5e-4).harmonics
        8
    """
    if name not in FUNCTIONS:
        raise ParameterError(f"no series for {name!r}; known: {', '.join(sorted(FUNCTIONS))}")
    if not 0 < radius <= MAX_RADIUS:
        raise ParameterError(f"the radius of a series is in (0, {MAX_RADIUS}], got {radius}")
    smallest = math.ceil(math.log2(2 * radius * 1.02))
    # On a wide range a series can't follow a bend of width 1 with fewer, and the search takes
    # longer steps.
    count = 2 if radius < _WIDE or tolerance > 2e-3 else int(0.8 * radius)
    while count <= _MAX_HARMONICS:
        for period_bits in (smallest, smallest + 1):
            for ridge in _RIDGES:
                series = _fit_once(name, radius, period_bits, count, ridge)
                if series.max_error <= tolerance:
                    return series
        count += 1 if radius < _WIDE else max(1, count // 10)
    raise CalibrationError(
        f"no series of {_MAX_HARMONICS} harmonics gives {name} on ±{radius} to {tolerance:.2g}"
    )
