"""Splits: disjoint, reproducible, i.i.d. membership, nothing of the test in training."""

import itertools
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from fedvlm.data.dataset import ImageTextData
from fedvlm.data.splits import MIN_TEST_IMAGES, make_splits
from fedvlm.errors import ConfigError
from fedvlm.seeds import ExperimentSeed


@pytest.fixture(scope="module")
def many():
    """600 concepts by six designers, half of them public; the images are numbers."""
    concepts = np.repeat(np.arange(600), 6)
    domains = np.tile(np.arange(6), 600)
    return ImageTextData(
        name="many",
        encoded=[str(n).encode() for n in range(3600)],
        captions=tuple(f"concept {c}" for c in concepts),
        concepts=concepts,
        domains=domains,
        topics=concepts // 2 % 8,
        public=concepts % 2 == 0,
        domain_names=("noto", "noto-v1", "twemoji", "emojione", "fluent-flat", "openmoji"),
        topic_names=tuple(f"t{i}" for i in range(8)),
        ood_domain="openmoji",
        pretraining_domains=("noto", "twemoji"),
    )


def _pairs(images, captions, domains=None):
    """Pairs of a user's own: an image's name is its content, as `load_folder` finds it."""
    from fedvlm.data.folder import _codes, _concepts

    contents = [str(image).encode() for image in images]
    captions = tuple(map(str, captions))
    numbers, names = _codes(domains or ["all"] * len(images))
    return ImageTextData(
        name="own",
        encoded=contents,
        captions=captions,
        concepts=_concepts(captions, contents),
        domains=numbers,
        topics=np.zeros(len(images), dtype=np.int64),
        public=np.zeros(len(images), dtype=bool),
        domain_names=names,
        topic_names=("all",),
        contents=contents,
    )


def _parts(splits):
    """All parts but those of the membership, which are parts of the clients."""
    return [
        *splits.clients, *splits.non_members, splits.validation, splits.test,
        splits.ood, splits.withheld, splits.retention, splits.public,
    ]  # fmt: skip


def _keep_the_contract(data, splits):
    """No pair, and no image, in two parts; every pair that belongs somewhere is there."""
    for one, two in itertools.combinations(_parts(splits), 2):
        assert not np.intersect1d(one, two).size
        assert not np.intersect1d(data.groups[one], data.groups[two]).size
    if not data.public.any():
        assert sum(map(len, _parts(splits))) == len(data)
    test = splits.test
    assert len(np.unique(data.groups[test])) >= MIN_TEST_IMAGES
    assert len({data.captions[i] for i in test}) >= 2
    assert all(len(np.unique(data.groups[part])) >= 2 for part in splits.clients)


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
    assert len(splits.test) == MIN_TEST_IMAGES


_SETTINGS = {"clients": 4, "partition": "iid", "membership": "half"}


def _own(kind):
    """Return data sets as people have them, by kind."""
    rng = np.random.default_rng(0)
    if kind == "five captions an image":
        return _pairs(np.repeat(np.arange(150), 5), [f"caption {n}" for n in range(750)])
    if kind == "some captions at several images":
        captions = [f"caption {n}" if n % 5 else f"a dog {n % 3}" for n in range(750)]
        return _pairs(np.repeat(np.arange(150), 5), captions)
    if kind == "every row twice":
        names = np.tile(np.arange(200), 2)
        return _pairs(names, [f"caption {n}" for n in names])
    if kind == "every row twice, captions of several images":
        names = np.tile(np.arange(200), 2)
        return _pairs(names, [f"caption {n // 4}" for n in names])
    if kind == "two of a thousand stand twice":
        return _pairs(np.arange(1000), [f"caption {n % 998}" for n in range(1000)])
    if kind == "two classes":
        return _pairs(np.arange(200), np.where(rng.random(200) < 0.3, "pneumonia", "normal"))
    if kind == "two classes, copies with the other label":
        names = np.append(np.arange(200), np.arange(20))
        return _pairs(names, np.where(rng.random(220) < 0.3, "pneumonia", "normal"))
    if kind == "copies in two hospitals":
        names = np.tile(np.arange(100), 2)
        domains = ["north"] * 100 + ["south"] * 100
        return _pairs(names, [f"caption {n % 30}" for n in names], domains)
    raise ValueError(kind)


KINDS = (
    "five captions an image",
    "some captions at several images",
    "every row twice",
    "every row twice, captions of several images",
    "two of a thousand stand twice",
    "two classes",
    "two classes, copies with the other label",
    "copies in two hospitals",
)


