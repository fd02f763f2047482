"""From the calibration's extremes to the parameters of a protocol, or to an error with the path.

Each protocol is right in a range; the calibration says which range it needs, with a margin.
"""

import math

import torch
from torch import Tensor

from secure.smpc import _ring, _tables
from secure.smpc._attention import MAX_KEYS, SoftmaxParameters
from secure.smpc._norm import NormParameters
from secure.smpc._ranges import by_sample
from secure.smpc._series import MAX_RADIUS, Series, fit
from secure.smpc.errors import CalibrationError

#: How far beyond the calibration's extremes a value may go.
MARGIN = 1.25
VARIANCE_MARGIN = 4.0
_ACTIVATION_TOLERANCE = 3e-4
_WIDE_RADIUS = 12.0
_EXP_TOLERANCE = 2e-5
_EXP_RADIUS = 3.0
_MAX_SQUARINGS = 7
_MAX_INDEX_BITS = 14
_GAIN_BITS = 11
_PADDING_GAP = 9
#: Fraction bits of a score, twice a value's; most of a period of exp's series; how far the mean
#: that is left may move the series' argument.
_SCORE_BITS = 32
_MOST_PERIOD_BITS = 4
_MOST_SHIFT = 0.25
_LEAST_LAST_BITS, _MOST_LAST_BITS = 22, 28
_LEAST_INVERSE_BITS, _MOST_INVERSE_BITS = 8, 15
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
    # On a wide range the fixed point's own rounding is coarser: 2.5e-5 of the largest value.
    return fit(function, radius, _ACTIVATION_TOLERANCE * max(1.0, radius / _WIDE_RADIUS))


def softmax_parameters(
    path: str,
    scores: Tensor,
    values: Tensor,
    causal: bool,
    padded: bool = False,
    anchored: bool = False,
) -> SoftmaxParameters:
    """Fix a softmax's series and bits from the scores and values of the calibration.

    Args:
        path: Path of the module.
        scores: Shape `(batch, heads, queries, keys)`, padded keys not yet lowered.
        values: The values, any shape.
        causal: Whether query i sees only the keys up to i.
        padded: Whether some keys are padding.
        anchored: Whether the first key never is.
    """
    keys = scores.shape[-1]
    if keys > MAX_KEYS:
        raise CalibrationError(f"{path}: {keys} tokens; attention here takes at most {MAX_KEYS}")
    centred, mean = _centred(scores, causal)
    reach = float(centred.abs().max()) * MARGIN
    common = float(mean.abs().max()) * MARGIN
    padding = 0
    if padded:
        # Lowered so far that all padded keys together weigh e^−9 of the best that isn't, whichever
        # are padded. The best is at least the first, where that one never is.
        above = float((scores.amax(-1) - scores[..., 0]).max()) * MARGIN if anchored else 2 * reach
        padding = math.ceil(above + math.log(keys)) + _PADDING_GAP
    reach += padding
    squarings = max(1, math.ceil(math.log2(max(reach, 1e-9) / _EXP_RADIUS)))
    if squarings > _MAX_SQUARINGS:
        raise CalibrationError(
            f"{path}: attention scores spread over ±{reach:.3g}, beyond "
            f"±{_EXP_RADIUS * 2**_MAX_SQUARINGS:g}"
        )
    # The mean is taken out with 1/n in so many bits: what that leaves of it shifts the row.
    centre_bits = _ring.WORD_BITS - _SCORE_BITS - _MOST_PERIOD_BITS - squarings
    left = keys * (common + padding) * 2.0 ** -(centre_bits + 1)
    if left > _MOST_SHIFT * 2**squarings:
        raise CalibrationError(
            f"{path}: attention scores have a mean of {common:.3g} over {keys} keys, "
            "which can't be taken out exactly enough"
        )
    radius = max(0.25, math.ceil((reach + left) / 2**squarings * 4) / 4)
    series = fit("exp", radius, _EXP_TOLERANCE)
    top_bits = math.ceil(radius / math.log(2))
    last_bits, inverse_bits = _division_bits(path, keys, values)
    return SoftmaxParameters(
        keys, causal, squarings, series, top_bits, centre_bits, last_bits, inverse_bits, padding
    )


