"""How much two layers in a row err: the first layer's noise, through the second."""

import math

from secure.he._bounds import Switching, fresh_std, rescale_std, rounding, slot_bound
from secure.he.params import HEParams


def first_error(
    params: HEParams, spectral: float, period: int, giant: int = 64, folds: int = 1
) -> float:
    """Bound the error of a hidden vector, after its rescaling, along any unit direction.

    Args:
        params: Encryption parameters.
        spectral: Largest singular value of the first layer: what it makes of the input's noise.
        period: Period of the encoded weights.
        giant: Giant steps.
        folds: Parts of a wide input that are added up.
    """
    prime, scale = 2.0 ** params.data_bits[-1], 2.0**params.scale_bits
    switch = params.switching()
    steps = math.sqrt(giant + 2) * folds * switch.std / prime
    std = math.hypot(rescale_std(params.poly_modulus_degree), steps)
    after = slot_bound(std, 2 * folds * switch.bias / prime) / scale
    weights = rounding(2 * period) * params.max_abs / prime
    return spectral * params.noise() + weights + after + period / (scale * prime)


def input_error(params: HEParams) -> float:
    """Bound the noise of an input that is rotated one level down, as `HEParams.noise` does."""
    switch = params.switching(1)
    std = math.hypot(fresh_std(params.poly_modulus_degree), switch.std)
    return slot_bound(std, switch.bias) * 2.0**-params.scale_bits


def rotated(switch: Switching, scale: float) -> float:
    """Bound the noise of one rotation at a scale."""
    return slot_bound(switch.std, switch.bias) / scale


def squared_error(params: HEParams, scale: float) -> float:
    """Bound what relinearising and rescaling a square adds along a unit direction."""
    switch, prime = params.switching(1), 2.0 ** params.data_bits[-2]
    std = math.hypot(rescale_std(params.poly_modulus_degree), switch.std / prime)
    return slot_bound(std, switch.bias / prime) / scale


def last_error(
    switch: Switching, scale: float, period: int, giant: int = 64, folds: int = 1
) -> float:
    """Bound what the giant steps and folds of the last layer add to an entry of the result."""
    noise = slot_bound(math.sqrt(giant + 2) * folds * switch.std, 2 * folds * switch.bias)
    return (noise + period) / scale


def unit_lora_error(params: HEParams, bits: float) -> float:
    """Bound the error of a LoRA kept apart whose matrices have no singular value above 1."""
    scale = 2.0**params.scale_bits
    switch, slots = params.switching(1), params.slots
    hidden = first_error(params, 1.0, slots) + rotated(switch, scale)
    weights = 2 * rounding(params.poly_modulus_degree) * params.max_abs * 2.0**-bits
    after = 2 * last_error(switch, scale * 2.0**bits, slots)
    return math.sqrt(2) * (input_error(params) + hidden) + weights + after


def unit_adapter_error(params: HEParams, bits: float) -> float:
    """Bound the error of linear, square, linear whose matrices have no singular value above 1."""
    scale = 2.0 ** (2 * params.scale_bits - params.data_bits[-2])
    switch, slots, largest = params.switching(2), params.slots, params.max_abs
    first = first_error(params, 1.0, slots)
    hidden = 2 * largest * first + 2 * math.sqrt(slots) * first**2
    hidden += squared_error(params, scale) + rotated(switch, scale)
    weights = rounding(params.poly_modulus_degree) * largest**2 * 2.0**-bits
    return math.sqrt(2) * hidden + weights + last_error(switch, scale * 2.0**bits, slots)
