"""Every partitioner deals out each pair exactly once."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fedvlm.data.partition import PARTITIONS, Labels, designer_topic
from fedvlm.errors import ConfigError


@settings(max_examples=60, deadline=None)
@given(
    name=st.sampled_from(sorted(PARTITIONS)),
    size=st.integers(60, 300),
    clients=st.integers(4, 12),
    alpha=st.floats(0.05, 10),
    seed=st.integers(0, 2**32),
)
def test_a_partition_is_a_permutation(name, size, clients, alpha, seed):
    rng = np.random.default_rng(seed)
    pool = rng.permutation(10 * size)[:size]
    labels = Labels(rng.integers(0, 4, size), rng.integers(0, 5, size))
    parts = PARTITIONS[name](pool, labels, clients, alpha, rng)
    assert len(parts) == clients
    assert sorted(np.concatenate(parts).tolist()) == sorted(pool.tolist())


def test_designer_topic_gives_a_client_one_designer(rng):
    domains, topics = rng.integers(0, 5, 500), rng.integers(0, 8, 500)
    parts = designer_topic(np.arange(500), Labels(domains, topics), 10, 0.3, rng)
    assert [len(np.unique(domains[part])) for part in parts] == [1] * 10
    # Skew: within a designer the two clients' topics differ far more than by chance.
    first, second = (np.bincount(topics[part], minlength=8) for part in parts[:2])
    assert np.abs(first - second).sum() > 0.5 * (first + second).sum()


def test_designer_topic_needs_a_client_a_designer(rng):
    labels = Labels(np.arange(5), np.zeros(5, dtype=int))
    with pytest.raises(ConfigError, match="at least one client a domain"):
        designer_topic(np.arange(5), labels, 4, 0.3, rng)


def test_quantity_leaves_nobody_empty(rng):
    labels = Labels(np.zeros(40, dtype=int), np.zeros(40, dtype=int))
    for _ in range(50):
        parts = PARTITIONS["quantity"](np.arange(40), labels, 20, 0.05, rng)
        assert min(map(len, parts)) >= 1
