"""Correctness of the statistics, against closed forms, scikit-learn and chance.

Seeds are fixed: no test here can flake. False-alarm rates are those of a fresh seed.
"""

import importlib

import numpy as np
import pytest
from scipy.stats import binom, binomtest, norm
from scipy.stats import t as student
from sklearn.metrics import roc_auc_score, roc_curve

from fedvlm.errors import ConfigError
from fedvlm.leakage.audit import AuditResult, audit_attacks
from fedvlm.leakage.epsilon import (
    clopper_pearson_bonferroni,
    clopper_pearson_split,
    gaussian_dp,
    gaussian_epsilon,
)
from fedvlm.leakage.intervals import (
    auc_interval,
    auc_of,
    clopper_pearson_lower,
    clopper_pearson_upper,
    cluster_bootstrap,
)
from fedvlm.leakage.one_run import one_run, one_run_f_dp, steinke_p_value
from fedvlm.leakage.roc import roc, tpr_at_fpr
from fedvlm.leakage.units import Claim, Kind, Unit

ALPHA = 0.05
DRAWS = 400
# Exceeded with chance 1e-6 by a method whose rate is exactly alpha.
MOST_ALARMS = int(binom.isf(1e-6, DRAWS, ALPHA))


def _coins(rng: np.random.Generator, count: int, mu: float) -> tuple[np.ndarray, np.ndarray]:
    inside = rng.random(count) < 0.5
    return rng.normal(size=count) + mu * inside, inside


@pytest.mark.parametrize("mu", [0.0, 1.0, 2.0])
def test_auc_and_tpr_equal_their_closed_forms(mu: float) -> None:
    """Coverage >= 93 % over 400 draws; a 95 % interval falls below with chance 0.03."""
    rng = np.random.default_rng(int(mu * 10))
    area, rate = norm.cdf(mu / np.sqrt(2)), norm.sf(norm.isf(0.1) - mu)
    covered, rates = 0, 0
    for _ in range(DRAWS):
        members, others = rng.normal(mu, 1, 300), rng.normal(0, 1, 400)
        covered += auc_interval(members, others).covers(float(area))
        rates += tpr_at_fpr(members, others, 0.1).tpr.covers(float(rate))
    assert covered >= 0.93 * DRAWS
    assert rates >= 0.93 * DRAWS


def test_large_sample_reaches_the_closed_forms() -> None:
    rng = np.random.default_rng(3)
    members, others = rng.normal(1.5, 1, 200_000), rng.normal(0, 1, 200_000)
    assert auc_of(members, others) == pytest.approx(norm.cdf(1.5 / np.sqrt(2)), abs=5e-3)
    for fpr in (0.1, 0.01, 0.001):
        assert roc(members, others).tpr_at(fpr) == pytest.approx(
            norm.cdf(1.5 - norm.isf(fpr)), abs=1e-2
        )


_NULL = {
    "clopper-pearson-bonferroni": lambda s, m, g: clopper_pearson_bonferroni(s[m], s[~m]),
    "clopper-pearson-split": lambda s, m, g: clopper_pearson_split(s[m], s[~m], g),
    "gaussian-dp": lambda s, m, g: gaussian_dp(s[m], s[~m], 1e-5),
    "one-run": lambda s, m, g: one_run(s, m),
    "one-run with delta": lambda s, m, g: one_run(s, m, 1e-5),
    "one-run-f-dp": lambda s, m, g: one_run_f_dp(s, m, 1e-5),
    "one-run-gaussian": lambda s, m, g: one_run_f_dp(s, m, 1e-5, gaussian=True),
}


@pytest.mark.parametrize("name", _NULL)
def test_no_estimator_sees_a_leak_where_there_is_none(name: str) -> None:
    """A method at its nominal 5 % fails here with chance 1e-6."""
    rng = np.random.default_rng(17)
    alarms = 0
    for _ in range(DRAWS):
        scores, inside = _coins(rng, 200, 0.0)
        alarms += _NULL[name](scores, inside, rng).value > 0
    assert alarms <= MOST_ALARMS


def test_the_best_of_many_attacks_sees_no_leak_either() -> None:
    """A method at its nominal 5 % fails here with chance 1e-6."""
    rng = np.random.default_rng(5)
    draws, alarms = 40, 0
    for _ in range(draws):
        _, inside = _coins(rng, 200, 0.0)
        attacks = {f"attack {k}": rng.normal(size=200) for k in range(8)}
        found = audit_attacks(attacks, inside, claimed=(0.0, 1e-5))
        alarms += any(one.refuted for one in found)
    assert alarms <= binom.isf(1e-6, draws, ALPHA)


