"""Prototypes at client level: a trusted server clips each client's whole sum, and noises once."""

import math

import numpy as np
import pytest

from fedvlm.config import config_from
from fedvlm.federation import simulate
from fedvlm.federation.head_plan import head_of
from fedvlm.federation.head_round import summed
from fedvlm.federation.task import load_task
from fedvlm.privacy.clipping import clip
from fedvlm.privacy.planning import plan
from tests.fedvlm.federation.heads_base import two_classes


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    """A federation of eight clients over 120 images, with next to no noise."""
    settings = two_classes(tmp_path_factory.mktemp("two") / "data", count=120)
    client = {"dp": "client", "epsilon": 1e5, "delta": 1e-2, "clip_norm": 2.0}
    return settings | client | {"clients": 8, "simulated_noise": True}


def test_the_sum_of_clipped_sums_is_read_by_public_facts_alone(base):
    config = config_from(base)
    result = simulate(config)
    task = load_task(config)
    head, found = head_of(task), task.view.read()
    parts = [clip(summed(task, rows), 2.0) for rows in task.splits.clients]
    released = found * config.data.clients  # the server divides by the public number
    assert np.abs(released - np.sum(parts, axis=0)).max() < 0.1
    images = sum(map(len, task.splits.clients))
    kept = min(1.0, 2.0 / math.sqrt(images / 8))
    assert head.total == pytest.approx(8 / kept)
    z = plan(delta=1e-2, sample_rate=1.0, steps=1, target_epsilon=1e5).noise_multiplier
    assert head.std == pytest.approx(2.0 * z / kept)
    assert (result.privacy or {})["unit"] == "client"
    assert result.rounds[-1]["test_one_of_100"] > 0.75


def test_a_client_moves_the_release_by_its_clip_whatever_it_holds(base):
    """One that sends a huge or an infinite sum is clipped, or counts as zero."""
    config = config_from(base)
    task = load_task(config)
    honest = summed(task, task.rows(0))
    for wild in (1e30 * honest, np.full_like(honest, np.nan), np.full_like(honest, np.inf)):
        assert np.linalg.norm(clip(wild, 2.0)) <= 2.0


def test_canaries_are_clients_of_their_own(base, tmp_path):
    config = config_from(base | {"canaries": 8, "transcript": True, "membership": "half"})
    result = simulate(config, out=tmp_path)
    assert result.protection["name"] == "plain"
    assert config.nodes == 16
