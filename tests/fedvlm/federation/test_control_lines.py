"""The line of public pairs alone, beside zero-shot, in every result under DP."""

import numpy as np
import pytest
import torch

from fedvlm.adapters.frozen_head import raw_features
from fedvlm.config import config_from
from fedvlm.federation import simulate
from fedvlm.federation.control_lines import control_lines
from fedvlm.federation.result import Result
from fedvlm.federation.task import load_task
from fedvlm.models.vlm import POOLED
from fedvlm.reporting.tables import summary_rows
from tests.fedvlm.federation.heads_base import OWN, two_classes


def test_without_public_pairs_there_is_zero_shot_and_no_control(tmp_path):
    config = config_from(two_classes(tmp_path / "data") | OWN)
    result = simulate(config)
    task = load_task(config)
    head, noise = task.model.vlm.head, np.ones(task.view.size, dtype=np.float32)
    task.view.write(noise)
    lines = control_lines(task)
    assert task.model.vlm.head is head  # model and adapter are as they were
    assert np.array_equal(task.view.read(), noise)
    task.model.vlm.head = None
    assert lines["zero_shot"] == task.evaluator(task.model.vlm)["test_one_of_100"]
    assert result.summary["zero_shot"] == lines["zero_shot"]
    assert "control" not in result.summary
    assert (result.privacy or {})["outside_epsilon"] == []


@pytest.mark.slow
@pytest.mark.parametrize("adapter", ["prototypes", "feature"])
def test_the_control_is_the_one_of_the_utility_table(adapter):
    from simulations._heads_world import load_world, splits_of

    config = config_from({"adapter": adapter, "dp": "example", "delta": 1e-3, "rounds": 1})
    world, splits = load_world(), splits_of(0)
    lines = control_lines(load_task(config))
    for part, key in ((splits.test, "control"), (splits.withheld, "withheld_control")):
        assert 100 * lines[key] == pytest.approx(world.score(part, world.by_control), abs=0.1)
    for part, key in ((splits.test, "zero_shot"), (splits.ood, "ood_zero_shot")):
        assert 100 * lines[key] == pytest.approx(world.score(part, world.zero_shot), abs=0.1)


def test_a_table_shows_the_control_where_there_is_one():
    summary = {"zero_shot": 0.2, "control": 0.3, "federated": 0.4}
    result = Result(summary, [], None, {}, [], {}, {}, 0, {}, {}, {})
    rows = {row[0]: row[1] for row in summary_rows(result)}
    assert rows == {"zero-shot": "20.0", "public-only control": "30.0", "federated": "40.0"}


def test_features_that_were_kept_of_a_frozen_tower_need_no_pixels():
    """Gates and prompts are evaluated on kept features, and the control beside them is too."""
    embeddings = torch.nn.functional.normalize(torch.randn(3, 8), dim=-1)
    found = raw_features(embeddings, {POOLED: 2 * embeddings})
    assert np.array_equal(found, embeddings.double().numpy())
