"""The ROC that an audit writes down: true to the curve, with an interval at each point."""

import json

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from fedvlm.leakage.audit import AuditResult


@settings(max_examples=30, deadline=None)
@given(seed=st.integers(0, 2**32 - 1), n=st.integers(30, 300), ties=st.booleans())
def test_a_band_encloses_the_curve(seed, n, ties):
    rng = np.random.default_rng(seed)
    inside = np.arange(n) < n // 2
    scores = rng.normal(size=n) + inside
    one = AuditResult(np.round(scores) if ties else scores, inside)
    found = np.array(json.loads(json.dumps(one.band(), allow_nan=False)))
    fpr, tpr, low, high = found.T
    assert fpr[0] == 1 / (~inside).sum()
    assert (np.diff(fpr) > 0).all()
    assert (low <= tpr).all()
    assert (tpr <= high).all()
    assert ((low >= 0) & (high <= 1)).all()
    assert [one.curve.tpr_at(f) for f in fpr] == tpr.tolist()
    assert found[-1].tolist() == [1, 1, 1, 1]


def test_a_band_is_no_narrower_where_scores_move_together():
    rng = np.random.default_rng(0)
    inside = rng.random(200) < 0.5
    scores = rng.normal(size=200) + inside
    alone = np.array(AuditResult(scores, inside).band())
    grouped = np.array(AuditResult(scores, inside, clusters=np.arange(200) // 20).band())
    assert (grouped[:, 2] <= alone[:, 2]).all()
    assert (grouped[:, 3] >= alone[:, 3]).all()