def test_randomised_response_is_not_refuted_at_its_epsilon_but_below() -> None:
    """The violation rate at the true epsilon stays under 5 % (chance of failing 1e-6)."""
    epsilon, count = 1.0, 1000
    rng = np.random.default_rng(11)
    keep = np.exp(epsilon) / (1 + np.exp(epsilon))
    wrong = {"one-run": 0, "f-dp": 0, "cp": 0}
    power = 0
    for _ in range(80):
        inside = rng.random(count) < 0.5
        told = np.where(rng.random(count) < keep, inside, ~inside)
        scores = told + 0.01 * rng.random(count)
        wrong["one-run"] += one_run(scores, inside).value > epsilon
        wrong["f-dp"] += one_run_f_dp(scores, inside, 1e-9).value > epsilon
        wrong["cp"] += clopper_pearson_bonferroni(scores[inside], scores[~inside]).value > epsilon
        power += one_run(scores, inside).value > 0.5
    assert max(wrong.values()) <= binom.isf(1e-6, 80, ALPHA)
    assert power > 60


def test_the_gaussian_mechanism_is_not_refuted_at_its_epsilon_but_far_below() -> None:
    """The violation rate at the true epsilon stays under 5 % (chance of failing 1e-6)."""
    mu, delta = 1.0, 1e-5
    epsilon = gaussian_epsilon(mu, delta)
    assert epsilon == pytest.approx(4.377, abs=1e-3)
    rng = np.random.default_rng(23)
    found: dict[str, list[float]] = {}
    for _ in range(30):
        scores, inside = _coins(rng, 1000, mu)
        for name, method in _NULL.items():
            found.setdefault(name, []).append(method(scores, inside, rng).value)
    for name, values in found.items():
        assert np.mean(np.array(values) > epsilon) <= binom.isf(1e-6, 30, ALPHA) / 30, name
    # Power known from the literature's order of magnitude: none of them may fall silent.
    assert np.median(found["gaussian-dp"]) > 2.0
    assert np.median(found["one-run-f-dp"]) > 0.8
    assert np.median(found["clopper-pearson-bonferroni"]) > 0.8


def test_p_value_of_one_run_equals_the_binomial_tail() -> None:
    q = np.e / (1 + np.e)
    assert steinke_p_value(1.0, 0.0, 100, 50, 45) == pytest.approx(binom.sf(44, 50, q))
    assert steinke_p_value(1.0, 1e-3, 100, 50, 45) > steinke_p_value(1.0, 0.0, 100, 50, 45)
    assert steinke_p_value(1.0, 0.0, 100, 50, 0) == 1.0


@pytest.mark.parametrize("trials", [1, 7, 400])
@pytest.mark.parametrize("alpha", [0.05, 0.2, 1e-4])
def test_t1_rates_have_clopper_and_pearsons_limits(trials: int, alpha: float) -> None:
    counts = np.unique(np.linspace(0, trials, 5).astype(int))
    upper = clopper_pearson_upper(counts, trials, alpha)
    lower = clopper_pearson_lower(counts, trials, alpha)
    for k, high, low in zip(counts, upper, lower, strict=True):
        less = binomtest(int(k), trials, alternative="less").proportion_ci(1 - alpha)
        more = binomtest(int(k), trials, alternative="greater").proportion_ci(1 - alpha)
        assert high == pytest.approx(less.high, abs=1e-9)
        assert low == pytest.approx(more.low, abs=1e-9)


def test_t1_all_limits_of_all_thresholds_share_one_error(monkeypatch) -> None:
    module = importlib.import_module("fedvlm.leakage.epsilon")
    spent: list[float] = []

    def upper(successes, trials, alpha):
        spent.append(alpha * np.size(successes))
        return clopper_pearson_upper(successes, trials, alpha)

    monkeypatch.setattr(module, "clopper_pearson_upper", upper)
    rng = np.random.default_rng(0)
    module.clopper_pearson_bonferroni(rng.normal(size=300) + 1, rng.normal(size=300), alpha=0.05)
    assert len(spent) == 2  # both rates
    assert 0.049 < sum(spent) <= 0.05 * (1 + 1e-12)