def _centred(scores: Tensor, causal: bool) -> tuple[Tensor, Tensor]:
    """Return scores without their row's mean (zero where a key isn't seen), and that mean."""
    seen = torch.ones(scores.shape[-2:], dtype=torch.float64)
    if causal:
        seen = seen.tril()
    mean = (scores * seen).sum(-1, keepdim=True) / seen.sum(-1, keepdim=True)
    return (scores - mean) * seen, mean


def score_spread(scores: Tensor, p: SoftmaxParameters) -> tuple[Tensor, float]:
    """Return by sample how far scores lie from their row's mean, and how far they may."""
    centred, _ = _centred(scores, p.causal)
    return by_sample(centred), p.series.radius * 2**p.squarings - p.padding


def _division_bits(path: str, keys: int, values: Tensor) -> tuple[int, int]:
    """Share the ring's bits out between Q and 1/ΣQ, whose product with V comes untruncated.

    Where a row's keys weigh alike, Q and ΣQ are as small as 1/n² and 1/n, and n roundings of Q
    add up: that asks for 1.5·log2 n bits more in Q than in the inverse.
    """
    room = _ring.LIMIT_BITS - 1 - 16 - _ring.magnitude_bits(_largest(values) * 2 * MARGIN)
    if room < _LEAST_LAST_BITS + _LEAST_INVERSE_BITS:
        raise CalibrationError(f"{path}: attention values are too large for the ring")
    wish = math.ceil((room + 1.5 * math.log2(keys)) / 2)
    last = min(_MOST_LAST_BITS, room - _LEAST_INVERSE_BITS, max(_LEAST_LAST_BITS, wish))
    inverse = min(_MOST_INVERSE_BITS, room - last)
    return min(_MOST_LAST_BITS, room - inverse), inverse


def _largest(sample: Tensor) -> float:
    return float(sample.abs().max()) if sample.numel() else 0.0


def _index_bits(least: float, top_bits: int, floor: float) -> int:
    """Return the bits of a table whose nodes are an eighth of the least argument apart.

    Below `floor` (what epsilon drowns) there's nothing to resolve.
    """
    return max(6, top_bits - math.floor(math.log2(max(least, floor) / 8)))


def _token_gains(squares: Tensor, leading: int) -> tuple[int, ...]:
    """Return per token the power of two that brings its variances near the largest.

    Only the leading tokens are the same at every input. The others change places: what one of
    them is at its place says nothing of the next input's, so they share the largest of all.
    """
    highest = squares.amax(dim=(0, *range(2, squares.dim()))).clamp(min=1e-12)
    highest[leading:] = highest[leading:].amax() if leading < len(highest) else 0.0
    gains = (0.5 * torch.log2(highest.max() / highest)).floor()
    return tuple(int(each) for each in gains)


def norm_parameters(
    path: str,
    width: int,
    centred: bool,
    squares: Tensor,
    divisor: float,
    offset: float,
    leading: int = 0,
) -> NormParameters:
    """Fix a normalisation's table and bits from the sums of squares of the calibration.

    Args:
        path: Path of the module.
        width: Number of features.
        centred: Whether the mean is taken out.
        squares: Shape `(batch, ..., 1)`.
        divisor: What the sum is divided by.
        offset: What is added to the quotient.
        leading: How many tokens at the start are of a kind of their own (a class token).
    """
    top_bits = _ring.magnitude_bits(float(squares.max()) * VARIANCE_MARGIN)
    least = max(float(squares.min()), 1e-12) / VARIANCE_MARGIN
    index_bits = _index_bits(least, top_bits, divisor * offset)
    gains: tuple[int, ...] = ()
    if index_bits > _GAIN_BITS and centred and squares.dim() == 3 and leading:
        gains = _token_gains(squares, leading)
        squares = squares * (4.0 ** torch.tensor(gains, dtype=torch.float64)).unsqueeze(-1)
        least = max(float(squares.min()), 1e-12) / VARIANCE_MARGIN
        index_bits = _index_bits(least, top_bits, divisor * offset)
    if index_bits > _MAX_INDEX_BITS:
        raise CalibrationError(
            f"{path}: variances spread by a factor of {float(squares.max()) / least:.3g}, "
            f"beyond what one table of 2^{_MAX_INDEX_BITS} nodes resolves"
        )
    # Under half of the least argument: the quadratics beside it must still follow the function.
    # A power of two, as it's public and comes from the weights.
    floor = 2.0 ** math.floor(math.log2(least / 2))
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
