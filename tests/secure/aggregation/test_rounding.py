"""Stochastic rounding: no bias, no level beyond the last, and a norm that is never understated."""

import math
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from secure.aggregation import LANES, LanePlan, pack
from secure.aggregation._payload import clipped
from secure.aggregation._policy import Policy
from secure.aggregation._rounding import norm_at_most
from secure.random import SecureRandom

RNG = SecureRandom()
FLOATS = st.floats(-(2.0**100), 2.0**100, width=32)


def _exact_square(vector) -> Fraction:
    return sum((Fraction(float(x)) ** 2 for x in vector), Fraction(0))


@given(st.lists(FLOATS, max_size=40), st.sampled_from([np.float32, np.float64]))
def test_the_norm_is_never_understated(values, dtype):
    vector = np.array(values, dtype=dtype)
    bound = norm_at_most(vector)
    assert Fraction(bound) ** 2 >= _exact_square(vector)
    assert bound <= math.sqrt(math.fsum(float(x) ** 2 for x in vector)) * (1 + 1e-9) + 1e-150


def test_the_norm_of_many_like_values_is_not_understated():
    vector = np.full(100_003, np.float32(0.1))
    assert Fraction(norm_at_most(vector)) ** 2 >= Fraction(float(vector[0])) ** 2 * len(vector)


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_the_norm_of_what_is_not_finite_is_not_finite(bad):
    vector = np.zeros(70_000, dtype=np.float32)
    vector[66_000] = bad
    assert not math.isfinite(norm_at_most(vector))


@given(st.lists(FLOATS, min_size=1, max_size=20), st.floats(1e-6, 1e6))
def test_the_factor_brings_the_norm_inside_the_bound(values, bound):
    vector = np.array(values, dtype=np.float32)
    policy = Policy(LanePlan(bound, 1 << 15, 21, 64), clip=True)
    factor, norm = clipped(vector, policy)
    assert factor <= 1
    assert Fraction(factor) ** 2 * _exact_square(vector) <= Fraction(bound) ** 2
    assert factor * norm <= bound or factor == 1


@settings(max_examples=60)
@given(
    st.sampled_from([2, 3, 1000, 1 << 15, 1 << 19, (1 << 19) + 1, 1 << 31]),
    st.floats(1e-6, 1e6),
    st.booleans(),
)
def test_no_level_is_beyond_the_last(levels, bound, told):
    lanes = LanePlan(bound, levels, 64, 2)
    edge = np.array([bound, -bound] * 500)
    edge[::4] *= 1 - 2**-52
    norm = bound if told else math.inf  # of one value: the largest that a norm lets pass
    words = lanes.encode(edge, RNG, 1.0, norm)
    assert int(words.max()) <= levels - 1
    assert int(words[1]) == 0
    assert int(words[2]) == levels - 1


@pytest.mark.parametrize("levels", [1 << 15, (1 << 19) + 1, 1 << 31])
def test_rounding_has_no_bias(levels):
    # Mean of 200,000 roundings of one fraction: 5 standard errors, false alarms 6e-7 each.
    lanes = LanePlan(1.0, levels, 64, 2)
    count, position = 200_000, 0.3
    value = (np.floor(levels / 3) + position) * lanes.step - 1.0
    mean = float(lanes.quantise(np.full(count, value), RNG).astype(np.float64).mean())
    want = (value + 1.0) / lanes.step
    assert abs(mean - want) < 5 * math.sqrt(position * (1 - position) / count) + 2**-19


@pytest.mark.parametrize("lane", LANES)
@pytest.mark.parametrize("length", [0, 1, 2, 5, 98_305, 131_075])
def test_encoding_is_quantising_and_packing(lane, length):
    lanes = LanePlan(500.0, 1001, lane, 4)  # step 1: integers are kept exactly
    values = np.random.default_rng(length).integers(-500, 501, length).astype(np.float32)
    exact = (values + 500).astype(np.uint64)
    assert np.array_equal(lanes.quantise(values, RNG), exact)
    assert np.array_equal(lanes.encode(values, RNG), pack(exact, lane))
    assert np.array_equal(
        lanes.encode(values, RNG, 1.0, 0.0 if not length else 500.0), pack(exact, lane)
    )