def test_t1_what_is_tried_at_several_shares_of_guesses_shares_one_error(monkeypatch) -> None:
    """The chance to refute a true claim is `alpha` for all of a run's tests together."""
    asked: list[float] = []

    def rejects(inverse, total, guesses, right, alpha) -> bool:
        asked.append(alpha)
        return False

    module = importlib.import_module("fedvlm.leakage.one_run")  # the name is a function's, too
    monkeypatch.setattr(module, "f_dp_rejects", rejects)
    scores, membership = _coins(np.random.default_rng(0), 200, 1.0)
    assert not module.refutes_profile(scores, membership, [(1.0, 1e-5)], 0.05)
    assert len(asked) > 2
    assert sum(asked) <= 0.05 * (1 + 1e-12)


@pytest.mark.parametrize("seed", range(8))
def test_ties_agree_with_scikit_learn(seed: int) -> None:
    rng = np.random.default_rng(seed)
    scores = rng.integers(0, 2 + seed, 150).astype(float)
    inside = rng.random(150) < 0.5
    curve = roc(scores[inside], scores[~inside])
    fpr, tpr, _ = roc_curve(inside, scores, drop_intermediate=False)
    assert auc_of(scores[inside], scores[~inside]) == pytest.approx(roc_auc_score(inside, scores))
    np.testing.assert_allclose(curve.fpr, fpr)
    np.testing.assert_allclose(curve.tpr, tpr)


def test_all_scores_equal_say_nothing() -> None:
    found = AuditResult(np.zeros(400), np.arange(400) % 2 == 0, claimed=(1.0, 1e-5))
    assert found.auc.value == 0.5
    assert found.auc.covers(0.5)
    assert found.curve.advantage == 0.0
    assert found.epsilon_lower == 0.0
    assert found.refuted is False


@pytest.mark.parametrize("levels", [1, 2, 5])
def test_ties_prove_nothing_whatever_the_order_of_the_rows(levels: int) -> None:
    """Members first, as most tools list them, and scores that are few and blind."""
    inside = np.arange(1000) < 500
    for seed in range(20):
        scores = np.random.default_rng(seed).integers(0, levels, 1000).astype(float)
        for order in (slice(None), slice(None, None, -1)):
            found = AuditResult(scores, inside[order], claimed=(0.5, 1e-5))
            assert found.refuted is False


@pytest.mark.parametrize(("n", "m"), [(12, 40), (40, 12), (25, 25)])
@pytest.mark.parametrize("alpha", [0.05, 0.2])
def test_t1_the_interval_is_delongs_to_the_last_digit(n: int, m: int, alpha: float) -> None:
    """DeLong's variance from all pairs, one by one, with ties, and as many of one kind or not."""
    rng = np.random.default_rng(n)
    members = np.round(rng.normal(size=n) + 1, 1)
    others = np.round(rng.normal(size=m), 1)
    wins = (members[:, None] > others) + 0.5 * (members[:, None] == others)
    area = wins.mean()
    deviation = np.sqrt(wins.mean(1).var(ddof=1) / n + wins.mean(0).var(ddof=1) / m)
    found = auc_interval(members, others, alpha)
    assert found.value == pytest.approx(area, abs=1e-12)
    middle = np.log(area / (1 - area))
    reach = norm.ppf(1 - alpha / 2) * deviation / (area * (1 - area))
    for end, side in ((found.low, middle - reach), (found.high, middle + reach)):
        assert end == pytest.approx(1 / (1 + np.exp(-side)), abs=1e-12)


def test_t1_scores_that_are_all_equal_have_hoeffdings_margin() -> None:
    """2·exp(−2·k·margin²) = α over k disjoint pairs."""
    found = auc_interval(np.zeros(30), np.zeros(80), 0.1)
    assert found.value == 0.5
    margin = found.high - 0.5
    assert 2 * np.exp(-2 * 30 * margin**2) == pytest.approx(0.1)
    assert found.low == pytest.approx(0.5 - margin)


@pytest.mark.parametrize("count", [3, 5, 10])
def test_t1_a_bootstrap_over_few_clusters_is_no_narrower_than_students_jackknife(
    count: int,
) -> None:
    rng = np.random.default_rng(count)
    clusters = np.repeat(np.arange(count), 40)
    inside = np.arange(len(clusters)) % 2 == 0
    scores = rng.normal(size=count)[clusters] * inside + rng.normal(size=len(clusters))
    without = [auc_of(scores[inside & (clusters != k)], scores[~inside & (clusters != k)])
               for k in range(count)]  # fmt: skip
    deviation = np.sqrt((count - 1) ** 2 / count * np.var(without, ddof=1))
    found = cluster_bootstrap(auc_of, scores, inside, clusters, rng)
    reach = student.ppf(0.975, count - 1) * deviation
    assert found.low <= found.value - reach + 1e-12
    assert found.high >= found.value + reach - 1e-12


