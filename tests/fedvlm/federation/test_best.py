"""Which round was best, and that its adapter is the one that is kept."""

import shutil

import numpy as np
from hypothesis import given
from hypothesis import strategies as st
from safetensors.numpy import load_file

from fedvlm.config import config_from
from fedvlm.federation import load_task, simulate
from fedvlm.federation.best import BEST, best_of, is_best

SCORES = st.lists(st.one_of(st.none(), st.floats(0, 1)), min_size=0, max_size=8)


def history(scores):
    entries = [{"round": n, "validation_one_of_100": s} for n, s in enumerate(scores, 1)]
    return [{"round": 0, "validation_one_of_100": 1.0}, *entries]


@given(SCORES)
def test_the_best_is_the_earliest_of_the_highest_and_never_the_untouched_model(scores):
    found = best_of(history(scores), "one_of_100", personal=False)
    there = [s for s in scores if s is not None]
    if not there:
        assert found == {}
        return
    assert found["validation"] == max(there)
    assert found["round"] == scores.index(max(there)) + 1
    assert found["adapter"] == ("adapter" if found["round"] == len(scores) else BEST)
    assert best_of(history(scores), "one_of_100", personal=True) == {}


@given(SCORES)
def test_as_it_goes_the_last_best_is_the_best_of_all(scores):
    whole = history(scores)
    said = [n for n in range(1, len(whole)) if is_best(whole[: n + 1], "one_of_100", False)]
    best = best_of(whole, "one_of_100", personal=False)
    assert (said[-1] if said else None) == best.get("round")


def test_the_best_rounds_adapter_is_kept_also_over_a_resume(small_run, tmp_path, monkeypatch):
    from fedvlm.federation import run

    scores = iter([0.1, 0.9, 0.2, 0.3])
    real = run.load_task

    def scored(config, progress):
        task = real(config, progress)
        evaluator = task.evaluator

        def evaluate(vlm):
            return evaluator(vlm) | {"validation_one_of_100": next(scores)}

        task.__dict__["evaluator"] = evaluate
        return task

    monkeypatch.setattr(run, "load_task", scored)
    settings = small_run | {"rounds": 1}
    first = simulate(config_from(settings), out=tmp_path)
    assert first.best == {"round": 1, "validation": 0.9, "adapter": "adapter"}
    assert not (tmp_path / BEST).exists()
    after_one = load_file(tmp_path / "adapter" / "adapter_model.safetensors")
    shutil.copytree(tmp_path, tmp_path.with_name("kept"))
    result = simulate(config_from(small_run | {"rounds": 3}), out=tmp_path, resume=True)
    assert result.best == {"round": 1, "validation": 0.9, "adapter": BEST}
    best = load_file(tmp_path / BEST / "adapter_model.safetensors")
    last = load_file(tmp_path / "adapter" / "adapter_model.safetensors")
    assert all(np.array_equal(best[k], after_one[k]) for k in after_one)
    assert any(not np.array_equal(last[k], after_one[k]) for k in after_one)
    load_task(config_from(small_run)).__dict__.pop("evaluator", None)
