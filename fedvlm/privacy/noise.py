"""Where noise and sampling coins come from: the OS's entropy, or a seed that says it is one."""

import math
from collections.abc import Callable
from typing import Protocol

import numpy as np
import torch
from numpy.typing import NDArray

from fedvlm.errors import ConfigError
from fedvlm.seeds import ExperimentSeed
from secure.random import SecureRandom

_CHUNK = 1 << 14
# Noise reaches down to a grid of std/2048 to std/1024: far below what is of use, and far above what
# double precision gets wrong.
_GRID_BITS = 10
MIN_SKELLAM_VARIANCE = 20.0
MAX_SKELLAM_VARIANCE = 2.0**52
_NUMPY_RATE = 2.0**36  # above, NumPy's sampler loses digits that matter


class NoiseSource(Protocol):
    """Draws noise. `simulated` says whether someone who knows a seed could draw it again."""

    @property
    def simulated(self) -> bool:
        """Whether the draws follow from a seed."""
        ...

    def uniform(self, size: int) -> NDArray[np.float64]:
        """Return draws from U[0, 1): shape (size,)."""
        ...

    def gaussian(self, std: float, size: int) -> NDArray[np.float64]:
        """Return draws from N(0, std²): shape (size,)."""
        ...

    def noised(self, values: NDArray[np.float64], std: float) -> NDArray[np.float64]:
        """Return values with N(0, std²) added to each: of the same shape."""
        ...

    def skellam(self, variance: float, size: int) -> NDArray[np.int64]:
        """Return draws from the symmetric Skellam law of a variance: shape (size,)."""
        ...


def _checked_variance(variance: float) -> float:
    if not MIN_SKELLAM_VARIANCE <= variance <= MAX_SKELLAM_VARIANCE:
        raise ConfigError(
            f"Skellam noise needs a variance in [{MIN_SKELLAM_VARIANCE:g}, 2^52], got "
            f"{variance:g}; take a finer scale where it is too little, a coarser one where too much"
        )
    return variance


# log k! − (k + ½) log k + k − ½ log 2π, where Stirling's series is too short.
_STIRLING = np.array(
    [0.0] + [math.lgamma(k + 1) - (k + 0.5) * math.log(k) + k - 0.5 * math.log(2 * math.pi)
     for k in range(1, 16)]
)  # fmt: skip


def _poisson_log_mass(k: NDArray[np.float64], rate: float) -> NDArray[np.float64]:
    """Return log of the Poisson law's mass at whole k ≥ 0, right for a rate of 2^51 too.

    Loader's form (2000): −D − ½ log 2πk − Stirling's error, where D is the deviance. The textbook's
    k log λ − λ − log k! is a difference of numbers of 10^16, whose last digit is worth more than 1.
    """
    least = np.maximum(k, 1.0)
    inverse = 1 / np.square(least)
    error = (1 / 12 - (1 / 360 - (1 / 1260 - inverse / 1680) * inverse) * inverse) / least
    error = np.where(k < 16, _STIRLING[np.minimum(k, 15).astype(np.int64)], error)
    v = (least - rate) / (least + rate)
    square, series = v * v, np.zeros_like(v)
    for n in range(8, 0, -1):
        series = (series + 1 / (2 * n + 1)) * square
    near = (least - rate) * v + 2 * least * v * series
    far = least * np.log(least / rate) + rate - least
    deviance = np.where(np.abs(v) < 0.1, near, far)
    return np.where(k < 1, -rate, -deviance - 0.5 * np.log(2 * math.pi * least) - error)


def _poisson(
    uniform: Callable[[int], NDArray[np.float64]], rate: float, size: int
) -> NDArray[np.int64]:
    """Draw by transformed rejection (Hörmann 1993, PTRS), for a rate of at least 10."""
    b = 0.931 + 2.53 * np.sqrt(rate)
    a = -0.059 + 0.02483 * b
    inverse_alpha = 1.1239 + 1.1328 / (b - 3.4)
    squeeze = 0.9277 - 3.6224 / (b - 2)
    out = np.empty(size, dtype=np.int64)
    todo = np.arange(size)
    while len(todo):
        u = uniform(len(todo)) - 0.5
        v = 1.0 - uniform(len(todo))
        us = 0.5 - np.abs(u)
        with np.errstate(divide="ignore", invalid="ignore"):
            k = np.floor((2 * a / us + b) * u + rate + 0.43)
            sound = np.isfinite(k) & (k >= 0) & ~((us < 0.013) & (v > us))
            taken = sound & (us >= 0.07) & (v <= squeeze)
            asked = np.flatnonzero(sound & ~taken)
            bound = _poisson_log_mass(k[asked], rate)
            chance = np.log(v[asked] * inverse_alpha / (a / np.square(us[asked]) + b))
            taken[asked] = chance <= bound
        out[todo[taken]] = k[taken].astype(np.int64)
        todo = todo[~taken]
    return out


