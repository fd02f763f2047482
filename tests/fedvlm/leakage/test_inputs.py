"""What people hand to an audit: taken as they mean it, or refused in words (P1, P3, D9, N6)."""

import contextlib
import json
import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from fedvlm.canaries import Canaries
from fedvlm.errors import ConfigError
from fedvlm.leakage import scores as formulas
from fedvlm.leakage.attacks import Attack
from fedvlm.leakage.audit import AuditResult, audit_attacks
from fedvlm.leakage.canaries import andrew_estimate, exposure, exposures, recall_gap
from fedvlm.leakage.conformance import Conformance, check_mechanism
from fedvlm.leakage.epsilon import (
    clopper_pearson_bonferroni,
    clopper_pearson_split,
    gaussian_dp,
    gaussian_epsilon,
)
from fedvlm.leakage.intervals import auc_interval, auc_of, cluster_bootstrap, mean_difference
from fedvlm.leakage.one_run import one_run, one_run_f_dp, refutes_profile
from fedvlm.leakage.partitions import Partitions
from fedvlm.leakage.roc import roc, tpr_at_fpr
from fedvlm.leakage.units import Claim, Unit

INSIDE = np.arange(40) % 2 == 0
SCORES = np.arange(40.0)


@pytest.mark.parametrize(
    "claimed",
    [
        (0.5, 1e-5),
        [0.5, 1e-5],
        np.array([0.5, 1e-5]),
        torch.tensor([0.5, 1e-5], dtype=torch.float64),
        {"epsilon": 0.5, "delta": 1e-5},
        Claim(0.5, 1e-5).to_dict(),
        "[0.5, 1e-5]",
        json.dumps(Claim(0.5, 1e-5).to_dict()),
        b'{"epsilon": 0.5, "delta": 1e-5, "unit": "sample"}',
    ],
)
def test_p3_a_claim_is_taken_in_every_form_that_says_epsilon_and_delta(claimed) -> None:
    found = AuditResult(SCORES, INSIDE, claimed=claimed)
    assert found.claimed == Claim(0.5, 1e-5)
    assert found.to_dict()["claimed"] == Claim(0.5, 1e-5).to_dict()


@pytest.mark.parametrize(
    "claimed",
    [
        0.5,
        "0.5",
        "eight",
        [0.5],
        [0.5, 1e-5, 3],
        [[0.5, 1e-5]],
        {"epsilon": 0.5},
        {"epsilon": 0.5, "delta": 1e-5, "unti": "sample"},
        {"epsilon": "0.5", "delta": 1e-5},
        {"epsilon": 0.5, "delta": 1e-5, "unit": "client"},
        {"epsilon": 0.5, "delta": 1e-5, "unit": "household"},
        {"epsilon": 0.5, "delta": 1e-5, "profile": [[math.nan, 0.1]]},
        [math.nan, 1e-5],
        [0.5, math.nan],
        [True, 1e-5],
        [math.inf, 1e-5],
        {0.5, 1e-5},
        object(),
    ],
)
def test_p3_other_claims_are_refused(claimed) -> None:
    with pytest.raises(ConfigError):
        AuditResult(SCORES, INSIDE, claimed=claimed)


@pytest.mark.parametrize("scores", [{}, [], SCORES, None])
def test_p3_no_attacks_are_refused(scores) -> None:
    with pytest.raises(ConfigError, match="one attack at least"):
        audit_attacks(scores, INSIDE)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16])
def test_p3_tensors_with_gradients_and_in_any_precision_are_taken(dtype: torch.dtype) -> None:
    scores = torch.arange(40, dtype=dtype, requires_grad=True)
    found = AuditResult(scores, torch.from_numpy(INSIDE), clusters=torch.arange(40))
    np.testing.assert_array_equal(found.scores, SCORES)
    listed = AuditResult([one * 1.0 for one in scores], INSIDE.tolist())
    np.testing.assert_array_equal(listed.scores, SCORES)


@pytest.mark.parametrize(
    "clusters",
    [
        np.full(40, np.nan),
        np.where(INSIDE, 1.0, np.nan),
        [None] * 40,
        np.arange(40) + 0.5,
        np.arange(40) + 0j,
        np.zeros((40, 1)),
        2.0**63 + np.arange(40.0),
    ],
)
def test_p1_clusters_that_are_no_clusters_are_refused(clusters) -> None:
    with pytest.raises(ConfigError, match="clusters"):
        AuditResult(SCORES, INSIDE, clusters=clusters)


