"""Lanes and plans: no overflow, no bias, the error that was promised."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from secure.aggregation import LANES, LanePlan, integer_plan, lane_for, pack, plan, unpack
from secure.errors import ParameterError
from secure.random import SecureRandom

RNG = SecureRandom()


@given(st.sampled_from(LANES), st.integers(0, 40), st.integers(0, 2**63))
def test_unpack_undoes_pack(lane, length, seed):
    values = np.random.default_rng(seed).integers(0, 1 << min(lane, 63), length, dtype=np.uint64)
    words = pack(values, lane)
    assert len(words) == -(-length // (64 // lane))
    assert unpack(words, lane, length).tolist() == values.tolist()


@given(st.sampled_from(LANES), st.integers(1, 60), st.integers(1, 9), st.data())
def test_adding_words_adds_lanes(lane, clients, length, data):
    top = min(((1 << lane) - 1) // clients, (1 << 31) - 1)
    vectors = [
        np.array(
            data.draw(st.lists(st.integers(0, top), min_size=length, max_size=length)),
            dtype=np.uint64,
        )
        for _ in range(min(clients, 5))
    ]
    vectors += [np.full(length, top, dtype=np.uint64)] * (clients - len(vectors))
    total = np.zeros(len(pack(vectors[0], lane)), dtype=np.uint64)
    for vector in vectors:
        total += pack(vector, lane)
    expected = [sum(int(vector[at]) for vector in vectors) for at in range(length)]
    assert unpack(total, lane, length).tolist() == expected


def test_lanes_of_another_width_are_refused():
    with pytest.raises(ParameterError, match="lane"):
        pack(np.zeros(3, dtype=np.uint64), 20)
    with pytest.raises(ParameterError, match="words"):
        unpack(np.zeros(3, dtype=np.uint64), 32, 7)
    with pytest.raises(ParameterError, match="overflow"):
        lane_for(1 << 60, 1 << 10)


@pytest.mark.parametrize(
    ("levels", "clients", "lane", "size"),
    [
        (1 << 10, 64, 16, 2),
        (1 << 14, 128, 21, 8 / 3),
        (1 << 11, 1000, 21, 8 / 3),
        (1 << 22, 1000, 32, 4),
    ],
)
def test_the_lanes_of_the_literature(levels, clients, lane, size):
    assert lane_for(levels, clients) == lane
    assert LanePlan(1.0, levels, lane, clients).bytes_per_parameter == size


@given(
    st.integers(1, 2000),
    st.floats(1e-3, 1e3),
    st.floats(1e-8, 1e-1),
    st.integers(1, 1 << 20),
    st.floats(1e-2, 1e6),
)
def test_s10_a_plan_keeps_its_promise_or_is_refused(clients, clip_norm, relative, most, examples):
    """S10: also under weights, whose largest one the lanes have to hold."""
    error = clip_norm * relative
    weight = min(1.0, examples / most)
    try:
        chosen = plan(clients, clip_norm, error, most, examples)
    except ParameterError:
        # Even the finest plan there is would miss the error.
        levels = min(1 << 31, ((1 << 64) - 1) // clients + 1)
        assert LanePlan(clip_norm, levels, 64, clients).rms_error(clients, weight) > error
        return
    assert chosen.rms_error(clients, weight) <= error
    assert clients * (chosen.levels - 1) < 1 << chosen.lane
    for lane in [lane for lane in LANES if lane < chosen.lane]:
        levels = ((1 << lane) - 1) // clients + 1
        assert (
            levels < 2
            or LanePlan(clip_norm, levels, lane, clients).rms_error(clients, weight) > error
        )


@pytest.mark.parametrize("bad", [0.0, -1.0, math.nan, math.inf])
def test_bad_bounds_and_errors_are_refused(bad):
    with pytest.raises(ParameterError):
        plan(10, bad, 1e-3)
    with pytest.raises(ParameterError):
        plan(10, 1.0, bad)
    with pytest.raises(ParameterError):
        plan(0, 1.0, 1e-3)
    with pytest.raises(ParameterError):
        integer_plan(10, 0)


@pytest.mark.parametrize("levels", [2, 3, 1000, 1 << 22, 1 << 31])
def test_rounding_is_unbiased(levels):
    # 10^6 draws of one value: the mean is off by less than 5.5 sigma but for a chance of 4e-8.
    chosen = LanePlan(1.0, levels, 64, 1)
    value = 0.3
    got = chosen.decode(chosen.encode(np.full(1_000_000, value), RNG), 1_000_000, 1)
    assert abs(got.mean() - value) <= 5.5 * chosen.step / 2 / 1000
    assert np.abs(got - value).max() <= chosen.step * (1 + 1e-6)
    exact = (value + 1) / chosen.step
    # A plan that truncated instead would be off by the fraction, which this tells apart.
    if levels == 1000:
        assert abs(math.floor(exact) - exact) * chosen.step > 5.5 * chosen.step / 2 / 1000


def test_the_rounding_error_is_the_promised_one():
    chosen = plan(clients=9, clip_norm=1.0, error=1e-3)
    values = np.random.default_rng(3).uniform(-1, 1, (9, 20_000))
    total = sum(chosen.encode(each, RNG) for each in values)
    error = chosen.decode(total, 20_000, 9) / 9 - values.mean(axis=0)
    # Uniform fractions give step/√6 for each client; rms_error bounds it by step/2.
    assert np.sqrt(np.mean(error**2)) == pytest.approx(chosen.step / math.sqrt(6 * 9), rel=0.05)
    assert np.sqrt(np.mean(error**2)) < chosen.rms_error(9)


@given(st.integers(1, (1 << 30) - 1), st.integers(0, 2**32))
def test_integers_are_kept_exactly(magnitude, seed):
    chosen = integer_plan(3, magnitude)
    values = np.random.default_rng(seed).integers(-magnitude, magnitude + 1, 20)
    values[:2] = -magnitude, magnitude
    words = sum(chosen.encode(values.astype(np.float64), RNG) for _ in range(3))
    assert chosen.decode(words, 20, 3).tolist() == (3 * values).tolist()


@pytest.mark.parametrize("lane", LANES)
def test_encode_is_pack_after_quantise_across_chunks(lane):
    chosen = LanePlan(1000.0, 2001, lane, 5)
    values = np.random.default_rng(1).integers(-1000, 1001, 100_003).astype(np.float64)
    words = chosen.encode(values, RNG)
    assert np.array_equal(words, pack(chosen.quantise(values, RNG), lane))
    assert np.array_equal(chosen.quantise(values, RNG), (values + 1000).astype(np.uint64))


@pytest.mark.parametrize("scale", [1.0, 0.5])
def test_values_beyond_the_bound_are_refused_and_rounding_errors_are_not(scale):
    chosen = LanePlan(1.0, 1001, 32, 5)
    edge = np.array([1 + 1e-7, -1 - 1e-7, 0.0]) / scale
    assert chosen.quantise(edge, RNG, scale).tolist() == [1000, 0, 500]
    for bad in (1.001, -1.001, np.nan, np.inf, -np.inf):
        with pytest.raises(ParameterError, match="beyond"):
            chosen.encode(np.array([0.0, bad / scale]), RNG, scale)


def test_decode_refuses_more_clients_than_planned():
    chosen = LanePlan(1.0, 100, 16, 5)
    words = chosen.encode(np.zeros(3), RNG)
    for clients in (0, 6):
        with pytest.raises(ParameterError, match="clients"):
            chosen.decode(words, 3, clients)
