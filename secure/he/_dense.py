"""Products of ciphertexts with many encoded diagonals, outside SEAL: exact, in float64 and uint64.

SEAL reduces each product by the prime, and adds it in a pass of its own. A gallery adds dozens of
products for each of its sums; here the sum is taken first, in 64-bit arithmetic that wraps, and
reduced once, with the quotient from a product in BLAS.
"""

import numpy as np
from numpy.typing import NDArray

# 64 terms below 2^51 * 2^51: the quotient of their sum, in float64, is off by less than 2^11, so
# that what is left of the sum stays below 2^62 and wraps to itself.
MAX_PRIME_BITS = 51
_TERMS = 64
_CHUNK_WORDS = 1 << 17  # weights that are turned to float64 at a time: they stay in the cache


class DenseProducts:
    """Encoded diagonals of all sums of a layer, one prime, position by position.

    Args:
        prime: At most 51 bits.
        degree: Coefficients of a polynomial: N.
        sums: Sums that are taken of the same ciphertexts.
        terms: Ciphertexts.
    """

    def __init__(self, prime: int, degree: int, sums: int, terms: int) -> None:
        self._prime = prime
        self._weights = np.zeros((degree, sums, terms), dtype=np.uint64)

    def put(self, index: int, term: int, residues: NDArray[np.uint64]) -> None:
        """Set the diagonal of one sum and one ciphertext, shape `(N,)`; others are zero."""
        self._weights[:, index, term] = residues

    def __call__(self, ciphertexts: NDArray[np.uint64]) -> NDArray[np.uint64]:
        """Return all sums of products.

        Args:
            ciphertexts: Residues, shape `(terms, 2, N)`, each below the prime.

        Returns:
            Residues, shape `(sums, 2, N)`, each below the prime.
        """
        degree, sums, terms = self._weights.shape
        inputs = np.ascontiguousarray(ciphertexts.transpose(2, 0, 1))
        shares = inputs.astype(np.float64) * (1.0 / self._prime)
        out = np.empty((sums, 2, degree), dtype=np.uint64)
        rows = max(_CHUNK_WORDS // (sums * min(terms, _TERMS)), 1)
        for start in range(0, degree, rows):
            at = slice(start, start + rows)
            total = self._sum(at, slice(0, _TERMS), inputs, shares)
            for first in range(_TERMS, terms, _TERMS):
                total += self._sum(at, slice(first, first + _TERMS), inputs, shares)
                total -= self._prime
                total += (total >> 63) & self._prime
            out[:, :, at] = total.transpose(1, 2, 0)
        return out

    def _sum(
        self,
        at: slice,
        terms: slice,
        inputs: NDArray[np.uint64],
        shares: NDArray[np.float64],
    ) -> NDArray[np.int64]:
        weights = self._weights[at, :, terms]
        quotient = np.rint(weights.astype(np.float64) @ shares[at, terms])
        left = (weights @ inputs[at, terms]).view(np.int64)
        left -= quotient.astype(np.int64) * self._prime
        # Small against 2^63 now; the second quotient is right but for one.
        left -= np.floor(left * (1.0 / self._prime)).astype(np.int64) * self._prime
        left += (left >> 63) & self._prime
        left -= self._prime
        left += (left >> 63) & self._prime
        return left