class SecureNoise:
    """Noise from the operating system's entropy, for whatever is released.

    Guarantees:
        Nobody can redraw it. Values come out on a grid of a power of two, 2^−11 to 2^−10 of the
        noise: all that floating point would tell of a value below that is gone (Mironov 2012).
        Up to there a release is Gaussian noise that was rounded, which is post-processing: each
        grid point has the chance that exact arithmetic would give it, to a factor of e^(±2^−33),
        so that ten million noised coordinates add at most 0.003 to an ε, and in truth far less.
        Beyond 12 standard deviations, a chance of 2^−106, there is nothing. Skellam noise is
        integer and has no low bits; its chances are right to a relative 2^−26 at the widest, 2^−40
        at a variance of 10^7.

    Example:
        >>> SecureNoise().gaussian(1.0, 3).shape
        (3,)
    """

    simulated = False

    def __init__(self, random: SecureRandom | None = None) -> None:
        self._random = random or SecureRandom()

    def uniform(self, size: int) -> NDArray[np.float64]:
        """Return draws from U[0, 1): shape (size,)."""
        return self._random.uniform(size)

    def gaussian(self, std: float, size: int) -> NDArray[np.float64]:
        """Return draws from N(0, std²), on the grid: shape (size,), float64."""
        return self.noised(np.zeros(size), std)

    def noised(self, values: NDArray[np.float64], std: float) -> NDArray[np.float64]:
        """Return values with N(0, std²) added to each, rounded to the grid: of the same shape.

        Raises:
            ConfigError: `std` is out of range, or less than 2^−40 of a value: its grid would be
                finer than a double.
        """
        if not 1e-280 < std < 1e280:
            raise ConfigError(f"noise needs a standard deviation in (1e-280, 1e280), got {std}")
        grid = 2.0 ** (math.frexp(std)[1] - 1 - _GRID_BITS)
        # Dividing by a power of two and taking the whole part off are exact, so that noise meets a
        # number in [0, 1), and nothing of a value's size depends on rounding.
        scaled = np.asarray(values, dtype=np.float64).reshape(-1) / grid
        if not (np.abs(scaled) < 2.0**51).all():
            raise ConfigError(
                f"a standard deviation of {std:g} is too little for values of this size: doubles "
                "hold no grid that is so much finer than they are"
            )
        whole = np.floor(scaled)
        scaled -= whole
        for start in range(0, scaled.size, _CHUNK):
            piece = scaled[start : start + _CHUNK]
            piece += self._normal(len(piece)) * (std / grid)
        whole += np.rint(scaled)
        whole *= grid
        return whole.reshape(values.shape)

    def _normal(self, size: int) -> NDArray[np.float64]:
        """Return draws from N(0, 1), before they are rounded: Box–Muller (1958)."""
        half = (size + 1) // 2
        # torch's functions are vectorised in double precision, NumPy's are not.
        uniform = torch.from_numpy(self.uniform(3 * half))
        # 106 bits for the radius: with 53, the tail would end at 8.6, and be coarse before.
        chance = uniform[:half].add_(uniform[half : 2 * half].add_(2.0**-54).mul_(2.0**-53))
        radius = chance.log_().mul_(-2.0).clamp_(min=0.0).sqrt_()
        angle = uniform[2 * half :].mul_(2 * math.pi)
        return torch.cat([angle.cos().mul_(radius), angle.sin_().mul_(radius)]).numpy()[:size]

    def skellam(self, variance: float, size: int) -> NDArray[np.int64]:
        """Return differences of two Poisson draws: shape (size,), int64, mean 0.

        Raises:
            ConfigError: The variance is below 20, or above 2^52, where doubles miss integers.
        """
        rate = _checked_variance(variance) / 2
        return _poisson(self.uniform, rate, size) - _poisson(self.uniform, rate, size)


class SimulatedNoise:
    """Noise that follows from an experiment's seed: reproducible, and no protection at all.

    Args:
        seed: The experiment's seed.
        purpose: What the noise is for; another purpose gives another stream.

    Example:
        >>> SimulatedNoise(ExperimentSeed(0), "round", 1).simulated
        True
    """

    simulated = True

    def __init__(self, seed: ExperimentSeed, *purpose: str | int) -> None:
        self._rng = seed.numpy("noise", *purpose)

    def uniform(self, size: int) -> NDArray[np.float64]:
        """Return draws from U[0, 1): shape (size,)."""
        return self._rng.random(size)

    def gaussian(self, std: float, size: int) -> NDArray[np.float64]:
        """Return draws from N(0, std²): shape (size,), float64."""
        return self._rng.normal(0.0, std, size)

    def noised(self, values: NDArray[np.float64], std: float) -> NDArray[np.float64]:
        """Return values with N(0, std²) added to each: of the same shape, on no grid."""
        return values + self.gaussian(std, values.size).reshape(values.shape)

    def skellam(self, variance: float, size: int) -> NDArray[np.int64]:
        """Return differences of two Poisson draws: shape (size,), int64, mean 0."""
        rate = _checked_variance(variance) / 2
        if rate < _NUMPY_RATE:
            return self._rng.poisson(rate, size) - self._rng.poisson(rate, size)
        return _poisson(self.uniform, rate, size) - _poisson(self.uniform, rate, size)


def poisson_sample(count: int, rate: float, noise: NoiseSource) -> NDArray[np.int64]:
    """Draw each of `count` units by a coin of its own; the sample may be empty.

    Amplification by sampling counts on the coins being secret, so they come from where the noise
    comes from.

    Args:
        count: Number of units, at least 0.
        rate: Chance of each, in (0, 1].
        noise: Source of the coins.

    Returns:
        Ascending indices in [0, count), int64.

    Raises:
        ConfigError: The rate is out of range.

    Example:
        >>> len(poisson_sample(10, 1.0, SecureNoise()))
        10
    """
    if not 0 < rate <= 1:
        raise ConfigError(f"a sampling rate is in (0, 1], got {rate}")
    return np.flatnonzero(noise.uniform(count) < rate)
