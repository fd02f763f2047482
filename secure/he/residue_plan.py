"""The layout of one ciphertext a feature, tokens in the slots."""

from dataclasses import dataclass
from typing import ClassVar

import numpy as np
from numpy.typing import NDArray

from secure.he._plan import as_batch, make_tag, require_sides
from secure.he.params import HEParams


@dataclass(frozen=True)
class ResiduePlan:
    """One ciphertext a feature, tokens in its slots: the layer becomes a product of residues.

    No rotation, no evaluation key, no rescaling: a matrix of integers times the matrix of
    residues, exact in float64 BLAS. Bae, Cheon, Hanrot, Park and Stehlé, "Plaintext-Ciphertext
    Matrix Multiplication and FHE Bootstrapping: Fast and Fused", Crypto 2024 (ePrint 2024/1284),
    and "Fast Homomorphic Linear Algebra with BLAS", arXiv 2503.16080. Two tokens share a slot.

    Args:
        params: Encryption parameters; one prime is enough.
        in_features: Width of the input.
        out_features: Width of the result.
        batch: Tokens.
    """

    KIND: ClassVar[int] = 2
    params: HEParams
    in_features: int
    out_features: int
    batch: int

    def __post_init__(self) -> None:
        require_sides(self.in_features, self.out_features, self.batch)

    @property
    def tag(self) -> bytes:
        """The plan on the wire."""
        return make_tag(self.KIND, self.in_features, self.out_features, self.batch)

    @property
    def token_blocks(self) -> int:
        """Ciphertexts that one feature of all tokens takes."""
        return -(-self.batch // (2 * self.params.slots))

    @property
    def input_ciphertexts(self) -> int:
        """Ciphertexts of the whole batch."""
        return self.token_blocks * self.in_features

    @property
    def output_ciphertexts(self) -> int:
        """Ciphertexts of the whole result."""
        return self.token_blocks * self.out_features

    @property
    def steps(self) -> tuple[int, ...]:
        """No rotation."""
        return ()

    @property
    def entries(self) -> int:
        """Entries of a decrypted result."""
        return self.batch * self.out_features

    @property
    def relinearises(self) -> bool:
        """No product of ciphertexts."""
        return False

    def encode(self, values: NDArray[np.float64]) -> NDArray[np.complex128]:
        """Pack `(batch, in_features)` into slots, block by block, feature by feature."""
        rows = as_batch(values, self.in_features, self.batch)
        slots = self.params.slots
        padded = np.zeros((self.token_blocks * 2 * slots, self.in_features))
        padded[: self.batch] = rows
        halves = padded.reshape(self.token_blocks, 2, slots, self.in_features)
        packed = halves[:, 0] + 1j * halves[:, 1]
        return packed.transpose(0, 2, 1).reshape(self.input_ciphertexts, slots)

    def decode(self, slots: NDArray[np.complex128]) -> NDArray[np.float64]:
        """Read `(batch, out_features)` from the slots of the result."""
        packed = slots.reshape(self.token_blocks, self.out_features, -1).transpose(0, 2, 1)
        rows = np.stack([packed.real, packed.imag], axis=1)
        return rows.reshape(-1, self.out_features)[: self.batch]
