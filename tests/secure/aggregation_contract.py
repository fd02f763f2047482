"""What every aggregator must do: one suite, subclassed by each back end.

A back end hands over one object with the shape of `Aggregator`; nothing else is asked of it:

    class TestMine(AggregatorContract):
        def make(self, clients: int, length: int, bound: float) -> Aggregator:
            return MyAggregator(...)

`make` builds an aggregator for `clients` vectors of shape `(length,)` whose L2 norm is at most
`bound`. The plain sum in float64 is the oracle.
"""

from collections.abc import Sequence
from typing import Protocol

import numpy as np
import pytest
from numpy.typing import NDArray

from secure.errors import SecureError


class Aggregator(Protocol):
    """Sums the clients' vectors, and nothing more.

    Attributes:
        tolerance: Largest absolute error of a coordinate of the sum that the back end promises
            for the clients and the bound it was made for.
    """

    tolerance: float

    def sum(self, vectors: Sequence[NDArray[np.float32]]) -> NDArray[np.float64]:
        """Return the sum of float32 vectors of shape `(length,)` as float64 `(length,)`.

        Raises a `SecureError` for vectors of unequal length, NaN or Inf.
        """
        ...


class AggregatorContract:
    """The suite; its subclasses say how an aggregator is made."""

    CLIENTS = 5
    LENGTH = 1000
    BOUND = 2.0

    def make(self, clients: int, length: int, bound: float) -> Aggregator:
        raise AssertionError("a subclass says how its aggregator is made")

    def vectors(self, clients: int, length: int, norm: float) -> list[NDArray[np.float32]]:
        rng = np.random.default_rng([clients, length])
        drawn = rng.normal(size=(clients, length))
        drawn *= norm / np.linalg.norm(drawn, axis=1, keepdims=True)
        return list(drawn.astype(np.float32))

    def check(self, clients: int, length: int, norm: float) -> None:
        aggregator = self.make(clients, length, self.BOUND)
        vectors = self.vectors(clients, length, norm)
        got = aggregator.sum(vectors)
        assert got.shape == (length,)
        assert got.dtype == np.float64
        assert 0 < aggregator.tolerance <= clients * self.BOUND / 100
        error = np.abs(got - np.sum(vectors, axis=0, dtype=np.float64))
        assert float(error.max()) <= aggregator.tolerance

    def test_sum_equals_the_plain_sum(self):
        self.check(self.CLIENTS, self.LENGTH, self.BOUND / 2)

    @pytest.mark.parametrize("length", [1, 2, 3, 17])
    def test_lengths_that_do_not_fill_a_word(self, length):
        self.check(self.CLIENTS, length, self.BOUND / 2)

    def test_at_the_bound_nothing_wraps(self):
        aggregator = self.make(self.CLIENTS, 2, self.BOUND)
        top = np.array([0.999 * self.BOUND, 0.0], dtype=np.float32)
        for sign in (1, -1):
            got = aggregator.sum([sign * top] * self.CLIENTS)
            assert np.allclose(got, sign * self.CLIENTS * top, atol=aggregator.tolerance, rtol=0)

    def test_zeros_give_zeros(self):
        aggregator = self.make(self.CLIENTS, 9, self.BOUND)
        got = aggregator.sum([np.zeros(9, dtype=np.float32)] * self.CLIENTS)
        assert float(np.abs(got).max()) <= aggregator.tolerance

    def test_the_inputs_are_left_as_they_were(self):
        vectors = self.vectors(self.CLIENTS, 50, self.BOUND / 2)
        before = [vector.copy() for vector in vectors]
        self.make(self.CLIENTS, 50, self.BOUND).sum(vectors)
        assert all(np.array_equal(old, new) for old, new in zip(before, vectors, strict=True))

    @pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
    def test_a_value_that_is_not_finite_is_refused(self, bad):
        vectors = self.vectors(self.CLIENTS, 10, self.BOUND / 2)
        vectors[1][3] = bad
        with pytest.raises(SecureError):
            self.make(self.CLIENTS, 10, self.BOUND).sum(vectors)

    def test_unequal_lengths_are_refused(self):
        vectors = self.vectors(self.CLIENTS, 10, self.BOUND / 2)
        vectors[2] = vectors[2][:-1]
        with pytest.raises(SecureError):
            self.make(self.CLIENTS, 10, self.BOUND).sum(vectors)
