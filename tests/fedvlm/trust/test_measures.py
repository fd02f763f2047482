"""Known answers of association, ranking, OOD, calibration, probe, filters, membership."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fedvlm.trust.association import associations, bias_distance, permutation_p
from fedvlm.trust.attribute_probe import attribute_probe
from fedvlm.trust.backdoor import attack_success, stamp
from fedvlm.trust.calibration import (
    confidences,
    ece,
    ece_equal_width,
    ece_estimate,
    fitted_temperature,
    overconfidence,
)
from fedvlm.trust.estimate import UnresolvedError
from fedvlm.trust.geometry import modality_gap, shifted
from fedvlm.trust.membership import membership_by_group
from fedvlm.trust.ood import auroc, detection, energy, fpr_at_tpr, max_logit, mcm
from fedvlm.trust.ranking import max_skew, ndkl, skew_excess
from fedvlm.trust.unsafe import filter_by_group, threshold_for, unsafe_at


def _rng():
    return np.random.default_rng(0)


# Association


def test_weat_by_hand():
    x, y = np.array([[1.0, 0.0], [1.0, 0.1]]), np.array([[0.0, 1.0], [0.1, 1.0]])
    a, b = np.array([[1.0, 0.0], [1.0, 0.0]]), np.array([[0.0, 1.0], [0.0, 1.0]])
    s = np.concatenate([associations(x, a, b), associations(y, a, b)])
    found = bias_distance(x, y, a, b, _rng())
    assert found.value == pytest.approx((s[:2].mean() - s[2:].mean()) / s.std(ddof=1))
    assert found.p == pytest.approx(2 / 6)  # of six partitions, two are as far apart


def test_weat_of_nothing_is_rarely_significant():
    hits = 0
    for seed in range(60):
        rng = np.random.default_rng(seed)
        one, other = rng.normal(size=20), rng.normal(size=20)
        hits += permutation_p(one, other, rng, draws=500) <= 0.05
    assert hits <= 8  # P(more | 5 %) < 1 %


def test_weat_needs_two_of_each():
    with pytest.raises(UnresolvedError, match="at least 2"):
        bias_distance(np.eye(2), np.eye(2), np.eye(2)[:1], np.eye(2), _rng())


# Ranking


def test_max_skew_has_a_chance_level_which_is_subtracted():
    rng = _rng()
    scores, attributes = rng.normal(size=(40, 200)), rng.integers(0, 6, 200)
    order = np.argsort(-scores, axis=1)
    raw = max_skew(attributes[order], np.bincount(attributes) / 200, 20).mean()
    found = skew_excess(scores, attributes, rng, k=20, draws=60)
    assert raw > 0.3  # a fair ranking "is skewed"
    assert found.low < 0 < found.high
    assert found.p > 0.05


def test_a_skewed_ranking_is_found():
    rng = _rng()
    attributes = rng.integers(0, 2, 200)
    scores = rng.normal(size=(40, 200)) + attributes
    for k in (20, None):
        found = skew_excess(scores, attributes, rng, k=k, draws=60)
        assert found.low > 0.02
        assert found.p < 0.05


def test_ndkl_by_hand():
    # First of one kind, then both: KL = ln 2, then 0; weights 1 and 1/log2(3).
    found = ndkl([[0, 1]], [0.5, 0.5])[0]
    assert found == pytest.approx(np.log(2) / (1 + 1 / np.log2(3)))


def test_ties_do_not_rank_by_the_gallerys_order():
    attributes = np.repeat([0, 1], 50)
    found = skew_excess(np.zeros((30, 100)), attributes, _rng(), k=10, draws=60)
    assert abs(found.value) < 0.15


def test_one_attribute_or_too_small_a_gallery_is_refused():
    with pytest.raises(UnresolvedError, match="one attribute"):
        skew_excess(np.ones((2, 3)), ["a"] * 3, _rng(), k=2)
    with pytest.raises(UnresolvedError, match="fewer than k"):
        skew_excess(np.ones((2, 3)), ["a", "b", "a"], _rng(), k=10)


# OOD


@given(st.integers(0, 10_000))
@settings(max_examples=20, deadline=None)
def test_auroc_is_the_share_of_pairs(seed):
    rng = np.random.default_rng(seed)
    a, b = rng.integers(0, 5, 12).astype(float), rng.integers(0, 5, 9).astype(float)
    pairs = (a[:, None] > b).mean() + (a[:, None] == b).mean() / 2
    assert auroc(a, b) == pytest.approx(pairs)


def test_scores_by_hand():
    cosines = np.array([[0.3, 0.1], [0.2, 0.2]])
    assert mcm(cosines, 0.1)[1] == pytest.approx(0.5)
    assert max_logit(cosines).tolist() == [0.3, 0.2]
    assert energy(cosines, 0.1)[1] == pytest.approx(0.2 + 0.1 * np.log(2))


def test_fpr_at_tpr_keeps_the_known():
    known, unknown = np.arange(100.0), np.array([4.0, 5.0, 6.0, 200.0])
    # 95 of 100 known are at least 5: three of four unknown are taken.
    assert fpr_at_tpr(known, unknown) == 0.75


def test_detection_has_an_interval_by_concept():
    rng = _rng()
    found = detection(
        (rng.normal(1, 1, 200), np.arange(200) // 4), (rng.normal(0, 1, 200), np.arange(200)), rng
    )
    assert found.low < 0.76 < found.high
    with pytest.raises(UnresolvedError, match="finite"):
        auroc([np.nan], [1.0])


# Calibration


def test_ece_is_right_where_a_confidence_is_one():
    """torchmetrics counts 1.0 in a bin of its own: .525 for what is .475."""
    assert ece_equal_width([0.95, 1.0], [True, False], bins=10) == pytest.approx(0.475)


def test_a_calibrated_model_has_no_debiased_ece():
    plain, debiased = [], []
    for seed in range(20):
        rng = np.random.default_rng(seed)
        sure = rng.random(400)
        right = rng.random(400) < sure
        plain.append(ece_equal_width(sure, right))
        debiased.append(ece(sure, right))
    assert np.mean(plain) > 0.05
    assert np.mean(debiased) < 0.4 * np.mean(plain)


def test_an_overconfident_model_is_found():
    rng = _rng()
    sure = rng.uniform(0.6, 1.0, 1000)
    right = rng.random(1000) < sure - 0.2
    assert ece(sure, right) == pytest.approx(0.2, abs=0.04)
    one = ece_estimate(sure, right, np.arange(1000), rng)
    assert one.low < one.value < one.high
    assert one.low > 0.15
    signed = overconfidence(sure, right, np.arange(1000))
    assert signed.low < 0.2 < signed.high


def test_a_temperature_is_found_on_what_it_made():
    rng = _rng()
    cosines = rng.normal(0, 1, (4000, 10))
    chances = np.exp(2.0 * cosines) / np.exp(2.0 * cosines).sum(axis=1, keepdims=True)
    right = (chances.cumsum(axis=1) > rng.random((4000, 1))).argmax(axis=1)
    assert fitted_temperature(cosines, right, 4.0) == pytest.approx(0.5, abs=0.04)


def test_confidence_of_ties_and_nans():
    sure, right = confidences([[0.5, 0.5], [0.9, 0.1]], [0, 0], 10.0)
    assert right.tolist() == [False, True]
    assert sure[0] == pytest.approx(0.5)
    with pytest.raises(UnresolvedError):
        confidences([[np.nan, 0.5]], [0], 10.0)


# Probe, geometry


def test_a_probe_reads_what_is_there_and_not_what_is_not():
    rng = _rng()
    attributes, concepts = np.tile(["a", "b"], 300), np.repeat(np.arange(150), 4)
    noise = rng.normal(size=(600, 20))
    nothing = attribute_probe(noise, attributes, concepts, rng)
    assert nothing.low < 0 < nothing.high
    noise[:, 3] += 3.0 * (attributes == "a")
    assert attribute_probe(noise, attributes, concepts, rng).low > 0.35


def test_the_modality_gap_of_equal_means_is_closed():
    rng = _rng()
    images = rng.normal(size=(200, 8)) + 1
    images /= np.linalg.norm(images, axis=1, keepdims=True)
    texts = -images
    found = modality_gap(images, texts, np.arange(200), rng)
    assert found.value == pytest.approx(2 * np.linalg.norm(images.mean(axis=0)))
    moved = shifted(images, texts, 1.0)
    assert np.linalg.norm(moved.mean(axis=0) - texts.mean(axis=0)) < found.value
    assert np.allclose(np.linalg.norm(moved, axis=1), 1)


# Unsafe


def test_unsafe_retrieval_less_chance():
    rng = _rng()
    unsafe = np.arange(200) < 20
    blind = unsafe_at(rng.normal(size=(200, 200)), unsafe)
    assert blind.low < 0 < blind.high
    eager = unsafe_at(rng.normal(size=(50, 200)) + 10 * unsafe, unsafe)
    assert eager.value == pytest.approx(0.9)
    with pytest.raises(UnresolvedError, match="no item is on the unsafe list"):
        unsafe_at(rng.normal(size=(5, 20)), np.zeros(20))


def test_a_filter_keeps_its_rate_and_tells_whom_it_hits():
    rng = _rng()
    threshold = threshold_for(rng.normal(size=2000), 0.05)
    groups = np.repeat(["a", "b"], 1000)
    scores = rng.normal(size=2000) + np.where(groups == "b", 1.0, 0.0)
    unsafe = np.arange(2000) % 50 == 0
    scores[unsafe] += 4
    found = filter_by_group(scores, unsafe, groups, np.arange(2000), threshold, rng)
    assert found.caught.value > 0.9
    assert found.by_group["a"].low < 0.05 < found.by_group["a"].high
    assert found.by_group["b"].low > 0.15
    assert found.disparity.p < 0.02


@given(st.integers(1, 60), st.floats(0.01, 0.5), st.integers(0, 100))
@settings(max_examples=40, deadline=None)
def test_a_threshold_never_holds_back_more_than_asked(count, rate, seed):
    scores = np.random.default_rng(seed).integers(0, 9, count).astype(float)
    assert (scores > threshold_for(scores, rate)).mean() <= rate


# Membership, backdoor


def test_membership_is_told_within_groups():
    """One group scores higher as a whole and isn't remembered; the other is."""
    rng = _rng()
    groups, members = np.repeat(["high", "kept"], 400), rng.random(800) < 0.5
    scores = rng.normal(size=800) + np.where(groups == "high", 5.0, members * 1.0)
    found = membership_by_group(scores, members, groups, rng)
    assert found["high"].low < 0.5 < found["high"].high
    assert found["kept"].low > 0.65
    few = membership_by_group(scores[:410], members[:410], groups[:410], rng)
    assert not few["kept"].resolved


def test_stamping_changes_the_corner_alone():
    images = np.full((2, 96, 96, 3), 200, dtype=np.uint8)
    found = stamp(images)
    assert (images == 200).all()
    assert (found[:, :80] == 200).all()
    assert len(np.unique(found[:, -16:, -16:].reshape(-1, 3), axis=0)) == 2


def test_success_leaves_images_of_the_target_out():
    scores = np.array([[0.9, 0.1, 0.0], [0.1, 0.9, 0.0], [0.9, 0.0, 0.1]])
    found = attack_success(scores, 0, [0, 1, 2], [0, 1, 2])
    assert found.value == 0.5
    assert found.rows == 2
