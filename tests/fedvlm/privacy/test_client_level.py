"""Client-level DP: sensitivity under attack, the clip's quantile, empty rounds."""

import math
from fractions import Fraction

import dp_accounting
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fedvlm.errors import ConfigError
from fedvlm.privacy import SimulatedNoise
from fedvlm.privacy.clipping import AdaptiveClip, ClientMechanism, clip, release_round
from fedvlm.seeds import ExperimentSeed

SIZE = 6


class Silent(SimulatedNoise):
    """No noise: what is left is the exact sum, whose sensitivity can be measured."""

    def __init__(self):
        super().__init__(ExperimentSeed(0))

    def gaussian(self, std, size):
        return np.zeros(size)


HOSTILE = [
    np.zeros(SIZE),
    np.full(SIZE, np.nan),
    np.full(SIZE, np.inf),
    np.full(SIZE, 1e300),
    np.full(SIZE, 1e-300),
    np.full(SIZE, 3e38, dtype=np.float32),
    np.array([np.nan, 1, 1, 1, 1, 1]),
    np.arange(SIZE) * 1.0,
    -np.arange(SIZE) * 1e6,
]
WEIGHTS = [1.0, 0.3, 0.0, -5.0, 1e9, float("nan"), float("inf")]


@pytest.mark.parametrize("update", HOSTILE)
@pytest.mark.parametrize("weight", WEIGHTS)
def test_no_client_moves_the_sum_by_more_than_the_clip(update, weight):
    rng = np.random.default_rng(0)
    others = [rng.normal(size=SIZE) for _ in range(4)]
    mechanism = ClientMechanism(0.7, 1.0)
    without = release_round(mechanism, others, [1.0] * 4, SIZE, 5.0, Silent()).mean
    given = release_round(
        mechanism, [*others, update], [1.0] * 4 + [weight], SIZE, 5.0, Silent()
    ).mean
    assert np.isfinite(given).all()
    assert np.linalg.norm(given - without) * 5.0 <= 0.7 * (1 + 1e-12)  # the mean's own rounding


@pytest.mark.parametrize("update", HOSTILE)
def test_no_client_moves_the_clip_by_more_than_half_a_bit(update):
    adaptive = AdaptiveClip(quantile=0.5, rate=0.2, bit_std=2.0)
    mechanism = ClientMechanism(0.7, 1.0, 1.0, adaptive)
    others = [np.ones(SIZE) * x for x in (0.01, 0.02, 5, 6)]
    without = release_round(mechanism, others, [1.0] * 4, SIZE, 5.0, Silent()).next_clip_norm
    given = release_round(
        mechanism, [*others, update], [1.0] * 5, SIZE, 5.0, Silent()
    ).next_clip_norm
    assert abs(np.log(given / without)) <= 0.2 * 0.5 / 5.0 * (1 + 1e-9)


def _exact_norm(vector):
    """Norm in rational arithmetic, rounded down: no slack for whoever claims a bound."""
    return math.sqrt(sum(Fraction(float(x)) ** 2 for x in vector))


@given(
    st.lists(st.floats(width=32), min_size=1, max_size=6),
    st.floats(1e-30, 1e30),
    st.sampled_from([1.0, 1e-300, 1e270]),
)
def test_n5_the_clip_is_never_exceeded(values, clip_norm, stretch):
    """N5: whatever the sizes, denormal factors and all."""
    with np.errstate(over="ignore"):
        got = clip(np.array(values) * stretch, clip_norm)
    squares = sum((Fraction(float(x)) ** 2 for x in got), Fraction(0))
    assert squares <= Fraction(clip_norm) ** 2


def test_clipping():
    for update in HOSTILE:
        assert _exact_norm(clip(update, 0.7)) <= 0.7
    inside = np.array([0.1, -0.2])
    assert np.array_equal(clip(inside, 0.7), inside)
    outside = clip(np.array([3.0, 4.0]), 1.0)
    assert np.allclose(outside, [0.6, 0.8])


@pytest.mark.parametrize("start", [0.01, 100.0])
@pytest.mark.parametrize("quantile", [0.3, 0.5, 0.8])
def test_the_clip_finds_the_quantile_from_below_and_from_above(start, quantile):
    adaptive = AdaptiveClip(quantile=quantile, rate=0.2, bit_std=5.0)
    noise = SimulatedNoise(ExperimentSeed(0), "adaptive", int(10 * quantile))
    rng = np.random.default_rng(3)
    norms = rng.lognormal(0.0, 0.5, 100)
    updates = [norm * np.eye(SIZE)[0] for norm in norms]
    clip_norm, seen = start, []
    for _ in range(150):
        mechanism = ClientMechanism(clip_norm, 1.0, 1.0, adaptive)
        clip_norm = release_round(
            mechanism, updates, [1.0] * 100, SIZE, 100.0, noise
        ).next_clip_norm
        seen.append(clip_norm)
    assert np.median(seen[-50:]) == pytest.approx(np.quantile(norms, quantile), rel=0.1)


def test_updates_and_bits_together_cost_one_z():
    # Andrew et al. 2021, theorem 1: z^-2 = z_Δ^-2 + (2σ_b)^-2.
    adaptive = AdaptiveClip(bit_std=2.0)
    z = adaptive.update_multiplier(1.5)
    assert z > 1.5
    assert z**-2 + (2 * 2.0) ** -2 == pytest.approx(1.5**-2)
    mechanism = ClientMechanism(0.7, 1.5, 0.5, adaptive)
    assert mechanism.event() == dp_accounting.PoissonSampledDpEvent(
        0.5, dp_accounting.GaussianDpEvent(1.5)
    )
    assert mechanism.updates.std == pytest.approx(z * 0.7)
    with pytest.raises(ConfigError, match="too small"):
        AdaptiveClip(bit_std=0.7).update_multiplier(1.5)


def test_noise_uses_this_rounds_clip():
    adaptive = AdaptiveClip(bit_std=0.6, rate=3.0)
    mechanism = ClientMechanism(0.5, 1.0, 1.0, adaptive)
    noise = SimulatedNoise(ExperimentSeed(0), "round")
    updates = [np.full(20_000, 1.0)] * 3
    got = release_round(mechanism, updates, [1.0] * 3, 20_000, 3.0, noise)
    assert got.next_clip_norm > 0.8
    residual = got.mean - 0.5 / np.sqrt(20_000)
    expected = adaptive.update_multiplier(1.0) * 0.5 / 3.0
    assert np.std(residual) == pytest.approx(expected, rel=0.03)  # 6 standard errors


def test_an_empty_round_is_released_like_any_other():
    mechanism = ClientMechanism(0.5, 2.0, 0.1, AdaptiveClip(bit_std=3.0))
    noise = SimulatedNoise(ExperimentSeed(0), "empty")
    got = release_round(mechanism, [], [], 20_000, 2.0, noise)
    assert np.std(got.mean) == pytest.approx(mechanism.updates.std / 2.0, rel=0.03)
    assert got.next_clip_norm != 0.5


def test_updates_of_another_size_are_refused():
    with pytest.raises(ConfigError):
        release_round(ClientMechanism(1, 1), [np.zeros(3)], [1.0], 4, 1.0, Silent())
    with pytest.raises(ConfigError):
        release_round(ClientMechanism(1, 1), [np.zeros(3)], [], 3, 1.0, Silent())
    for bad in ({"quantile": 0}, {"rate": 0}, {"bit_std": 0}):
        with pytest.raises(ConfigError):
            AdaptiveClip(**bad)
