"""A layer whose input repeats in the slots with its own period: what a chain is made of."""

from typing import Any

import numpy as np
from numpy.typing import NDArray

from secure.he._exact import encode_periodic
from secure.he._rotations import sum_of_products, unit
from secure.he._seal import engine
from secure.he.chain_plan import periodic_folds, periodic_split
from secure.he.errors import DepthError
from secure.he.keys import EvaluationKeys
from secure.he.params import HEParams
from secure.random import SecureRandom


class PeriodicLayer:
    """Encoded diagonals of an n to m layer; input and result repeat with periods n and m.

    Args:
        params: Encryption parameters.
        weight: Shape `(m, n)`, powers of two, real or complex.
        level: Level of the input.
        scale: Scale of the weights.
    """

    def __init__(self, params: HEParams, weight: NDArray, level: int, scale: float) -> None:
        m, n = weight.shape
        self._params = params
        self._folds = periodic_folds(n, m)
        baby, giant = periodic_split(n, m)
        self._baby = baby
        dither = SecureRandom()
        slot = np.arange(max(n, m))
        self._diagonals: list[list[Any]] = []
        for big in range(giant):
            row = []
            for small in range(baby):
                values = weight[slot % m, (slot + big * baby + small) % n]
                values = np.roll(values, big * baby)
                plain = encode_periodic(params, values, scale, level, dither)
                row.append(None if plain.is_zero() else plain)
            self._diagonals.append(row)
        if not any(plain for row in self._diagonals for plain in row):
            self._diagonals[0][0] = unit(params, scale, level)

    def apply(self, ciphertext: Any, keys: EvaluationKeys) -> Any:
        """Return the product, at the product of the scales."""
        seal = engine(self._params)
        babies = [ciphertext]
        babies += [seal.rotate(ciphertext, step, keys.galois) for step in range(1, self._baby)]
        total = None
        for row in reversed(self._diagonals):
            if total is not None:
                total = seal.rotate(total, self._baby, keys.galois)
            inner = sum_of_products(seal, [babies], [row])
            if inner is None:
                continue
            if total is None:
                total = inner
            else:
                seal.evaluator.add_inplace(total, inner)
        for step in self._folds:
            seal.evaluator.add_inplace(total, seal.rotate(total, step, keys.galois))
        return total


def add_periodic(params: HEParams, ciphertext: Any, values: NDArray) -> None:
    """Add public values that repeat with their own period, at the ciphertext's scale and level."""
    if not np.any(values):
        return
    seal = engine(params)
    plain = encode_periodic(params, values, ciphertext.scale, seal.level_of(ciphertext))
    seal.evaluator.add_plain_inplace(ciphertext, plain)


def rescale(params: HEParams, ciphertext: Any) -> Any:
    """Divide by the last prime, and drop it.

    Raises:
        DepthError: Only one prime is left.
    """
    seal = engine(params)
    if seal.level_of(ciphertext) == params.depth:
        raise DepthError(
            f"no level is left after {params.depth} rescalings: choose parameters of more depth"
        )
    seal.evaluator.rescale_to_next_inplace(ciphertext)
    return ciphertext


def pair_rows(weight: NDArray[np.float64], width: int, m: int) -> NDArray[np.complex128]:
    """Return `(m, width)` complex: row j holds outputs j and j + m."""
    padded = np.zeros((2 * m, width))
    padded[: weight.shape[0], : weight.shape[1]] = weight
    return padded[:m] + 1j * padded[m:]


def pair(values: NDArray[np.float64], m: int) -> NDArray[np.complex128]:
    """Return `(m,)` complex: entry j holds values j and j + m."""
    padded = np.zeros(2 * m)
    padded[: len(values)] = values
    return padded[:m] + 1j * padded[m:]


def pair_bound(values: NDArray[np.float64], m: int) -> float:
    """Return the largest magnitude of a complex slot that holds values j and j + m."""
    return float(np.abs(pair(values, m)).max())
