"""What every plan offers, and the tag under which it travels."""

import struct
from typing import ClassVar, Protocol

import numpy as np
from numpy.typing import NDArray

from secure.errors import ParameterError
from secure.he._arguments import whole
from secure.he.params import HEParams

TAG = struct.Struct("<B4I")
TAG_BYTES = TAG.size
_MAX_SIDE = 1 << 24


class Plan(Protocol):
    """What the client needs to pack its input and to read the result."""

    KIND: ClassVar[int]

    @property
    def params(self) -> HEParams:
        """Encryption parameters that the plan was made for."""
        ...

    @property
    def tag(self) -> bytes:
        """The plan on the wire."""
        ...

    @property
    def input_ciphertexts(self) -> int:
        """Ciphertexts of one input."""
        ...

    @property
    def output_ciphertexts(self) -> int:
        """Ciphertexts of one result."""
        ...

    @property
    def steps(self) -> tuple[int, ...]:
        """Rotations that need an evaluation key, ascending."""
        ...

    @property
    def entries(self) -> int:
        """Entries of a decrypted result."""
        ...

    @property
    def relinearises(self) -> bool:
        """Whether a relinearisation key is needed."""
        ...

    def encode(self, values: NDArray[np.float64]) -> NDArray[np.complex128]:
        """Pack an input into slots: shape `(input_ciphertexts, slots)`."""
        ...

    def decode(self, slots: NDArray[np.complex128]) -> NDArray[np.float64]:
        """Read a result from slots of shape `(output_ciphertexts, slots)`."""
        ...


def make_tag(kind: int, *numbers: int) -> bytes:
    """Return the tag of a plan: its kind and up to four sizes."""
    return TAG.pack(kind, *(*numbers, 0, 0, 0, 0)[:4])


def power_of_two(count: int) -> int:
    """Return the smallest power of two that is at least `count`."""
    return 1 << (count - 1).bit_length()


def require_sides(*sides: int) -> None:
    """Refuse sizes that no layer has."""
    if any(not 1 <= whole(side, "a size") <= _MAX_SIDE for side in sides):
        raise ParameterError(f"sizes must be in [1, {_MAX_SIDE}], got {list(sides)}")


def as_batch(values: NDArray[np.float64], width: int, batch: int) -> NDArray[np.float64]:
    """Return `values` as `(batch, width)`, or say what was expected."""
    array = np.asarray(values, dtype=np.float64)
    if array.ndim == 1 and batch == 1:
        array = array[None]
    if array.shape != (batch, width):
        raise ParameterError(f"input of shape {(batch, width)} expected, got {array.shape}")
    return array