def test_permuted_labels_cover_one_half() -> None:
    """Coverage >= 93 % over 400 draws; a 95 % interval falls below with chance 0.03."""
    rng = np.random.default_rng(2)
    scores, inside = _coins(rng, 300, 2.0)
    covered = 0
    for _ in range(DRAWS):
        shuffled = rng.permutation(inside)
        covered += auc_interval(scores[shuffled], scores[~shuffled]).covers(0.5)
    assert covered >= 0.93 * DRAWS


def test_cluster_bootstrap_is_wider_where_a_cluster_moves_together() -> None:
    rng = np.random.default_rng(0)
    clusters = np.repeat(np.arange(30), 20)
    inside = rng.random(600) < 0.5
    shift = rng.normal(size=30)[clusters] * inside
    scores = rng.normal(size=600) * 0.3 + shift
    naive = auc_interval(scores[inside], scores[~inside])
    honest = cluster_bootstrap(auc_of, scores, inside, clusters, rng)
    assert honest.high - honest.low > 1.5 * (naive.high - naive.low)
    with pytest.raises(ConfigError, match="at least 2"):
        cluster_bootstrap(auc_of, scores, inside, np.zeros(600, dtype=int), rng)


def test_a_rate_that_the_data_cannot_resolve_says_so() -> None:
    rng = np.random.default_rng(0)
    found = AuditResult(*_coins(rng, 1000, 5.0))
    by_rate = {one.fpr: one for one in found.tpr}
    assert by_rate[0.1].resolved
    assert by_rate[0.01].resolved
    assert not by_rate[0.001].resolved
    assert by_rate[0.001].tpr.low == 0.0


def test_perfect_separation_has_an_interval_and_refutes_a_claim() -> None:
    inside = np.arange(2000) % 2 == 0
    found = AuditResult(inside.astype(float), inside, claimed=(1.0, 1e-5))
    assert found.auc.value == 1.0
    assert 0.99 < found.auc.low < 1.0
    assert found.refuted
    assert "NaN" not in found.to_json()


def test_bounds_and_estimates_are_told_apart() -> None:
    scores, inside = _coins(np.random.default_rng(0), 500, 1.0)
    kinds = {one.method: one.kind for one in AuditResult(scores, inside).epsilons}
    assert kinds["one-run"] is Kind.BOUND
    assert kinds["clopper-pearson-bonferroni"] is Kind.ESTIMATE  # scores share one run
    assert kinds["gaussian-dp"] is Kind.ESTIMATE
    free = AuditResult(scores, inside, trials="independent").epsilons
    assert {o.method: o.kind for o in free}["clopper-pearson-bonferroni"] is Kind.BOUND


def test_one_run_bounds_need_fair_coins() -> None:
    rng = np.random.default_rng(0)
    inside = rng.random(1000) < 0.2
    found = AuditResult(rng.normal(size=1000) + 3 * inside, inside, claimed=(0.1, 1e-5))
    assert not found.fair_coins
    assert found.epsilon_lower is None
    assert found.refuted is None


@pytest.mark.parametrize(
    ("changes", "match"),
    [
        ({"scores": np.zeros(3)}, "one length"),
        ({"scores": np.array([1.0, np.nan, 0, 0])}, "not finite"),
        ({"membership": np.ones(4, dtype=bool)}, "one kind"),
        ({"membership": np.array([0, 1, 2, 1])}, "booleans"),
        ({"unit": "household"}, "sample or client"),
        ({"alpha": 0.0}, "alpha"),
        ({"trials": "many"}, "trials"),
        ({"clusters": np.zeros(3)}, "clusters"),
        ({"claimed": (-1.0, 0.0)}, "epsilon >= 0"),
        ({"claimed": Claim(1.0, 1e-5, Unit.CLIENT)}, "client level"),
    ],
)
def test_wrong_input_is_refused(changes: dict, match: str) -> None:
    good = {"scores": np.arange(4.0), "membership": np.array([True, False, True, False])}
    with pytest.raises(ConfigError, match=match):
        AuditResult(**{**good, **changes})
