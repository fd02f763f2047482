"""The ring: rounding, shifts and exact products, against Python's integers."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from secure.errors import ParameterError
from secure.smpc import _ring

words = st.integers(-(2**63), 2**63 - 1)


def _wrap(value):
    return (value + 2**63) % 2**64 - 2**63


@given(st.floats(-(2.0**40), 2.0**40), st.integers(0, 20))
def test_encoding_rounds_to_the_nearest(value, bits):
    code = int(_ring.encode(torch.tensor([value], dtype=torch.float64), bits))
    assert abs(code - value * 2**bits) <= 0.5


@given(words)
def test_decode_of_negative_words_is_not_off_by_one(word):
    # CrypTen 0.4.1 decodes −131071 as −2.0 + … off by exactly one.
    decoded = float(_ring.decode(torch.tensor([word]), 16))
    assert decoded == pytest.approx(word / 65536, rel=1e-15)


@pytest.mark.parametrize("value", [float("nan"), float("inf"), 2.0**46])
def test_encoding_refuses_what_has_no_fixed_point(value):
    with pytest.raises(ParameterError, match="fixed point"):
        _ring.encode(torch.tensor([value]), 16)


@given(words, st.integers(1, 63))
def test_shift_brings_zeros_in(word, bits):
    assert int(_ring.shift_right(torch.tensor([word]), bits)) == _wrap((word % 2**64) >> bits)


@settings(deadline=None, max_examples=25)
@given(st.integers(1, 40), st.integers(1, 300), st.integers(1, 40), st.integers(0, 2**32 - 1))
def test_products_are_exact_modulo_2_64(n, k, m, seed):
    rng = np.random.default_rng(seed)
    x = rng.integers(-(2**63), 2**63 - 1, (n, k), dtype=np.int64, endpoint=True)
    y = rng.integers(-(2**63), 2**63 - 1, (k, m), dtype=np.int64, endpoint=True)
    exact = torch.from_numpy((x.view(np.uint64) @ y.view(np.uint64)).view(np.int64))
    assert torch.equal(_ring.matmul(torch.from_numpy(x), torch.from_numpy(y)), exact)
    small = torch.from_numpy(y >> 42)
    product = _ring.SmallMatrix(small).rmatmul(torch.from_numpy(x))
    assert torch.equal(product, torch.from_numpy(x) @ small)


def test_extreme_words_multiply_exactly():
    x = torch.full((16, 4096), -1)
    y = torch.full((4096, 16), 2**63 - 1)
    assert torch.equal(_ring.matmul(x, y), x @ y)
    largest = torch.full((4096, 16), 2**22)
    assert torch.equal(_ring.SmallMatrix(largest).rmatmul(y.T.contiguous()), y.T @ largest)


def test_batched_products_are_exact():
    gen = torch.Generator().manual_seed(0)
    x = torch.randint(-(2**63), 2**63 - 1, (2, 3, 50, 64), generator=gen)
    y = torch.randint(-(2**63), 2**63 - 1, (2, 3, 64, 50), generator=gen)
    assert torch.equal(_ring.matmul(x, y), x @ y)
