"""Periodic layouts: two layers in a row, or one whose results show nothing but outputs."""

import functools
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
from numpy.typing import NDArray

from secure.errors import ParameterError
from secure.he._plan import as_batch, make_tag, power_of_two, require_sides
from secure.he.params import HEParams


@dataclass(frozen=True)
class ChainPlan:
    """Two linear layers in a row, with a square between them or nothing.

    The input fills the slots with period n, and so does the hidden vector: no copy may hold
    diagonals of its own, since nothing re-packs a vector between the layers.

    Args:
        params: Encryption parameters of depth 2 with a square, 1 without.
        in_features: Width of the input, at most the number of slots.
        hidden_features: Width between the layers, at most the number of slots.
        out_features: Width of the result, at most twice the number of slots.
        square: Whether the hidden vector is squared, entry by entry.
    """

    KIND: ClassVar[int] = 3
    params: HEParams
    in_features: int
    hidden_features: int
    out_features: int
    square: bool

    def __post_init__(self) -> None:
        require_sides(self.in_features, self.hidden_features, self.out_features)
        slots = self.params.slots
        if max(self.in_features, self.hidden_features, -(-self.out_features // 2)) > slots:
            raise ParameterError(f"a chained layer fits {slots} slots, or {2 * slots} outputs")
        if not self.params.rotates:
            raise ParameterError(
                "rotations need a special prime: choose parameters with two primes"
            )

    @property
    def tag(self) -> bytes:
        """The plan on the wire."""
        sizes = (self.in_features, self.hidden_features, self.out_features)
        return make_tag(self.KIND, *sizes, int(self.square))

    @functools.cached_property
    def sizes(self) -> tuple[int, int, int]:
        """Input, hidden and complex output widths, padded to powers of two."""
        outputs = power_of_two(-(-self.out_features // 2))
        return power_of_two(self.in_features), power_of_two(self.hidden_features), outputs

    @property
    def input_ciphertexts(self) -> int:
        """One."""
        return 1

    @property
    def output_ciphertexts(self) -> int:
        """One."""
        return 1

    @property
    def steps(self) -> tuple[int, ...]:
        """Rotations that need an evaluation key, ascending."""
        n, hidden, m = self.sizes
        pairs = ((n, hidden), (hidden, m)) if self.square else ((n, hidden), (hidden, m), (n, m))
        return tuple(sorted({step for pair in pairs for step in periodic_steps(*pair)}))

    @property
    def entries(self) -> int:
        """Entries of a decrypted result."""
        return self.out_features

    @property
    def relinearises(self) -> bool:
        """The square is a product of ciphertexts."""
        return self.square

    @property
    def period(self) -> int:
        """Slots after which an input repeats."""
        return self.sizes[0]

    def encode(self, values: NDArray[np.float64]) -> NDArray[np.complex128]:
        """Pack one vector `(in_features,)` into slots, with period n."""
        return _tiled(values, self.in_features, self.sizes[0], self.params.slots)

    def decode(self, slots: NDArray[np.complex128]) -> NDArray[np.float64]:
        """Read `(1, out_features)` from the slots of the result."""
        return _paired(slots, self.sizes[2], self.out_features)


@dataclass(frozen=True)
class PeriodicPlan:
    """One linear layer whose every slot holds an output: nothing else of W shows in a result.

    Args:
        params: Encryption parameters, with a special prime.
        in_features: Width of the input, at most the number of slots.
        out_features: Width of the result, at most twice the number of slots.
    """

    KIND: ClassVar[int] = 5
    params: HEParams
    in_features: int
    out_features: int

    def __post_init__(self) -> None:
        require_sides(self.in_features, self.out_features)
        slots = self.params.slots
        if max(self.in_features, -(-self.out_features // 2)) > slots:
            raise ParameterError(f"a periodic layer fits {slots} slots, or {2 * slots} outputs")
        if not self.params.rotates:
            raise ParameterError("rotations need a special prime: choose parameters with two")

    @property
    def tag(self) -> bytes:
        """The plan on the wire."""
        return make_tag(self.KIND, self.in_features, self.out_features)

    @property
    def sizes(self) -> tuple[int, int]:
        """Input and complex output widths, padded to powers of two."""
        return power_of_two(self.in_features), power_of_two(-(-self.out_features // 2))

    @property
    def input_ciphertexts(self) -> int:
        """One."""
        return 1

    @property
    def output_ciphertexts(self) -> int:
        """One."""
        return 1

    @property
    def steps(self) -> tuple[int, ...]:
        """Rotations that need an evaluation key, ascending."""
        return tuple(sorted(periodic_steps(*self.sizes)))

    @property
    def entries(self) -> int:
        """Entries of a decrypted result."""
        return self.out_features

    @property
    def relinearises(self) -> bool:
        """No product of ciphertexts."""
        return False

    @property
    def period(self) -> int:
        """Slots after which an input repeats."""
        return self.sizes[0]

    def encode(self, values: NDArray[np.float64]) -> NDArray[np.complex128]:
        """Pack one vector `(in_features,)` into slots, with period n."""
        return _tiled(values, self.in_features, self.sizes[0], self.params.slots)

    def decode(self, slots: NDArray[np.complex128]) -> NDArray[np.float64]:
        """Read `(1, out_features)` from the slots of the result."""
        return _paired(slots, self.sizes[1], self.out_features)


def _tiled(
    values: NDArray[np.float64], width: int, period: int, slots: int
) -> NDArray[np.complex128]:
    padded = np.zeros(period)
    padded[:width] = as_batch(values, width, 1)[0]
    return np.tile(padded, slots // period)[None].astype(np.complex128)


def _paired(slots: NDArray[np.complex128], m: int, width: int) -> NDArray[np.float64]:
    kept = slots[:, :m]
    return np.concatenate([kept.real, kept.imag], axis=1)[:, :width]


def periodic_split(n: int, m: int) -> tuple[int, int]:
    """Return baby and giant steps of an n to m layer whose input has period n."""
    diagonals = min(n, m)
    baby = 1 << (diagonals.bit_length() // 2)
    return baby, diagonals // baby


def periodic_folds(n: int, m: int) -> tuple[int, ...]:
    """Return the rotations that fold a wide input."""
    return tuple(m << k for k in range((n // m).bit_length() - 1))


def periodic_steps(n: int, m: int) -> set[int]:
    """Return all rotations of an n to m layer whose input has period n."""
    baby, giant = periodic_split(n, m)
    return {*range(1, baby + (giant > 1)), *periodic_folds(n, m)}
