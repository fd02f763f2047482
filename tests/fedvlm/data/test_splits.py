"""Splits: disjoint, reproducible, i.i.d. membership, nothing of the test in training."""

from dataclasses import replace

import numpy as np
import pytest
from scipy import stats

from fedvlm.data.dataset import ImageTextData
from fedvlm.data.splits import make_splits
from fedvlm.errors import ConfigError
from fedvlm.seeds import ExperimentSeed


@pytest.fixture(scope="module")
def many():
    """600 concepts by six designers, half of them public; the images are empty."""
    concepts = np.repeat(np.arange(600), 6)
    domains = np.tile(np.arange(6), 600)
    return ImageTextData(
        name="many",
        encoded=[b""] * 3600,
        captions=tuple(f"concept {c}" for c in concepts),
        concepts=concepts,
        domains=domains,
        topics=concepts // 2 % 8,
        public=concepts % 2 == 0,
        domain_names=("noto", "noto-v1", "twemoji", "emojione", "fluent-flat", "openmoji"),
        topic_names=tuple(f"t{i}" for i in range(8)),
    )


def test_parts_do_not_overlap(many):
    splits = make_splits(many, ExperimentSeed(0))
    parts = [*splits.clients, splits.validation, splits.test, splits.ood]
    parts += [splits.withheld, splits.retention, splits.public]
    joined = np.concatenate(parts)
    assert len(np.unique(joined)) == len(joined)


def test_no_client_holds_a_test_hand_or_a_withheld_concept(many):
    splits = make_splits(many, ExperimentSeed(1))
    held = np.concatenate(splits.clients)
    pairs = set(zip(many.concepts[held].tolist(), many.domains[held].tolist(), strict=True))
    test = zip(many.concepts[splits.test].tolist(), many.domains[splits.test].tolist(), strict=True)
    assert not pairs & set(test)
    assert not set(many.concepts[held].tolist()) & set(many.concepts[splits.withheld].tolist())
    assert not many.public[held].any()
    # Every test concept is held by some client in another hand: that is what can be gained.
    assert set(many.concepts[splits.test].tolist()) <= set(many.concepts[held].tolist())


def test_the_same_seed_gives_the_same_split(many):
    one, two = (make_splits(many, ExperimentSeed(3)) for _ in range(2))
    assert one.fingerprint == two.fingerprint
    assert one.fingerprint != make_splits(many, ExperimentSeed(4)).fingerprint


def test_membership_is_a_fair_coin_independent_of_what_is_known(many):
    # Pooled over seeds; each test's false-alarm rate is 1e-6.
    inside, total, by_topic = 0, 0, np.zeros((8, 2))
    for seed in range(10):
        splits = make_splits(many, ExperimentSeed(seed), membership="half")
        members = np.concatenate(splits.clients)
        outsiders = np.concatenate(splits.non_members)
        assert not np.intersect1d(members, outsiders).size
        inside, total = inside + len(members), total + len(members) + len(outsiders)
        by_topic[:, 0] += np.bincount(many.topics[members], minlength=8)
        by_topic[:, 1] += np.bincount(many.topics[outsiders], minlength=8)
    assert stats.binomtest(inside, total, 0.5).pvalue > 1e-6
    assert stats.chi2_contingency(by_topic).pvalue > 1e-6


def test_membership_all_has_no_outsiders(many):
    splits = make_splits(many, ExperimentSeed(0))
    assert sum(map(len, splits.non_members)) == 0


def test_a_folder_without_public_concepts(shapes):
    splits = make_splits(shapes, ExperimentSeed(0), clients=3, partition="iid")
    assert len(splits.withheld) == len(splits.public) == len(splits.ood) == 0
    assert len(splits.test) > 0
    assert sum(map(len, splits.clients)) + len(splits.test) + len(splits.validation) == 54


def test_captions_that_stand_once(shapes):
    alone = replace(shapes, concepts=np.arange(54))
    splits = make_splits(alone, ExperimentSeed(0), clients=3, partition="iid")
    assert len(splits.test) > 0


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"clients": 40}, "40 clients need at least 80 training pairs"),
        ({"clients": 1}, "clients >= 2"),
        ({"partition": "none"}, "partition must be one of"),
        ({"membership": "some"}, "membership must be"),
        ({"clients": 12, "partition": "dirichlet", "alpha": 0.01}, "would hold [01] pairs"),
    ],
)
def test_what_cannot_be_split_is_refused(shapes, settings, message):
    with pytest.raises(ConfigError, match=message):
        make_splits(shapes, ExperimentSeed(0), **({"partition": "iid"} | settings))