def test_p1_clusters_may_be_names_or_64_bit_numbers() -> None:
    names = [f"client {k // 4}" for k in range(40)]
    ids = np.array([2**63 + (-1) ** (k // 4) * (k // 4 + 1) for k in range(40)], dtype=np.uint64)
    found = [AuditResult(SCORES, INSIDE, clusters=one).auc for one in (names, ids)]
    assert found[0] == found[1]
    assert AuditResult(SCORES, INSIDE, clusters=ids.tolist()).auc == found[0]


_NUMBERS = st.floats(allow_nan=True, allow_infinity=True, width=32)
_THINGS = st.one_of(
    st.none(), st.booleans(), _NUMBERS, st.integers(), st.text(max_size=4), st.binary(max_size=4)
)


@settings(max_examples=150, deadline=None)
@given(
    scores=st.one_of(st.lists(_NUMBERS, max_size=8), st.lists(_THINGS, max_size=8), _THINGS),
    inside=st.one_of(st.lists(st.booleans(), max_size=8), st.lists(_THINGS, max_size=8), _THINGS),
    claimed=st.one_of(_THINGS, st.lists(_THINGS, max_size=3), st.dictionaries(_THINGS, _THINGS)),
    clusters=st.one_of(st.none(), st.lists(_THINGS, max_size=8), _THINGS),
)
def test_p3_whatever_comes_is_taken_or_refused_in_words(scores, inside, claimed, clusters) -> None:
    found = None
    with contextlib.suppress(ConfigError):
        found = AuditResult(scores, inside, claimed=claimed, clusters=clusters)
    if found is not None:
        assert np.isfinite(found.scores).all()
        assert "NaN" not in found.to_json()


BAD = np.where(np.arange(40) == 3, np.nan, SCORES)
_CANARIES = Canaries.draw(8, 50, np.random.default_rng(0))


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize(
    "use",
    [
        lambda bad: AuditResult(bad, INSIDE),
        lambda bad: audit_attacks({"a": SCORES, "b": bad}, INSIDE),
        lambda bad: auc_of(bad[INSIDE], bad[~INSIDE]),
        lambda bad: auc_interval(bad[INSIDE], bad[~INSIDE]),
        lambda bad: roc(bad[INSIDE], bad[~INSIDE]),
        lambda bad: tpr_at_fpr(bad[INSIDE], bad[~INSIDE], 0.1),
        lambda bad: one_run(bad, INSIDE),
        lambda bad: one_run_f_dp(bad, INSIDE, 1e-5),
        lambda bad: refutes_profile(bad, INSIDE, [(0.0, 0.5)], 0.05),
        lambda bad: clopper_pearson_bonferroni(bad[INSIDE], bad[~INSIDE]),
        lambda bad: clopper_pearson_split(bad[INSIDE], bad[~INSIDE], np.random.default_rng(0)),
        lambda bad: gaussian_dp(bad[INSIDE], bad[~INSIDE], 1e-5),
        lambda bad: mean_difference(bad, SCORES),
        lambda bad: cluster_bootstrap(
            auc_of, bad, INSIDE, np.arange(40) // 4, np.random.default_rng(0)
        ),
        lambda bad: andrew_estimate(bad, 100, 1e-5),
        lambda bad: exposure(float(bad[3]), SCORES),
        lambda bad: exposures(bad, INSIDE),
        lambda bad: recall_gap(
            bad[None], SCORES[None], np.ones((40, 2), bool), np.ones((1, 2), bool), 3
        ),
        lambda bad: check_mechanism(np.resize(bad, (2, 50)), _CANARIES, 1.0, 1.0),
    ],
)
def test_d9_what_is_not_finite_is_refused_by_every_statistic(use, value: float) -> None:
    bad = SCORES.copy()
    bad[3] = value
    with pytest.raises(ConfigError, match="not finite"):
        use(bad)


def test_d9_nan_is_never_on_the_winning_side() -> None:
    population = np.array([0.1, 0.2, 0.3])
    values = np.array([np.nan, 0.25])
    shadows, outside = np.full((4, 2), 0.5), np.ones((4, 2), dtype=bool)
    for found in (
        formulas.attack_p(values, population),
        formulas.rmia_offline(values, np.full(2, 0.5), population, population),
        formulas.attack_r(values, shadows, outside),
        formulas.lira_offline(values, shadows + np.arange(4)[:, None], ~outside),
    ):
        assert np.isnan(found[0])
        assert np.isfinite(found[1])
    shadows[0, 1] = np.nan
    assert np.isnan(formulas.attack_r(np.zeros(2), shadows, outside)[1])
    assert Conformance(math.nan, 0.5, 0.95).violated
    assert Conformance(1.5, math.nan, 0.95).violated
    with pytest.raises(ConfigError, match="NaN"):
        gaussian_epsilon(math.nan, 1e-5)
    assert Attack("a", ("api",), lambda view, probe, who: values).name == "a"


HIGH = [2**63 + 5, 17, 2**63 - 1, 2**64 - 1]


@pytest.mark.parametrize(
    "told",
    [
        HIGH,
        [str(one) for one in HIGH],
        {str(one): k for k, one in enumerate(HIGH)},
        {str(k): one for k, one in enumerate(HIGH)},
    ],
)
def test_n6_ids_on_both_sides_of_2_to_63_are_partitions(told) -> None:
    places = Partitions.of_index(json.loads(json.dumps({"nodes": 4, "node_ids": told})))
    assert places.of(np.array(HIGH[::-1], dtype=np.uint64)).tolist() == [3, 2, 1, 0]
    assert places.of(np.array([str(one) for one in HIGH])).tolist() == [0, 1, 2, 3]
    assert places.of(np.array([1, 4])).tolist() == [0, 3]  # partition numbers, from 1


@pytest.mark.parametrize(
    ("index", "nodes"),
    [
        ({"nodes": 4}, np.array(HIGH, dtype=np.uint64)),
        ({"nodes": 4, "node_ids": HIGH}, np.array(HIGH, dtype=np.float64)),
        ({"nodes": 4, "node_ids": HIGH}, np.array([HIGH[0], HIGH[0]], dtype=np.uint64)),
        ({"nodes": 4, "node_ids": {"17": 0, "18": 0}}, np.array([17])),
        ({"nodes": 4, "node_ids": {"17": 4}}, np.array([17])),
        ({"nodes": 4, "node_ids": 3}, np.array([17])),
        ({"nodes": -1}, np.array([1])),
        ({"nodes": "4"}, np.array([1])),
        ({"nodes": 4}, np.array([0])),
        ({"nodes": 4}, np.array([5])),
        ({"nodes": 4}, np.array([1.5])),
    ],
)
def test_n6_ids_that_say_nothing_sure_are_refused(index: dict, nodes: np.ndarray) -> None:
    with pytest.raises(ValueError, match="node"):
        Partitions.of_index(index).of(nodes)


def test_n7_a_confidence_is_printed_as_it_is() -> None:
    assert "(99.5 %)" in str(Conformance(1.2, 0.5, 0.995))
    assert "(95 %)" in str(Conformance(1.2, 0.5, 0.95))


def test_n7_the_clip_ratio_is_held_against_the_sampling_rate() -> None:
    assert Conformance(1.2, 0.9, 0.95, sample_rate=0.5).violated
    assert not Conformance(1.2, 0.4, 0.95, sample_rate=0.5).violated
    rng, alarms = np.random.default_rng(0), 0
    for number in range(100):
        canaries = Canaries.draw(32, 600, rng)
        rows = canaries.directions * canaries.planted[:, None]
        drawn = rng.random((6, 32)) < 0.3
        totals = drawn @ rows + rng.normal(size=(6, 600))
        alarms += check_mechanism(totals, canaries, 1.0, 1.0, sample_rate=0.3).violated
        if number < 5:
            always = np.ones((6, 32)) @ rows + 0.3 * rng.normal(size=(6, 600))
            assert check_mechanism(always, canaries, 1.0, 0.3, sample_rate=0.3).violated
    assert alarms <= 13  # chance 1e-3 at exactly 5 %


def test_n7_the_round_with_least_noise_is_found_among_many() -> None:
    rng = np.random.default_rng(0)
    for _ in range(5):
        canaries = Canaries.draw(32, 600, rng)
        totals = rng.normal(size=(20, 600))
        totals[-1] *= 0.05
        found = check_mechanism(totals, canaries, 1.0, 1.0)
        assert found.round_ratio < 0.2 < 0.9 < found.noise_ratio
        assert found.violated


def test_an_audit_at_client_level_keeps_its_unit() -> None:
    claim = {"epsilon": 1.0, "delta": 1e-5, "unit": "client"}
    assert AuditResult(SCORES, INSIDE, unit=Unit.CLIENT, claimed=claim).claimed == Claim(
        1.0, 1e-5, Unit.CLIENT
    )
