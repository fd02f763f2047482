"""Residues as bytes: round trip, size, refusals."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from secure.he import WireError
from secure.he._pack import pack, packed_bytes, unpack


@settings(max_examples=100, deadline=None, derandomize=True)
@given(bits=st.integers(1, 64), eighths=st.integers(1, 9), seed=st.integers(0, 2**32))
def test_round_trip_at_exactly_the_bits_of_the_prime(bits, eighths, seed):
    count = 8 * eighths
    rng = np.random.default_rng(seed)
    words = rng.integers(0, 2**bits - 1, count, dtype=np.uint64, endpoint=True)
    data = pack(words, bits)
    assert len(data) == packed_bytes(count, bits) == count * bits // 8
    assert np.array_equal(unpack(data, count, bits, 2**bits), words)


def test_a_word_that_is_no_residue_is_refused():
    prime = (1 << 51) - 21
    words = np.zeros(8, dtype=np.uint64)
    words[3] = prime
    with pytest.raises(WireError, match="below its prime"):
        unpack(pack(words, 51), 8, 51, prime)
    words[3] -= 1
    assert unpack(pack(words, 51), 8, 51, prime)[3] == prime - 1


@pytest.mark.parametrize("size", [0, 50, 52])
def test_another_length_is_refused(size):
    with pytest.raises(WireError, match="take 51 bytes"):
        unpack(bytes(size), 8, 51, 1 << 51)
