"""One noise for all at example level: the sensitivity of integers, the lanes, the planner."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fedvlm.errors import ConfigError, DropoutError, IntegrityError
from fedvlm.heads.contributions import image_terms, whole_terms
from fedvlm.privacy import SecureNoise, epsilon
from fedvlm.privacy.analytic import gaussian_epsilon
from fedvlm.privacy.shared_noise import (
    SharedNoise,
    honest_of,
    plan_shared_noise,
    summed_in_integers,
)


class NoNoise(SecureNoise):
    """Adds nothing: what is left is the sum."""

    def skellam(self, variance, size):
        """Return zeros."""
        return np.zeros(size, dtype=np.int64)


def planned(**changes) -> SharedNoise:
    """Return a plan of ten clients, six of them honest."""
    terms = {"size": 40, "least_noised": 6, "most_clients": 10, "largest": 4.0} | changes
    return plan_shared_noise(8.0, 1e-3, **terms)


def test_the_noise_is_the_exact_gaussians_within_a_hundredth():
    for eps, rounds in ((8.0, 1), (3.0, 1), (1.0, 1), (8.0, 10)):
        z = plan_shared_noise(
            eps, 1e-3, size=1 << 20, least_noised=6, most_clients=10, rounds=rounds
        ).noise_multiplier
        exact = gaussian_epsilon(np.sqrt(rounds) / z, 1e-3)
        assert exact <= eps  # never below the exact law
        assert gaussian_epsilon(np.sqrt(rounds) / (0.98 * z), 1e-3) > eps


def test_the_event_is_what_the_budget_holds():
    mechanism = planned()
    assert epsilon([(mechanism.event(), 1)], 1e-3) <= 8.0
    assert mechanism.event().norm == mechanism.scale * mechanism.clip_norm


@settings(deadline=None, max_examples=60)
@given(st.integers(0, 2**32 - 1), st.integers(1, 30), st.booleans())
def test_one_image_moves_what_a_client_sends_by_its_norm(seed, n, huge):
    """Also where the client's sum is clamped, and an image has several captions."""
    rng = np.random.default_rng(seed)
    mechanism = planned(largest=1.5)
    features = rng.normal(size=(n, 7)) * (1e200 if huge else 1)
    features[rng.random(n) < 0.1] = np.nan
    rows, images = rng.integers(0, 5, n), rng.integers(0, max(1, n // 2), n)

    def sent(kept):
        _, places, vectors = image_terms(features[kept], rows[kept], images[kept], 5)
        whole = whole_terms(vectors, mechanism.scale)
        return mechanism.encode(summed_in_integers(places, whole, 5), NoNoise())

    everything = np.ones(n, dtype=bool)
    for image in np.unique(images):
        moved = (sent(everything) - sent(images != image)).astype(object)
        assert sum(int(x) ** 2 for x in moved) <= mechanism.scale**2


def test_a_client_of_one_caption_fits_its_lane_and_no_sum_wraps():
    mechanism = planned()
    lanes = mechanism.lanes()
    assert lanes.bound >= mechanism.magnitude
    worst = mechanism.encode(np.full(40, 10**15), SecureNoise())
    assert np.abs(worst).max() <= mechanism.magnitude


def test_shares_add_up_to_the_planned_noise():
    mechanism = planned(size=20_000)
    zero = np.zeros(20_000, dtype=np.int64)
    total = sum(mechanism.encode(zero, SecureNoise()) for _ in range(6))
    ratio = mechanism.decode(total, 6).std() / mechanism.std
    assert abs(ratio - 1) < 0.03  # 6 standard errors
    assert not abs(ratio * np.sqrt(6) - 1) < 0.03


def test_a_quorum_that_is_lied_about_releases_nothing():
    with pytest.raises(DropoutError, match="planned for at least 6"):
        planned().decode(np.zeros(40, dtype=np.int64), 5)


def test_clients_that_leave_out_their_noise_are_planned_for():
    """Of seven in a sum one adds none: six shares are as much as the ledger assumes."""
    assert honest_of(7, 1) == 6
    mechanism = planned()
    assert mechanism.local_variance * honest_of(7, 1) >= mechanism.event().variance * (1 - 1e-12)
    with pytest.raises(ConfigError, match="no honest noise"):
        honest_of(1, 1)


def test_a_sum_of_another_shape_or_type_is_refused():
    for wrong in (np.zeros(39, dtype=np.int64), np.zeros(40)):
        with pytest.raises(IntegrityError, match="expected 40 int64"):
            planned().encode(wrong, SecureNoise())


def test_too_many_clients_for_a_lane_are_refused():
    with pytest.raises(ConfigError, match="lane"):
        plan_shared_noise(1e5, 0.5, size=10, least_noised=1, most_clients=10, largest=1e9)
