"""Example-level DP with one noise for all: integer sums of bounded terms, each client adds a share.

Each example's term is a vector of integers that is rounded *towards zero*, so that s times the
bound of the term bounds the integers too. Sums of integers are exact, and clamping a coordinate
moves no two sums further apart. So one example moves a client's sum by s·c at most, and with the
Skellam noise of the honest clients of a sum the release is what `event` says. Local steps that
aren't sums of terms (Adam's, say) have no such bound, and no place here.
"""

import math
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from fedvlm.errors import ConfigError, DropoutError, IntegrityError
from fedvlm.privacy.accounting import noise_multiplier_for
from fedvlm.privacy.events import SkellamEvent
from fedvlm.privacy.mechanisms import Relation
from fedvlm.privacy.noise import MAX_SKELLAM_VARIANCE, NoiseSource
from fedvlm.privacy.skellam import noise_tail

if TYPE_CHECKING:
    from secure.aggregation import LanePlan

_LANE = 31


def honest_of(quorum: int, colluding: int) -> int:
    """Return how many honest clients' noise a sum of a quorum is certain to hold.

    Args:
        quorum: Fewest clients whose inputs may be in a sum; each client's own floor.
        colluding: Clients of the cohort that may tell the server their noise, or add none.

    Raises:
        ConfigError: None would be left.
    """
    if not 0 <= colluding < quorum:
        raise ConfigError(
            f"a sum of {quorum} clients of which {colluding} collude holds no honest noise"
        )
    return quorum - colluding


@dataclass(frozen=True)
class SharedNoise:
    """Sums of examples' terms as integers, of which each client adds its share of the noise.

    Attributes:
        clip_norm: L2 norm c that no example's whole term exceeds.
        noise_multiplier: z: noise on the sum of the *least* number of noised clients, over c.
        size: Coordinates P of a sum.
        least_noised: Fewest honest clients whose noise is in a released sum. Clients that add none,
            or tell theirs, count among those that are not honest.
        most_clients: Most clients that are summed.
        scale: Integers a unit: s.
        largest: Largest absolute value of a coordinate of a client's sum, before noise; beyond it
            is clamped.

    Guarantees:
        Whoever sees the sum and the noise of all clients but `least_noised` learns of one example
        no more than `event()` allows, where data sets are neighbours that differ in one example's
        presence at one client. How many examples a client has isn't released but in the sum.
    """

    clip_norm: float
    noise_multiplier: float
    size: int
    least_noised: int
    most_clients: int
    scale: int
    largest: float

    def __post_init__(self) -> None:
        for name in ("clip_norm", "noise_multiplier", "largest"):
            value = getattr(self, name)
            if not (math.isfinite(value) and value > 0):
                raise ConfigError(f"{name} must be positive and finite, got {value}")
        if type(self.scale) is not int or self.scale < 1 or self.size < 1:
            raise ConfigError(
                f"scale and size must be whole and positive, got {self.scale} and {self.size}"
            )
        if not 1 <= self.least_noised <= self.most_clients:
            raise ConfigError(
                f"need 1 <= least_noised <= most_clients, got {self.least_noised} and "
                f"{self.most_clients}"
            )

    @property
    def relation(self) -> Relation:
        """The neighbours that `event()` is about."""
        return Relation.ADD_OR_REMOVE

    @property
    def dimension(self) -> int:
        """Integers that are sent."""
        return self.size

    @property
    def std(self) -> float:
        """Least standard deviation of the noise on the sum, in the terms' unit."""
        return self.noise_multiplier * self.clip_norm

    @property
    def local_variance(self) -> float:
        """Variance of one client's integer noise."""
        return (self.scale * self.std) ** 2 / self.least_noised

    @cached_property
    def magnitude(self) -> int:
        """Largest absolute value of an integer that a client sends."""
        return math.floor(self.scale * self.largest) + noise_tail(self.local_variance)

    def event(self) -> SkellamEvent:
        """Return what the accountant is told of one release."""
        return SkellamEvent((self.scale * self.std) ** 2, self.size, self.scale * self.clip_norm)

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

    def encode(self, total: NDArray[np.int64], noise: NoiseSource) -> NDArray[np.int64]:
        """Clamp a client's sum of integer terms, and add its share of the noise.

        Args:
            total: Shape (P,), int64: the sum of terms that were rounded towards zero, each of a
                norm up to s·c. The terms are the caller's to bound: see `whole_terms`.
            noise: Source of the noise.

        Returns:
            Integers in ±`magnitude`, shape (P,).

        Raises:
            IntegrityError: The sum has another shape or type.
        """
        if total.shape != (self.size,) or total.dtype != np.int64:
            raise IntegrityError(f"expected {self.size} int64, got {total.dtype} {total.shape}")
        most = math.floor(self.scale * self.largest)
        noised = np.clip(total, -most, most) + noise.skellam(self.local_variance, self.size)
        if int(np.abs(noised).max()) > self.magnitude:
            raise IntegrityError("the noise left its lane; nothing was sent")
        return noised

    def decode(self, total: NDArray[np.int64], clients: int) -> NDArray[np.float64]:
        """Turn the sum of encoded sums into the sum of terms, noise included: shape (P,).

        Args:
            total: Shape (P,): sum over the clients that stayed.
            clients: Their public number.

        Raises:
            DropoutError: Fewer clients than the noise was planned for: nothing may be released.
        """
        if clients < self.least_noised:
            raise DropoutError(
                f"{clients} clients are in the sum, but the noise was planned for at least "
                f"{self.least_noised}; the round is not released"
            )
        return total.astype(np.float64) / self.scale

    def std_of(self, clients: int) -> float:
        """Return the noise on a sum that so many clients are in, if each added its share."""
        return self.std * math.sqrt(clients / self.least_noised)


