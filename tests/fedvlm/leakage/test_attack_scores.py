"""Attack formulas on cases worked by hand."""

import numpy as np
import pytest
from scipy.stats import norm

from fedvlm.errors import ConfigError
from fedvlm.leakage import scores


def test_lira_is_the_likelihood_ratio_of_two_normals() -> None:
    rng = np.random.default_rng(0)
    inside = np.arange(200)[:, None] % 2 == np.zeros(1)
    shadows = np.where(inside, rng.normal(2, 1, (200, 1)), rng.normal(0, 1, (200, 1)))
    observed = np.array([1.5])
    into, out = shadows[inside], shadows[~inside]
    expected = norm.logpdf(1.5, into.mean(), into.std(ddof=1)) - norm.logpdf(
        1.5, out.mean(), out.std(ddof=1)
    )
    assert scores.lira_online(observed, shadows, inside)[0] == pytest.approx(expected)
    offline = norm.logcdf(1.5, out.mean(), out.std(ddof=1))
    assert scores.lira_offline(observed, shadows, inside)[0] == pytest.approx(offline)


def test_lira_needs_two_shadows_of_a_kind() -> None:
    with pytest.raises(ConfigError, match="at least 2 shadows"):
        scores.lira_online(np.zeros(1), np.zeros((3, 1)), np.array([[True], [True], [False]]))


def test_margin_ranks_a_pair_among_negatives() -> None:
    own = np.array([0.9, 0.1])
    others = np.full((2, 5), 0.5)
    found = scores.margin(own, others, others, 10.0)
    np.testing.assert_allclose(found, 10 * own - (5.0 + np.log(5)))


def test_population_attacks_count() -> None:
    assert scores.attack_p(np.array([0.0, 2.0]), np.array([1.0, 2.0, 3.0])).tolist() == [
        1.0,
        pytest.approx(2 / 3),
    ]
    references = np.array([[1.0, 0.0], [3.0, 0.0]])
    outside = np.ones((2, 2), dtype=bool)
    assert scores.attack_r(np.array([2.0, 1.0]), references, outside).tolist() == [0.5, 0.0]
    outside[0, 0] = False  # it trained on the first: only the other one speaks
    assert scores.attack_r(np.array([2.0, 1.0]), references, outside).tolist() == [1.0, 0.0]
    with pytest.raises(ConfigError, match="attack R"):
        scores.attack_r(np.zeros(2), references, ~outside & outside)


def test_rmia_prefers_what_the_model_learned() -> None:
    population = np.linspace(0.2, 0.6, 50)
    found = scores.rmia_offline(np.array([0.9, 0.4]), np.array([0.4, 0.4]), population, population)
    assert found[0] > 0.9
    assert 0.0 < found[1] < found[0]


def test_server_scores_see_the_client_whose_update_aligns() -> None:
    dots = np.array([[3.0, 0.0]])
    norms = np.array([[1.0, 1.0]])
    assert scores.average_cosine(dots, norms, np.array([3.0])).tolist() == [1.0, 0.0]
    assert scores.gradient_difference(dots, norms).tolist() == [5.0, -1.0]
    cosines = np.array([[[0.9, 0.0], [0.1, 0.1], [-0.1, -0.1]]])
    member, other = scores.fed_mia(cosines, 0)
    assert member > 0.99
    assert other == pytest.approx(0.5)
    with pytest.raises(ConfigError, match="at least 3"):
        scores.fed_mia(cosines[:, :2], 0)


def test_trajectory_and_augmentation() -> None:
    assert scores.loss_trajectory(np.array([[0.0], [1.0], [2.0]])).tolist() == [1.5]
    own = np.array([0.8])
    assert scores.augmented_similarity(own, np.array([[0.5], [0.7]]))[0] == pytest.approx(1.2)
