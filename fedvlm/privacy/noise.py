"""Where noise and sampling coins come from: the OS's entropy, or a seed that says it is one."""

from typing import Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.special import gammaln

from fedvlm.errors import ConfigError
from fedvlm.seeds import ExperimentSeed
from secure.random import SecureRandom

_DRAWS = 4
_CHUNK = 1 << 14
MIN_SKELLAM_VARIANCE = 20.0


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

    def skellam(self, variance: float, size: int) -> NDArray[np.int64]:
        """Return draws from the symmetric Skellam law of a variance: shape (size,)."""
        ...


def _checked_variance(variance: float) -> float:
    if not MIN_SKELLAM_VARIANCE <= variance < 2.0**60:
        raise ConfigError(
            f"Skellam noise needs a variance in [{MIN_SKELLAM_VARIANCE:g}, 2^60), got "
            f"{variance:g}; take a finer scale or more noise"
        )
    return variance


class SecureNoise:
    """Noise from the operating system's entropy, for whatever is released.

    Guarantees:
        Nobody can redraw it. Each Gaussian is the mean of four independent Box–Muller draws times
        two, so that reading the noise back from the low bits of one floating-point draw
        (Mironov 2012) takes more than 2^150 guesses (Holohan and Braghin 2021, section 5). Skellam
        noise is integer and has no low bits.

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
        """Return draws from N(0, std²): shape (size,), float64."""
        out = np.empty(size)
        for start in range(0, size, _CHUNK):
            piece = out[start : start + _CHUNK]
            half = _DRAWS * len(piece) // 2
            # torch's sine and cosine are vectorised in double precision, NumPy's are not.
            uniform = torch.from_numpy(self.uniform(2 * half))
            radius = uniform[:half].neg_().log1p_().mul_(-2.0).sqrt_()
            angle = uniform[half:].mul_(2 * np.pi)
            pairs = (angle.cos() + angle.sin()).mul_(radius)
            piece[:] = pairs.view(_DRAWS // 2, -1).sum(dim=0).numpy()
        return out * (std / np.sqrt(_DRAWS))

    def skellam(self, variance: float, size: int) -> NDArray[np.int64]:
        """Return differences of two Poisson draws: shape (size,), int64, mean 0.

        Raises:
            ConfigError: The variance is below 20 or too large for 64 bits.
        """
        rate = _checked_variance(variance) / 2
        return self._poisson(rate, size) - self._poisson(rate, size)

    def _poisson(self, rate: float, size: int) -> NDArray[np.int64]:
        """Draw by transformed rejection (Hörmann 1993, PTRS), for a rate of at least 10."""
        b = 0.931 + 2.53 * np.sqrt(rate)
        a = -0.059 + 0.02483 * b
        inverse_alpha = 1.1239 + 1.1328 / (b - 3.4)
        squeeze = 0.9277 - 3.6224 / (b - 2)
        out = np.empty(size, dtype=np.int64)
        todo = np.arange(size)
        while len(todo):
            u = self.uniform(len(todo)) - 0.5
            v = 1.0 - self.uniform(len(todo))
            us = 0.5 - np.abs(u)
            with np.errstate(divide="ignore", invalid="ignore"):
                k = np.floor((2 * a / us + b) * u + rate + 0.43)
                sound = np.isfinite(k) & (k >= 0) & ~((us < 0.013) & (v > us))
                k = np.where(sound, k, 0.0)
                bound = -rate + k * np.log(rate) - gammaln(k + 1)
                exact = np.log(v * inverse_alpha / (a / (us * us) + b)) <= bound
            taken = sound & (((us >= 0.07) & (v <= squeeze)) | exact)
            out[todo[taken]] = k[taken].astype(np.int64)
            todo = todo[~taken]
        return out


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

    def skellam(self, variance: float, size: int) -> NDArray[np.int64]:
        """Return differences of two Poisson draws: shape (size,), int64, mean 0."""
        rate = _checked_variance(variance) / 2
        return self._rng.poisson(rate, size) - self._rng.poisson(rate, size)


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
