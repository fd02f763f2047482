"""From the calibration's extremes to the parameters of a protocol, or to an error with the path.

Each protocol is right in a range; the calibration says which range it needs, with a margin.
"""

import math

import torch
from torch import Tensor

from secure.smpc import _ring, _tables
from secure.smpc._attention import MAX_KEYS, SoftmaxParameters
from secure.smpc._norm import NormParameters
from secure.smpc._series import MAX_RADIUS, Series, fit
from secure.smpc.errors import CalibrationError

#: How far beyond the calibration's extremes a value may go.
MARGIN = 1.25
_VARIANCE_MARGIN = 4.0
_ACTIVATION_TOLERANCE = 3e-4
_EXP_TOLERANCE = 2e-5
_EXP_RADIUS = 3.0
_MAX_SQUARINGS = 6
_MAX_INDEX_BITS = 14
_GAIN_BITS = 11
_PADDING_GAP = 14
_SCALE_BITS = 18
_NORM_BITS = 34


def activation_series(path: str, sample: Tensor, function: str) -> Series:
    """Fit an activation's series on the range of its calibration."""
    largest = float(sample.abs().max()) * MARGIN
    radius = max(1.0, math.ceil(largest * 2) / 2)
    if radius > MAX_RADIUS:
        raise CalibrationError(
            f"{path}: {function} of {largest:.3g} (margin included) is beyond ±{MAX_RADIUS:g}"
        )
    return fit(function, radius, _ACTIVATION_TOLERANCE)


def softmax_parameters(
    path: str, scores: Tensor, values: Tensor, causal: bool, padded: bool = False
) -> SoftmaxParameters:
    """Fix a softmax's series and bits from the scores and values of the calibration."""
    queries, keys = scores.shape[-2:]
    if keys > MAX_KEYS:
        raise CalibrationError(f"{path}: {keys} tokens; attention here takes at most {MAX_KEYS}")
    seen = torch.ones(queries, keys, dtype=torch.float64)
    if causal:
        seen = seen.tril()
    mean = (scores * seen).sum(-1, keepdim=True) / seen.sum(-1, keepdim=True)
    reach = float(((scores - mean) * seen).abs().max()) * MARGIN
    # A padded key comes to weigh e^−14 of the best at most, however many keys are padded.
    padding = math.ceil(2 * reach) + _PADDING_GAP if padded else 0
    reach += padding
    squarings = max(1, math.ceil(math.log2(max(reach, 1e-9) / _EXP_RADIUS)))
    if squarings > _MAX_SQUARINGS:
        raise CalibrationError(f"{path}: attention scores spread over ±{reach:.3g}, beyond ±192")
    radius = max(0.25, math.ceil(reach / 2**squarings * 4) / 4)
    series = fit("exp", radius, _EXP_TOLERANCE)
    top_bits = math.ceil(radius / math.log(2))
    room = _ring.LIMIT_BITS - 1 - 38 - _ring.magnitude_bits(float(values.abs().max()) * 2 * MARGIN)
    if room < 8:
        raise CalibrationError(f"{path}: attention values are too large for the ring")
    return SoftmaxParameters(keys, causal, squarings, series, top_bits, min(15, room), padding)


def _index_bits(least: float, top_bits: int, floor: float) -> int:
    """Return the bits of a table whose nodes are an eighth of the least argument apart.

    Below `floor` (what epsilon drowns) there's nothing to resolve.
    """
    return max(6, top_bits - math.floor(math.log2(max(least, floor) / 8)))


def _token_gains(squares: Tensor) -> tuple[int, ...]:
    """Return per token the power of two that brings its variances near the largest."""
    highest = squares.amax(dim=(0, *range(2, squares.dim()))).clamp(min=1e-12)
    gains = (0.5 * torch.log2(highest.max() / highest)).floor()
    return tuple(int(each) for each in gains)


def norm_parameters(
    path: str, width: int, centred: bool, squares: Tensor, divisor: float, offset: float
) -> NormParameters:
    """Fix a normalisation's table and bits from the sums of squares of the calibration.

    Args:
        path: Path of the module.
        width: Number of features.
        centred: Whether the mean is taken out.
        squares: Shape `(batch, ..., 1)`.
        divisor: What the sum is divided by.
        offset: What is added to the quotient.
    """
    top_bits = _ring.magnitude_bits(float(squares.max()) * _VARIANCE_MARGIN)
    least = max(float(squares.min()), 1e-12) / _VARIANCE_MARGIN
    index_bits = _index_bits(least, top_bits, divisor * offset)
    gains: tuple[int, ...] = ()
    if index_bits > _GAIN_BITS and centred and squares.dim() == 3:
        gains = _token_gains(squares)
        squares = squares * (4.0 ** torch.tensor(gains, dtype=torch.float64)).unsqueeze(-1)
        least = max(float(squares.min()), 1e-12) / _VARIANCE_MARGIN
        index_bits = _index_bits(least, top_bits, divisor * offset)
    if index_bits > _MAX_INDEX_BITS:
        raise CalibrationError(
            f"{path}: variances spread by a factor of {float(squares.max()) / least:.3g}, "
            f"beyond what one table of 2^{_MAX_INDEX_BITS} nodes resolves"
        )
    # Half of the least argument: the quadratics beside it must still follow the function.
    floor = least / 2
    scale_bits = _ring.magnitude_bits(1 / math.sqrt(floor / divisor + offset))
    square_bits = min(24, (58 - top_bits) // 2, _NORM_BITS - _SCALE_BITS + scale_bits)
    needed = -(-(index_bits - top_bits + _tables.LOW_BITS + 1) // 2)
    square_bits = max(square_bits, needed)
    if square_bits > (58 - top_bits) // 2:
        raise CalibrationError(f"{path}: variances up to {float(squares.max()):.3g} don't fit")
    table = _tables.Table(
        "rsqrt", top_bits, index_bits, floor, scale_bits, divisor=divisor, offset=offset
    )
    return NormParameters(width, centred, square_bits, _SCALE_BITS, table, gains)
