"""Every protocol against plaintext, over its whole declared domain, with two parties."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from secure.errors import ParameterError
from secure.smpc import _attention, _norm, _ranking, _ring, _series
from secure.smpc._domains import norm_parameters, softmax_parameters
from secure.smpc._party import Share
from tests.secure.smpc.pairing import opened, run_protocol

SETTINGS = settings(deadline=None, max_examples=20)


def _generator(seed):
    return torch.Generator().manual_seed(seed)


@SETTINGS
@given(st.integers(1, 61), st.integers(1, 61), st.integers(0, 2**31))
def test_truncation_is_off_by_less_than_one(shift, size, seed):
    limit = 2**size
    x = torch.randint(-limit, limit, (200,), generator=_generator(seed))
    x[:2] = torch.tensor([limit - 1, -limit])
    results, channels, _ = run_protocol(
        lambda p, a: p.run(p.truncation(a.value, shift))[0], (x, None)
    )
    error = opened(results) - (x >> shift)
    assert set(error.tolist()) <= {0, 1}
    assert channels[0].traffic.rounds == 1


def test_truncation_never_fails_in_two_million():
    # CrypTen's own truncation fails with probability |x|/2^64: here half of them would.
    x = torch.randint(-(2**61), 2**61, (2_000_000,), generator=_generator(1))
    results, _, _ = run_protocol(lambda p, a: p.run(p.truncation(a.value, 16))[0], (x, None))
    error = opened(results) - (x >> 16)
    assert int(error.min()) >= 0
    assert int(error.max()) <= 1


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_truncation_never_fails_in_a_hundred_million():
    for seed in range(50):
        x = torch.randint(-(2**61), 2**61, (2_000_000,), generator=_generator(seed))
        results, _, _ = run_protocol(lambda p, a: p.run(p.truncation(a.value, 16))[0], (x, None))
        error = opened(results) - (x >> 16)
        assert 0 <= int(error.min()) <= int(error.max()) <= 1


def test_truncation_rounds_without_bias():
    # Rounds up with the probability of the fraction, 1/4: mean of 200,000, six sigma.
    x = torch.full((200_000,), 4 * 1000 + 1)
    results, _, _ = run_protocol(lambda p, a: p.run(p.truncation(a.value, 2))[0], (x, None))
    mean = float((opened(results) - 1000).double().mean())
    assert abs(mean - 0.25) < 6 * math.sqrt(0.25 * 0.75 / 200_000)


@pytest.mark.parametrize("shift", [0, 62])
def test_truncation_refuses_other_shifts(shift):
    with pytest.raises(ParameterError, match="1 to 61"):
        run_protocol(lambda p, a: p.run(p.truncation(a.value, shift))[0], (torch.zeros(1), 0))


@SETTINGS
@given(
    st.sampled_from(["gelu", "gelu_tanh", "quick_gelu", "tanh"]),
    st.floats(0.5, 12),
    st.sampled_from([16, 20, 34]),
    st.integers(0, 2**31),
)
def test_activations(name, radius, bits, seed):
    series = _series.fit(name, math.ceil(2 * radius) / 2, 3e-4)
    x = (torch.rand(300, generator=_generator(seed), dtype=torch.float64) * 2 - 1) * series.radius
    results, channels, _ = run_protocol(lambda p, a: p.run(p.series(a, series))[0], (x, bits))
    expected = torch.from_numpy(_series.FUNCTIONS[name][0](x.numpy()))
    assert float((opened(results) - expected).abs().max()) < 4e-4
    assert channels[0].traffic.rounds == 1


@SETTINGS
@given(st.integers(1, 9), st.integers(0, 2**31))
def test_lookup(bits, seed):
    generator = _generator(seed)
    index = torch.randint(0, 2**bits, (40,), generator=generator)
    tables = torch.randint(-(2**40), 2**40, (3, 2**bits), generator=generator)
    results, _, _ = run_protocol(
        lambda p, a: p.run(p.lookup(a.value, tables.to(a.value.device), bits))[0], (index, None)
    )
    assert torch.equal(opened(results), tables[:, index])


@SETTINGS
@given(st.integers(0, 2**31))
def test_products_broadcast(seed):
    generator = _generator(seed)
    x = torch.randint(-(2**63), 2**63 - 1, (3, 4, 5), generator=generator)
    y = torch.randint(-(2**63), 2**63 - 1, (3, 4, 1), generator=generator)
    results, _, _ = run_protocol(
        lambda p, a, b: p.run(p.product(a.value, b.value))[0], (x, None), (y, None)
    )
    assert torch.equal(opened(results), x * y)


@SETTINGS
@given(
    st.sampled_from([8, 48, 192, 768]),
    st.floats(-7, 5),
    st.booleans(),
    st.sampled_from([16, 34]),
    st.integers(0, 2**31),
)
def test_layer_norm(width, log_scale, centred, bits, seed):
    # The declared domain: variances within a factor 4 of the calibration's, either way.
    generator = _generator(seed)
    scale = 2.0**log_scale
    x = torch.randn(2, 6, width, generator=generator, dtype=torch.float64) * scale
    x = x * (2.0 ** (torch.rand(2, 6, 1, generator=generator, dtype=torch.float64) * 2 - 1))
    x = x + 3 * scale
    if not centred:
        x = x - 3 * scale
    centre = x - x.mean(-1, keepdim=True) if centred else x
    squares = (centre**2).sum(-1, keepdim=True)
    divisor = float(width) if centred else 1.0
    epsilon = 1e-5 if centred else 0.0
    ratio = width / 2.0 ** _norm.width_bits(width) if centred else 1.0
    p = norm_parameters("layer", width, centred, squares * ratio**2, divisor, epsilon * ratio**2)
    results, channels, _ = run_protocol(
        lambda party, a: _norm.normalise(party, a, p, 16)[0], (x, bits)
    )
    expected = centre / torch.sqrt(squares / divisor + epsilon)
    # The input itself has 16 bits: its rounding, relative to its scale, is not ours to mend.
    rounding = 2.0**-16 / scale * float(expected.abs().max())
    assert float((opened(results) - expected).abs().max()) < 2e-3 + 2 * rounding
    assert channels[0].traffic.rounds <= 7


@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("keys", [1, 2, 9, 50, 77])
@pytest.mark.parametrize("sigma", [0.01, 1.0, 4.0, 6.0])
def test_softmax(sigma, keys, causal):
    generator = _generator(keys)
    scores = torch.randn(2, keys, keys, generator=generator, dtype=torch.float64) * sigma
    value = torch.randn(2, keys, 5, generator=generator, dtype=torch.float64)
    p = softmax_parameters("layer", scores, value, causal)
    query, eye = scores, torch.eye(keys, dtype=torch.float64).expand(2, keys, keys)
    results, channels, _ = run_protocol(
        lambda party, q, k, v: _attention.attend(party, q, k, v, p),
        (query, 16),
        (eye, 16),
        (value, 16),
    )
    if causal:
        hidden = torch.ones(keys, keys, dtype=torch.bool).triu(1)
        scores = scores.masked_fill(hidden, -math.inf)
    expected = scores.softmax(-1) @ value
    assert float((opened(results) - expected).abs().max()) < 2e-3
    assert channels[0].traffic.rounds == 7 + 3 * p.squarings


def test_softmax_of_one_hot_values_is_within_a_thousandth():
    generator = _generator(0)
    scores = torch.randn(12, 50, 50, generator=generator, dtype=torch.float64) * 4
    eye = torch.eye(50, dtype=torch.float64).expand(12, 50, 50)
    p = softmax_parameters("layer", scores, eye, False)
    results, _, _ = run_protocol(
        lambda party, q, k, v: _attention.attend(party, q, k, v, p),
        (scores, 16),
        (eye, 16),
        (eye, 16),
    )
    assert float((opened(results) - scores.softmax(-1)).abs().max()) < 1e-3


@SETTINGS
@given(st.integers(0, 2**31))
def test_comparison_is_exact_over_its_range(seed):
    limit = 2**30
    x = torch.randint(-limit, limit, (300,), generator=_generator(seed))
    x[:5] = torch.tensor([0, -1, 1, limit - 1, -limit])
    results, channels, _ = run_protocol(lambda p, a: _ranking.at_least_zero(p, a.value), (x, None))
    assert torch.equal(opened(results), (x >= 0).to(torch.int64))
    assert channels[0].traffic.rounds == 5


@SETTINGS
@given(st.integers(1, 12), st.integers(0, 2**31), st.booleans())
def test_ranking_is_exact_and_breaks_ties_by_index(n, seed, ties):
    generator = _generator(seed)
    scores = torch.randn(3, n, generator=generator, dtype=torch.float64) * 100
    if ties:
        scores = scores.round() / 16
    code = _ring.encode(scores, 16)
    results, _, _ = run_protocol(
        lambda p, a: _ranking.top_k(p, Share(a.value, 16), n), (code, None)
    )
    expected = torch.argsort(code, dim=-1, descending=True, stable=True)
    assert torch.equal(opened(results), expected)
