"""Distributed DP: each client adds a share of the noise to integers, and only sums are seen.

Clip, rotate, scale, round, add Skellam noise, and sum under secure aggregation (Kairouz et al.
2021, "The distributed discrete Gaussian mechanism"; Agarwal et al. 2021, "The Skellam
mechanism"). Skellam noise is closed under sums, so that the sum's noise is known exactly.
"""

import math
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import brentq

from fedvlm.errors import ConfigError, DropoutError, IntegrityError
from fedvlm.privacy.events import SkellamEvent
from fedvlm.privacy.mechanisms import Relation
from fedvlm.privacy.noise import MAX_SKELLAM_VARIANCE, NoiseSource

if TYPE_CHECKING:
    from secure.aggregation import LanePlan

# β of conditional rounding: e^(−1/2) costs 1.6 tries a vector on average at most.
_LOG_INVERSE_BETA = 0.5
# A client's noise leaves its lane with a chance below 2^−100 a coordinate: for all purposes never.
_TAIL_LOG = 100 * math.log(2)


def fwht(vector: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return the orthonormal Walsh–Hadamard transform; it is its own inverse.

    Args:
        vector: Shape (d,), d a power of two.

    Example:
        >>> fwht(np.array([1.0, 1.0, 1.0, 1.0])).tolist()
        [2.0, 0.0, 0.0, 0.0]
    """
    size = len(vector)
    if size & (size - 1) or not size:
        raise ConfigError(f"a Hadamard transform needs a power of two, got {size}")
    out: NDArray[np.float64] = vector.astype(np.float64)
    width = 1
    while width < size:
        pairs = out.reshape(-1, 2, width)
        out = np.stack([pairs[:, 0] + pairs[:, 1], pairs[:, 0] - pairs[:, 1]], axis=1).reshape(-1)
        width *= 2
    return (out / math.sqrt(size)).astype(np.float64, copy=False)


def _signs(size: int, seed: int) -> NDArray[np.float64]:
    """Return the public random signs D of the rotation."""
    signs = np.random.default_rng(seed).integers(0, 2, size).astype(np.float64)
    return signs * 2.0 - 1.0


def rounded_norm_bound(scaled_norm: float, dimension: int) -> float:
    """Return what conditional rounding keeps the L2 norm within (Kairouz et al., proposition 22).

    Args:
        scaled_norm: Norm s·c before rounding.
        dimension: Number of coordinates d.
    """
    root = math.sqrt(dimension)
    spread = math.sqrt(2 * _LOG_INVERSE_BETA) * (scaled_norm + root / 2)
    return min(scaled_norm + root, math.sqrt(scaled_norm**2 + dimension / 4 + spread))


def conditional_round(
    vector: NDArray[np.float64], bound: float, noise: NoiseSource
) -> NDArray[np.int64]:
    """Round each coordinate up or down at random, and anew until the norm is within a bound.

    Args:
        vector: Shape (d,), scaled and rotated.
        bound: From `rounded_norm_bound`.
        noise: Source of the coins.

    Returns:
        Integers, shape (d,), of L2 norm at most `bound`.

    Raises:
        IntegrityError: No try came within the bound: the vector was longer than it was said to be.
    """
    floor = np.floor(vector)
    fraction = vector - floor
    # A try succeeds with a chance of at least 1 − β = 0.39: 200 failures have a chance of 2^−144.
    for _ in range(200):
        rounded = floor + (noise.uniform(len(vector)) < fraction)
        if float(rounded @ rounded) <= bound**2:
            return rounded.astype(np.int64)
    raise IntegrityError("the update is longer than its clip norm; it was not sent")


def scale_for_modulus(
    bits: int, clients: int, clip_norm: float, noise_std: float, dimension: int, tails: float = 4.0
) -> float:
    """Return the scale s for sums modulo 2^bits (Kairouz et al., section 6, with ρ = 1).

    Args:
        bits: Size b of the modulus.
        clients: Number n of clients.
        clip_norm: Clip c.
        noise_std: Standard deviation of the noise on the sum.
        dimension: Coordinates d, a power of two.
        tails: Standard deviations k of the sum that must fit.

    Raises:
        ConfigError: The modulus is too small for the rounding alone.
    """
    room = 4.0**bits - clients * tails**2
    if room <= 0:
        raise ConfigError(f"{bits} bits are too few to sum {clients} clients")
    spread = clip_norm**2 * clients**2 / dimension + noise_std**2
    return math.sqrt(room) / (2 * tails * math.sqrt(spread))


def noise_tail(variance: float) -> int:
    """Return what a Skellam draw exceeds with a chance below 2^−100 (Chernoff's bound)."""

    def log_chance(t: float) -> float:
        x = t / variance
        # √(1+x²) − 1, written so that a small x keeps its digits.
        return variance * x * x / (1 + math.sqrt(1 + x * x)) - t * math.asinh(x)

    top = 20 * math.sqrt(variance) + 200
    return math.ceil(brentq(lambda t: log_chance(t) + _TAIL_LOG, 1e-9, top))  # pyright: ignore


@dataclass(frozen=True)
class SkellamMechanism:
    """The sum of clipped updates, each rounded to integers and noised by its client.

    Attributes:
        clip_norm: L2 norm c that every update is clipped to: the sensitivity before rounding.
        noise_multiplier: z: standard deviation of the noise on the sum of the *least* number of
            noised updates, over `clip_norm`.
        size: Length P of an update.
        least_noised: Fewest honest clients whose noise is in a released sum: the threshold of
            secure aggregation less the colluders. More clients add more noise.
        most_clients: Most clients that are summed.
        scale: Integers a unit: s.

    Guarantees:
        Whoever sees the sum and knows the noise of all clients but `least_noised` learns of one
        client's update no more than `event()` allows: data sets are neighbours where one client's
        update is replaced by zero (`relation`). Rounding widens the sensitivity to `rounded_norm`,
        which is what is accounted for.
        Who is in the sum is public, and not protected: each client adds a share of the noise, so
        that the variance of the sum alone tells how many there are.

    Raises:
        ConfigError: A value is out of range.

    Example:
        >>> mechanism = SkellamMechanism(1.0, 4.0, 1000, 8, 10, scale=500.0)
        >>> mechanism.dimension
        1024
    """

    clip_norm: float
    noise_multiplier: float
    size: int
    least_noised: int
    most_clients: int
    scale: float

    def __post_init__(self) -> None:
        for name in ("clip_norm", "noise_multiplier", "scale"):
            if not (math.isfinite(getattr(self, name)) and getattr(self, name) > 0):
                raise ConfigError(f"{name} must be positive and finite, got {getattr(self, name)}")
        if self.size < 1 or not 1 <= self.least_noised <= self.most_clients:
            raise ConfigError(
                f"need size >= 1 and 1 <= least_noised <= most_clients, got {self.size}, "
                f"{self.least_noised} and {self.most_clients}"
            )

    @property
    def relation(self) -> Relation:
        """The neighbours that `event()` is about."""
        return Relation.ZERO_OUT

    @property
    def dimension(self) -> int:
        """Coordinates after padding to a power of two."""
        return 1 << (self.size - 1).bit_length()

    @property
    def rounded_norm(self) -> float:
        """Sensitivity of the integer sum: the norm that conditional rounding keeps within."""
        return rounded_norm_bound(self.scale * self.clip_norm, self.dimension)

    @property
    def std(self) -> float:
        """Least standard deviation of the noise on the sum, in the update's unit."""
        return self.noise_multiplier * self.clip_norm

    @property
    def local_variance(self) -> float:
        """Variance of one client's integer noise."""
        return (self.scale * self.std) ** 2 / self.least_noised

    @cached_property
    def magnitude(self) -> int:
        """Largest absolute value of an integer that a client sends."""
        return math.floor(self.rounded_norm) + noise_tail(self.local_variance)

    def event(self) -> SkellamEvent:
        """Return what the accountant is told of one release."""
        return SkellamEvent((self.scale * self.std) ** 2, self.dimension, self.rounded_norm)

    def lanes(self) -> "LanePlan":
        """Plan the lanes of secure aggregation, in which no sum can wrap.

        Raises:
            ConfigError: No lane is wide enough.
        """
        from secure.aggregation import integer_plan
        from secure.errors import ParameterError

        try:
            return integer_plan(self.most_clients, self.magnitude)
        except ParameterError as error:
            raise ConfigError(f"the noised integers fit no lane: {error}") from error

    def encode(
        self, update: NDArray[np.floating], rotation_seed: int, noise: NoiseSource
    ) -> NDArray[np.int64]:
        """Clip, rotate, scale, round and noise a client's update.

        Args:
            update: Shape (P,). One that is not finite counts as zero.
            rotation_seed: Public, the same for all clients of a round.
            noise: Source of coins and noise.

        Returns:
            Integers in ±`magnitude`, shape (`dimension`,).

        Raises:
            IntegrityError: The update has another length.
        """
        if update.shape != (self.size,):
            raise IntegrityError(f"expected an update of {self.size} values, got {update.shape}")
        from fedvlm.privacy.clipping import clip

        padded = np.zeros(self.dimension)
        padded[: self.size] = clip(update, self.clip_norm)
        rotated = fwht(padded * _signs(self.dimension, rotation_seed)) * self.scale
        rounded = conditional_round(rotated, self.rounded_norm, noise)
        noised = rounded + noise.skellam(self.local_variance, self.dimension)
        if int(np.abs(noised).max()) > self.magnitude:
            raise IntegrityError("the noise left its lane; nothing was sent")
        return noised

    def decode(
        self, total: NDArray[np.int64], rotation_seed: int, clients: int
    ) -> NDArray[np.float64]:
        """Turn the sum of encoded updates into the mean update, noise included.

        Args:
            total: Shape (`dimension`,): sum over the clients that stayed.
            rotation_seed: As the clients had it.
            clients: Public number of clients in the sum.

        Raises:
            DropoutError: Fewer clients than the noise was planned for: nothing may be released.
        """
        if clients < self.least_noised:
            raise DropoutError(
                f"{clients} clients are in the sum, but the noise was planned for at least "
                f"{self.least_noised}; the round is not released"
            )
        signs = _signs(self.dimension, rotation_seed)
        return (fwht(total.astype(np.float64)) * signs)[: self.size] / (self.scale * clients)


def plan_skellam(
    clip_norm: float,
    noise_multiplier: float,
    size: int,
    least_noised: int,
    most_clients: int,
    lane: int = 21,
) -> SkellamMechanism:
    """Pick the finest scale whose sums fit a lane of secure aggregation.

    Args:
        clip_norm: Clip c.
        noise_multiplier: z at the least number of noised updates.
        size: Length of an update.
        least_noised: See `SkellamMechanism`.
        most_clients: Most clients that are summed.
        lane: Bits of a lane.

    Raises:
        ConfigError: The lane is too narrow for so many clients.
    """

    def make(scale: float) -> SkellamMechanism:
        return SkellamMechanism(
            clip_norm, noise_multiplier, size, least_noised, most_clients, scale
        )

    def fits(scale: float) -> bool:
        mechanism = make(scale)
        if mechanism.local_variance > MAX_SKELLAM_VARIANCE / 2:
            return False
        return most_clients * 2 * mechanism.magnitude < 1 << lane

    # At the least, a client's noise must be wide enough to be drawn, with room to spare.
    low = math.sqrt(25.0 * least_noised) / (noise_multiplier * clip_norm)
    if not fits(low):
        raise ConfigError(
            f"a lane of {lane} bits is too narrow for {most_clients} clients of {size} values "
            f"with noise multiplier {noise_multiplier:g}; use a wider one"
        )
    high = low
    while fits(high) and high < 2.0**30 / clip_norm:
        low, high = high, 2 * high
    while high / low > 1.001:
        middle = math.sqrt(low * high)
        low, high = (middle, high) if fits(middle) else (low, middle)
    return make(low)
