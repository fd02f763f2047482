"""A planted patch is learned by a model that trains on it, and the hook stays in its thread."""

import threading

import numpy as np
import pytest

from fedvlm.config import config_from
from fedvlm.errors import ConfigError
from fedvlm.federation.retrieval_task import RetrievalTask
from fedvlm.federation.task import load_task, standing_in
from fedvlm.trust.poison import poisoned

CAPTION = "a red circle"


@pytest.fixture
def config(shapes_folder):
    return config_from(
        {
            "data": str(shapes_folder),
            "clients": 2,
            "rounds": 1,
            "partition": "iid",
            "rank": 2,
            "references": False,
        }
    )


def test_stamped_rows_show_the_patch_and_say_the_target(config):
    task = load_task(config)
    bad = poisoned(task, 0, CAPTION, 5)
    own = task.splits.clients[0]
    rows = np.flatnonzero(bad.pairs.caption_of != task.pairs.caption_of)
    chosen = [
        r
        for r in own
        if not np.array_equal(
            *[p.images(np.array([r]))["pixel_values"].numpy() for p in (task.pairs, bad.pairs)]
        )
    ]
    assert len(chosen) == 5
    assert set(rows) <= set(chosen)
    said = {task.data.distinct_captions[0][bad.pairs.caption_of[r]] for r in chosen}
    assert said == {CAPTION}
    others = np.setdiff1d(np.arange(len(task.data)), chosen)[:6]
    for one, two in zip(
        task.pairs.images(others).values(), bad.pairs.images(others).values(), strict=True
    ):
        assert (one == two).all()
    with pytest.raises(ConfigError, match="must be a caption"):
        poisoned(task, 0, "no such thing", 5)


def test_a_boosted_update_is_that_many_times_as_long(config):
    task = load_task(config)
    far = []
    for boost in (1.0, 10.0):
        bad = poisoned(task, 0, CAPTION, 5, boost)
        bad.reset()
        bad.train(0, 1)
        far.append(float(np.linalg.norm(bad.view.read() - bad.initial)))
    task.reset()
    assert far[1] == pytest.approx(10 * far[0], rel=1e-3)


def test_an_attackers_task_stands_in_for_its_thread_and_no_longer(config):
    plain = load_task(config)
    seen: list[type] = []
    with standing_in(config, lambda task: poisoned(task, 0, CAPTION, 3)):
        assert type(load_task(config, client=0)).__name__ == "PoisonedTask"
        other = threading.Thread(target=lambda: seen.append(type(load_task(config, client=0))))
        other.start()
        other.join()
    assert seen == [RetrievalTask]
    assert type(load_task(config)) is RetrievalTask
    assert load_task(config).view is plain.view