def plan_shared_noise(
    epsilon: float,
    delta: float,
    *,
    size: int,
    least_noised: int,
    most_clients: int,
    rounds: int = 1,
    clip_norm: float = 1.0,
    largest: float = 32.0,
) -> SharedNoise:
    """Solve for the noise of all rounds, at the finest scale whose sums fit a lane.

    Args:
        epsilon: ε over all rounds.
        delta: δ that it holds at.
        size: Coordinates P.
        least_noised: See `honest_of`.
        most_clients: Most clients that are summed.
        rounds: Releases T; the noise rises with √T.
        clip_norm: Bound c of an example's term.
        largest: Of a coordinate of a client's sum; what is beyond is clamped.

    Raises:
        ConfigError: The budget is out of reach, or no lane is wide enough.

    Example:
        >>> planned = plan_shared_noise(8.0, 1e-3, size=4096, least_noised=6, most_clients=10)
        >>> round(planned.noise_multiplier, 2)
        0.48
    """

    def make(z: float, scale: int) -> SharedNoise:
        return SharedNoise(clip_norm, z, size, least_noised, most_clients, scale, largest)

    def fits(mechanism: SharedNoise) -> bool:
        if mechanism.local_variance > MAX_SKELLAM_VARIANCE / 2:
            return False
        return most_clients * (2 * mechanism.magnitude + 1) < 1 << _LANE

    # The noise hardly depends on the scale: solved at a fine one, then again at what fits.
    scale = 1 << 16
    z = noise_multiplier_for(lambda z: make(z, scale).event(), rounds, epsilon, delta)
    while scale > 1 and not fits(make(z, scale)):
        scale //= 2
    if scale * z * clip_norm < 8 * math.sqrt(least_noised):
        raise ConfigError(
            f"{most_clients} clients' sums of up to {largest:g} leave no room for noise in a lane "
            f"of {_LANE} bits; lower `largest` or the number of clients"
        )
    z = noise_multiplier_for(lambda z: make(z, scale).event(), rounds, epsilon, delta)
    return make(z, scale)


def summed_in_integers(
    places: NDArray[np.int64], vectors: NDArray[np.int64], rows: int
) -> NDArray[np.int64]:
    """Return the exact sum of integer terms by row, flat: shape (rows · d,).

    Args:
        places: Shape (M,): row of each.
        vectors: Shape (M, d), int64.
        rows: Rows of the sum.
    """
    total = np.zeros((rows, vectors.shape[1]), dtype=np.int64)
    np.add.at(total, places, vectors)
    return total.reshape(-1)
