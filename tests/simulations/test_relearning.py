"""Relearning of a forget list: the page follows the kept result; the script does what it says."""

import copy
import json

import numpy as np
import pytest

from fedvlm.data.unsafe import UNSAFE
from fedvlm.federation.result import Result
from fedvlm.federation.task import load_task
from simulations import relearning
from simulations._relearning_page import draw, table
from simulations._relearning_runs import drawn_list, left_out, state_of
from simulations._trust_rows import configuration
from tests.docs.pages import ROOT

KEPT = json.loads(relearning.REFERENCE.read_text("utf-8"))


def test_the_table_in_the_documentation_is_that_of_the_kept_result():
    path = ROOT / "docs" / "figures" / "relearning.md"
    told = "python -m simulations.relearning --reference --out docs/figures"
    assert path.read_text("utf-8") == table(KEPT), told


def test_what_is_unresolved_is_told_in_the_place_of_a_number(tmp_path):
    few = {"value": None, "unresolved": "unresolved (7 of 20 needed)", "rows": 21, "clusters": 7}
    found = copy.deepcopy(KEPT)
    drawn = found["lists"]["drawn"]
    drawn["rates"][drawn["chosen"]]["curves"]["plain"]["retain"]["1"] = few
    found["lists"]["unsafe"]["membership"]["plain"]["listed"] = few
    assert table(found).count("unresolved (7 of 20 needed)") == 2
    draw(found, tmp_path)
    assert (tmp_path / "relearning.svg").stat().st_size > 1000


@pytest.mark.slow
def test_a_small_run_is_measured_from_beginning_to_end(tmp_path):
    config = configuration("plain", 0, rounds=1, local_epochs=1, rank=4)
    sizes = relearning.Sizes(
        concepts=20, draws=1, retain=24, others=30, epochs=(0, 1), rates=(0.3,)
    )
    found = relearning.measure(config, tmp_path, sizes)
    names = {path.name for path in tmp_path.iterdir()}
    assert names == {
        "plain-0", "plain+sanitise-0", "plain+sanitise-20-drawn-0", "plain-without-20-drawn-0"
    }  # fmt: skip
    drawn, unsafe = found["lists"]["drawn"], found["lists"]["unsafe"]
    assert drawn["concepts"] == 20
    assert drawn["chosen"] == "0.3"
    assert unsafe["concepts"] < 20
    assert unsafe["unresolved"].startswith("unresolved")
    assert "curves" not in unsafe
    assert table(found).count("before training") == 3 + 4

    task = load_task(config)
    listed = drawn_list(task, 20)
    assert not listed & set(UNSAFE)
    # Clients of the run without the pairs held none of them, and all others.
    held = left_out(listed)(task).splits.clients
    captions = {task.data.captions[row] for rows in held for row in rows}
    lost = np.setdiff1d(np.concatenate(task.splits.clients), np.concatenate(held))
    assert not captions & listed
    assert {task.data.captions[row] for row in lost} == listed
    # The adapter that was read is the one whose test score the run's result has.
    frozen = dict(task.model.vlm.named_parameters())
    for name in names:
        task.view.write(state_of(tmp_path / name, task.view, frozen))
        score = task.scores({"test": task.splits.test})["test_one_of_100"]
        assert score == pytest.approx(Result.load(tmp_path / name).summary["federated"], abs=1e-6)
    task.reset()