@pytest.mark.parametrize("partition", ["designer-topic", "dirichlet", "iid", "quantity"])
@pytest.mark.parametrize("kind", KINDS)
def test_d3_no_image_is_trained_on_and_tested(kind, partition):
    data = _own(kind)
    chosen = _SETTINGS | {"partition": partition, "alpha": 3.0}
    splits = make_splits(data, ExperimentSeed(0), **chosen)
    _keep_the_contract(data, splits)
    tested = np.unique(data.groups[np.append(splits.test, splits.validation)])
    assert len(tested) >= 0.15 * len(np.unique(data.groups))


@pytest.mark.parametrize("kind", KINDS)
def test_d3_no_non_member_shows_a_member_s_image(kind):
    data = _own(kind)
    splits = make_splits(data, ExperimentSeed(0), **_SETTINGS)
    members = data.groups[np.concatenate(splits.clients)]
    others = data.groups[np.concatenate(splits.non_members)]
    assert len(others) > 0
    assert not np.isin(others, members).any()


def test_d3_classes_are_tested_in_their_shares():
    captions = ["pneumonia"] * 60 + ["normal"] * 140
    splits = make_splits(_pairs(range(200), captions), ExperimentSeed(0), **_SETTINGS)
    assert len(splits.test) == 30
    assert 8 <= (splits.test < 60).sum() <= 10
    assert 2 <= (splits.validation < 60).sum() <= 4


def test_d3_which_images_are_tested_is_chance():
    # Pooled over seeds, each image is held out as often as any: false alarms of 1e-6.
    data = _own("two of a thousand stand twice")
    counts = np.zeros(1000)
    for seed in range(40):
        splits = make_splits(data, ExperimentSeed(seed), clients=2, partition="iid")
        counts[np.append(splits.test, splits.validation)] += 1
    assert counts.sum() == 40 * 200
    assert stats.binomtest(int(counts[:500].sum()), 8000, 0.5).pvalue > 1e-6
    assert counts.max() < 26  # binomial of 40 at 0.2: above 25 once in 1e9 draws


@pytest.mark.parametrize("name", ["openmoji", "noto", "twemoji"])
def test_d3_a_user_s_domain_is_trained_on_whatever_its_name(name):
    data = _pairs(range(100), [f"caption {n}" for n in range(100)], [name] * 50 + ["other"] * 50)
    splits = make_splits(data, ExperimentSeed(0), **(_SETTINGS | {"membership": "all"}))
    assert (np.concatenate(splits.clients) < 50).any()
    assert len(splits.ood) == len(splits.public) == 0
    _keep_the_contract(data, splits)


@pytest.mark.parametrize(
    ("images", "captions", "message"),
    [
        (range(25), range(25), "shows 25 different images in 25 pairs; at least 26 are needed"),
        ([0] * 100, range(100), "shows 1 different images in 100 pairs"),
        (range(100), ["same"] * 100, "have the same caption"),
        (range(300), ["rare"] + ["same"] * 299, "have the same caption"),
    ],
)
def test_d3_a_test_that_says_nothing_is_refused(images, captions, message):
    with pytest.raises(ConfigError, match=message):
        make_splits(_pairs(images, captions), ExperimentSeed(0), clients=2, partition="iid")


@settings(max_examples=150, deadline=None)
@given(
    st.lists(st.tuples(st.integers(0, 60), st.integers(0, 40)), min_size=1, max_size=150),
    st.integers(0, 3),
    st.integers(2, 5),
    st.sampled_from(["designer-topic", "dirichlet", "iid", "quantity"]),
    st.sampled_from(["all", "half"]),
    st.sampled_from([0, 1, 3]),
)
def test_d3_any_data_is_split_by_image_or_refused(
    pairs, seed, clients, partition, membership, public
):
    images, captions = zip(*pairs, strict=True)
    data = _pairs(images, captions, [f"d{image % 3}" for image in images])
    if public:
        flags = data.concepts % (public + 1) == 0
        data = replace(data, public=flags, ood_domain="d0", pretraining_domains=("d1",))
    try:
        splits = make_splits(
            data,
            ExperimentSeed(seed),
            clients=clients,
            partition=partition,
            alpha=1.0,
            membership=membership,
        )
    except ConfigError as error:
        message = str(error)
        assert message.isprintable()
        return
    _keep_the_contract(data, splits)


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
