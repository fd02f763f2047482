"""Lane plans: how finely an update is quantised, and in how many bits it is summed.

A value x in [−bound, bound] becomes the integer (x + bound) / step, rounded at random so that
its mean is exact, on `levels` levels that are 2·bound / (levels − 1) apart. The plan proves that
no lane can overflow: clients · (levels − 1) < 2^lane.
"""

import math
from dataclasses import dataclass, field, replace

import numpy as np
from numpy.typing import NDArray

from secure.aggregation._packing import LANES, WORD_BITS, lane_for, runs, unpack, words_for
from secure.aggregation._rounding import Rounding
from secure.errors import ParameterError
from secure.random import SecureRandom

MAX_LEVELS = 1 << 31
# Words that a pass works on: what it reads and writes stays in a core's own cache.
_CHUNK = 1 << 15


@dataclass(frozen=True)
class LanePlan:
    """How values are quantised and packed; client and server must hold the same one.

    Attributes:
        bound: Largest magnitude of a coordinate, positive and finite.
        levels: Number of levels between −bound and bound, from 2 to 2^31.
        lane: Bits of a lane, one of 16, 21, 32, 64.
        clients: Most clients that are ever summed.
        max_weight: Largest weight that the error was planned for; None where none was planned.
            It is not part of what client and server compare.

    Guarantees:
        Whatever the clients send, the sum of up to `clients` encoded vectors is exact: an
        object that could overflow can't be made.

    Raises:
        ParameterError: A value is out of range, or the lane could overflow.

    Example:
        >>> LanePlan(bound=1.0, levels=2**14, lane=21, clients=128).bytes_per_parameter
        2.6666666666666665
    """

    bound: float
    levels: int
    lane: int
    clients: int
    max_weight: int | None = field(default=None, compare=False)

    def __post_init__(self) -> None:
        """Refuse what could overflow."""
        if not (math.isfinite(self.bound) and self.bound > 0):
            raise ParameterError(f"bound must be positive and finite, got {self.bound}")
        if not 2 <= self.levels <= MAX_LEVELS:
            raise ParameterError(f"levels must be in [2, 2^31], got {self.levels}")
        if self.clients < 1:
            raise ParameterError(f"clients must be at least 1, got {self.clients}")
        if self.lane not in LANES:
            raise ParameterError(f"lane must be one of {LANES}, got {self.lane}")
        if self.clients * (self.levels - 1) >= 1 << self.lane:
            raise ParameterError(
                f"{self.clients} clients with {self.levels} levels overflow a lane of "
                f"{self.lane} bits; use a wider lane or fewer levels"
            )

    @property
    def step(self) -> float:
        """Distance of two levels."""
        return 2 * self.bound / (self.levels - 1)

    @property
    def bytes_per_parameter(self) -> float:
        """Bytes on the wire for one value."""
        return 8 / (WORD_BITS // self.lane)

    def rms_error(self, clients: int, weight: float = 1.0) -> float:
        """Bound on the root-mean-square error of a coordinate of the mean over `clients`.

        Stochastic rounding at a fraction f of a step has variance f(1−f)·step² ≤ step²/4, so the
        sum of n errs by at most step·√n / 2. What is summed under weights is each update times
        its weight's share of the largest one, and the mean divides by the sum of the shares.

        Args:
            clients: Clients in the mean.
            weight: Mean weight of a client over the largest weight, in (0, 1].
        """
        return self.step / (2 * math.sqrt(clients) * weight)

    def words(self, length: int) -> int:
        """Return the number of 64-bit words that carry `length` values."""
        return words_for(length, self.lane)

    def quantise(
        self, vector: NDArray[np.floating], rng: SecureRandom, scale: float = 1.0
    ) -> NDArray[np.uint64]:
        """Round `scale * vector` at random onto the levels, without bias.

        Args:
            vector: Shape `(length,)`, finite, `|scale * vector|` at most `bound`.
            rng: Source of the rounding; a public one would tell the fraction away.
            scale: Factor applied in float64 before rounding.

        Returns:
            Integers in `[0, levels)`, shape `(length,)`, dtype uint64. A value that sits on a
            level, such as an integer under `integer_plan`, is kept exactly.

        Raises:
            ParameterError: A value is not finite or beyond the bound.
        """
        rounding = Rounding(self.bound, self.levels, scale)
        out = np.empty(len(vector), dtype=np.uint64)
        for start in range(0, len(vector), _CHUNK):
            piece = out[start : start + _CHUNK]
            drawn = rounding.draw(len(piece), rng)
            levels = rounding.levels(vector[start : start + _CHUNK], drawn)
            np.subtract(levels, rounding.base, out=piece.view(np.int64))
        return out

    def encode(
        self,
        vector: NDArray[np.floating],
        rng: SecureRandom,
        scale: float = 1.0,
        norm: float = math.inf,
        tail: NDArray[np.uint64] | None = None,
    ) -> NDArray[np.uint64]:
        """Quantise and pack: words of shape `(words(length) + len(tail),)`, dtype uint64.

        As `quantise`; `norm` is a number that the vector's L2 norm doesn't exceed, where one is
        known: it saves looking at every value once more. `tail` are words that follow as they
        are.
        """
        rounding = Rounding(self.bound, self.levels, scale, norm)
        parts = runs(len(vector), self.lane)
        # What the base leaves in all lanes of a word together, modulo 2^64, taken off once.
        bases = [np.uint64((rounding.base << shift) % (1 << WORD_BITS)) for shift, _ in parts]
        base = np.add.reduce(np.array(bases))
        body = self.words(len(vector))
        joined = np.empty(body + (0 if tail is None else len(tail)), dtype=np.uint64)
        joined[body:] = () if tail is None else tail
        words = joined[:body]
        for start in range(0, body, _CHUNK):
            out = words[start : start + _CHUNK]
            drawn = rounding.draw(len(out) * len(parts), rng)
            for index, (shift, run) in enumerate(parts):
                part = vector[run][start : start + _CHUNK]
                levels = rounding.levels(part, drawn[index * len(out) :]).view(np.uint64)
                if not shift:  # the lowest lane is never short: there are as many words
                    np.subtract(levels, base, out=out)
                    continue
                levels <<= np.uint64(shift)
                out[: len(part)] += levels
                out[len(part) :] += bases[index]
        return joined

    def decode(self, words: NDArray[np.uint64], length: int, clients: int) -> NDArray[np.float64]:
        """Turn summed words into the sum of the clients' values.

        Args:
            words: Sum modulo 2^64 of `clients` encoded vectors.
            length: Values in a vector.
            clients: How many were summed, from 1 to `self.clients`.

        Returns:
            The sum, shape `(length,)`, dtype float64.

        Raises:
            ParameterError: More clients than the plan allows, or words of another length.
        """
        if not 1 <= clients <= self.clients:
            raise ParameterError(f"clients must be in [1, {self.clients}], got {clients}")
        total = unpack(words, self.lane, length).astype(np.float64)
        total *= self.step
        total -= clients * self.bound
        return total


def plan(
    clients: int, clip_norm: float, error: float, max_weight: int = 10_000, examples: float = 1.0
) -> LanePlan:
    """Pick the narrowest lane that meets an error, and use all of its room.

    Args:
        clients: Most clients that are ever summed.
        clip_norm: Bound on an update: on each coordinate, or under `clip="norm"` its L2 norm.
        error: Root-mean-square error of a coordinate of the mean over `clients` that is still
            acceptable, in the update's unit.
        max_weight: Clamp on a client's number of examples, as in the policy; 1 for uniform
            weights, which take narrower lanes.
        examples: Fewest examples that a client has, in the mean over a cohort. The more there
            are, the narrower the lane; 1 holds for everybody.

    Returns:
        The plan; its `rms_error(clients, examples / max_weight)` is at most `error`.

    Raises:
        ParameterError: A value is out of range, or no lane is fine enough.

    Example:
        >>> chosen = plan(clients=64, clip_norm=1.0, error=1e-5, max_weight=1)
        >>> chosen.lane, chosen.levels
        (21, 32768)
        >>> plan(clients=64, clip_norm=1.0, error=1e-4).bytes_per_parameter
        4.0
    """
    if not (math.isfinite(error) and error > 0):
        raise ParameterError(f"error must be positive and finite, got {error}")
    if clients < 1:
        raise ParameterError(f"clients must be at least 1, got {clients}")
    if max_weight < 1 or not (math.isfinite(examples) and examples > 0):
        raise ParameterError(
            f"max_weight must be at least 1 and examples positive, got {max_weight} and {examples}"
        )
    weight = min(1.0, examples / max_weight)
    for lane in LANES:
        levels = min(MAX_LEVELS, ((1 << lane) - 1) // clients + 1)
        if levels < 2:
            continue
        chosen = LanePlan(clip_norm, levels, lane, clients)
        if chosen.rms_error(clients, weight) <= error:
            return replace(chosen, max_weight=max_weight)
    raise ParameterError(
        f"no lane brings the error of {clients} clients at clip norm {clip_norm:g} and weights "
        f"from {examples:g} to {max_weight} down to {error:g}; ask for a larger error, a smaller "
        "clip norm or max_weight, or say how many examples a client has at least"
    )


def integer_plan(clients: int, magnitude: int) -> LanePlan:
    """Plan for vectors that are integers already, such as discretised noise: nothing is rounded.

    Args:
        clients: Most clients that are ever summed.
        magnitude: Largest absolute value of a coordinate, from 1 to 2^30 − 1.

    Returns:
        A plan of step 1: integers in `[−magnitude, magnitude]` are summed exactly.

    Raises:
        ParameterError: A value is out of range.

    Example:
        >>> integer_plan(clients=100, magnitude=2**20).lane
        32
    """
    levels = 2 * magnitude + 1
    if not 1 <= magnitude < MAX_LEVELS // 2:
        raise ParameterError(f"magnitude must be in [1, 2^30 - 1], got {magnitude}")
    return LanePlan(float(magnitude), levels, lane_for(levels, clients), clients, max_weight=1)
