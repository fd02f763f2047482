"""The layout of one ciphertext a vector: replicated diagonals, baby and giant steps."""

import functools
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
from numpy.typing import NDArray

from secure.errors import ParameterError
from secure.he._plan import as_batch, make_tag, power_of_two, require_sides
from secure.he.params import HEParams


@dataclass(frozen=True)
class RotationPlan:
    """One ciphertext a vector: replicated diagonals, baby steps and giant steps.

    With L = max(n, m), slot `j * stride + b` of the input holds `x[(j + b*T) mod n]`, so that
    copy b meets its own T of the K = min(n, m) generalised diagonals: a multiplication that
    would take K rotations takes about 2*sqrt(T). Two outputs share a complex slot. Halevi and
    Shoup, "Algorithms in HElib", Crypto 2014; baby and giant steps as in Halevi and Shoup,
    "Faster Homomorphic Linear Transformations in HElib", Crypto 2018.

    Args:
        params: Encryption parameters, with a special prime.
        in_features: Width of the input, any positive number.
        out_features: Width of the result, any positive number.
        batch: Vectors that are sent together, each in ciphertexts of its own.
    """

    KIND: ClassVar[int] = 1
    params: HEParams
    in_features: int
    out_features: int
    batch: int = 1

    def __post_init__(self) -> None:
        require_sides(self.in_features, self.out_features, self.batch)
        if not self.params.rotates:
            raise ParameterError(
                "rotations need a special prime: choose parameters with two primes"
            )

    @property
    def tag(self) -> bytes:
        """The plan on the wire."""
        return make_tag(self.KIND, self.in_features, self.out_features, self.batch)

    @functools.cached_property
    def n(self) -> int:
        """Input entries of one ciphertext, padded to a power of two."""
        return min(power_of_two(self.in_features), self.params.slots)

    @functools.cached_property
    def m(self) -> int:
        """Complex outputs of one ciphertext, padded to a power of two."""
        return min(power_of_two(-(-self.out_features // 2)), self.params.slots)

    @property
    def input_blocks(self) -> int:
        """Ciphertexts of one input vector."""
        return -(-self.in_features // self.n)

    @property
    def output_blocks(self) -> int:
        """Ciphertexts of one result vector."""
        return -(-self.out_features // (2 * self.m))

    @property
    def input_ciphertexts(self) -> int:
        """Ciphertexts of the whole batch."""
        return self.batch * self.input_blocks

    @property
    def output_ciphertexts(self) -> int:
        """Ciphertexts of the whole result."""
        return self.batch * self.output_blocks

    @property
    def stride(self) -> int:
        """Slots between neighbouring entries."""
        return self.params.slots // max(self.n, self.m)

    @property
    def copies(self) -> int:
        """Copies of the input that meet diagonals of their own."""
        return min(self.stride, min(self.n, self.m))

    @property
    def diagonals(self) -> int:
        """Diagonals of one copy: T."""
        return min(self.n, self.m) // self.copies

    @functools.cached_property
    def baby_steps(self) -> int:
        """Baby steps, a power of two: each input block pays them, each output block the rest."""
        choices = [1 << k for k in range(self.diagonals.bit_length())]
        return min(
            choices,
            key=lambda g: self.input_blocks * g + self.output_blocks * (self.diagonals // g),
        )

    @property
    def giant_steps(self) -> int:
        """Giant steps."""
        return self.diagonals // self.baby_steps

    @property
    def folds(self) -> int:
        """Parts of a wide input that meet the same outputs."""
        return max(self.n // self.m, 1)

    @property
    def steps(self) -> tuple[int, ...]:
        """Rotations that need an evaluation key, ascending."""
        count = self.baby_steps + (self.giant_steps > 1)
        return tuple(step * self.stride for step in range(1, count))

    @property
    def entries(self) -> int:
        """Entries of a decrypted result."""
        return self.batch * self.out_features

    @property
    def relinearises(self) -> bool:
        """No product of ciphertexts."""
        return False

    @property
    def rotations(self) -> int:
        """Rotations that one vector takes."""
        giants = self.output_blocks * (self.giant_steps - 1)
        return self.input_blocks * (self.baby_steps - 1) + giants

    @property
    def products(self) -> int:
        """Products with an encoded diagonal that one vector takes."""
        return self.input_blocks * self.output_blocks * self.diagonals

    def positions(self) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Return for each slot its entry j and its copy b."""
        slot = np.arange(self.params.slots)
        return slot // self.stride, slot % self.stride

    def encode(self, values: NDArray[np.float64]) -> NDArray[np.complex128]:
        """Pack `(batch, in_features)`, or one vector, into slots."""
        rows = as_batch(values, self.in_features, self.batch)
        padded = np.zeros((self.batch, self.input_blocks * self.n))
        padded[:, : self.in_features] = rows
        entry, copy = self.positions()
        source = (entry + copy * self.diagonals) % self.n
        blocks = padded.reshape(self.input_ciphertexts, self.n)
        return blocks[:, source].astype(np.complex128)

    def decode(self, slots: NDArray[np.complex128]) -> NDArray[np.float64]:
        """Read `(batch, out_features)`: the copies' and folds' partial sums are added here.

        The client decrypts all slots anyway, and an addition of its own spares the server a
        rotation for every doubling.
        """
        entries = slots.reshape(len(slots), -1, self.stride)[:, :, : self.copies].sum(axis=2)
        kept = entries[:, : self.folds * self.m].reshape(len(slots), self.folds, self.m)
        sums = kept.sum(axis=1)
        pairs = np.concatenate([sums.real, sums.imag], axis=1)
        return pairs.reshape(self.batch, -1)[:, : self.out_features]
