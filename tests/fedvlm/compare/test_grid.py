"""The grid goes on: failed cells, refused ones, and a comparison that was stopped."""

from types import SimpleNamespace

import pytest

from fedvlm.compare import grid as module
from fedvlm.compare import measure
from fedvlm.compare.show import markdown, tables, text_of
from fedvlm.compare.spec import Spec
from fedvlm.config import Config
from fedvlm.errors import DropoutError
from fedvlm.reporting.comparison import ACCURACY, Cell, Column, Comparison, Grid

UTILITY = {
    "accuracy": {"value": 0.5, "low": 0.4, "high": 0.6},
    "by_concept": {
        "run": {str(k): 0.5 + 0.01 * (k % 7) for k in range(30)},
        "zero_shot": {str(k): 0.2 for k in range(30)},
    },
}


@pytest.fixture
def world(monkeypatch):
    """A world in which a federation is a file, and nothing is loaded; `broken` rows fail."""
    state = SimpleNamespace(ran=[], broken={}, stop_at=None)

    def federate(folder, config, progress):
        name = folder.path.name.rpartition("-")[0]
        if name == state.stop_at:
            raise KeyboardInterrupt
        if name in state.broken:
            raise state.broken[name]
        if not (folder.run / "result.json").exists():
            state.ran.append(name)
            folder.run.mkdir(parents=True)
            (folder.run / "result.json").write_text("{}")
        return SimpleNamespace(privacy=None)

    monkeypatch.setattr(measure, "federate", federate)
    monkeypatch.setattr(measure, "utility", lambda run, progress: UTILITY)
    monkeypatch.setattr(measure, "costs", lambda run: {"upload_bytes": 1.6e6, "server_s": 0.02})
    monkeypatch.setattr(module, "load_task", lambda config, progress: None)
    monkeypatch.setattr(module, "input_hashes", lambda task: {"data": "a"})
    monkeypatch.setattr(module, "references", lambda *_: {"zero_shot": 0.25, "central": 0.6})
    return state


SPEC = Spec(
    Config(),
    ("none", "secagg", "own-8", "shared-8"),
    ("utility", "cost"),
    ("lora", "prototypes"),
    (0,),
)


def by_name(found):
    return {(row.name, row.adapter): row.cells for row in found.rows}


def test_a_failed_cell_loses_no_other_and_its_reason_stands_in_its_place(world, tmp_path):
    world.broken = {
        "secagg-lora-0": DropoutError("2 of 10 answered"),
        "own-8-lora-0": ZeroDivisionError("a fault of ours"),
    }
    lines = []
    grower = module.Grower(SPEC, tmp_path, say=lines.append)
    found = grower.run()
    rows = by_name(found)
    assert rows["none", "lora"][ACCURACY].value == 0.5
    assert rows["secure aggregation", "lora"][ACCURACY].failed == "failed: 2 of 10 answered"
    why = rows["example DP, own noise, ε = 8", "lora"][ACCURACY].failed
    assert why == "failed: ZeroDivisionError a fault of ours"
    assert rows["secure aggregation", "prototypes"][ACCURACY].value == 0.5
    shared = rows["example DP, shared noise, ε = 8", "lora"][ACCURACY].failed
    assert shared.startswith("refused: noise =")
    assert "bounded terms" in shared
    assert rows["example DP, shared noise, ε = 8", "prototypes"][ACCURACY].value == 0.5
    assert len(lines) == 9
    assert "7 left" in lines[0]
    assert Comparison.load(tmp_path) == found
    world.broken = {}  # what failed is tried again, and nothing else is run
    before = len(world.ran)
    again = module.Grower(SPEC, tmp_path).run()
    assert world.ran[before:] == ["secagg-lora-0", "own-8-lora-0"]
    assert by_name(again)["secure aggregation", "lora"][ACCURACY].value == 0.5


def test_a_stage_that_fails_loses_its_own_columns_alone(world, tmp_path, monkeypatch):
    def broken(run, progress):
        raise RuntimeError("no images")

    monkeypatch.setattr(measure, "utility", broken)
    grower = module.Grower(SPEC, tmp_path)
    cells = by_name(grower.run())["none", "lora"]
    assert "no images" in cells[ACCURACY].failed
    assert cells["upload_bytes"].value == 1.6e6
    assert any(why.startswith("failed") for why in grower.failures.values())  # exit code 1


def test_a_stopped_comparison_goes_on_and_shows_what_it_has(world, tmp_path):
    world.stop_at = "own-8-lora-0"
    with pytest.raises(KeyboardInterrupt):
        module.Grower(SPEC, tmp_path).run()
    half = by_name(Comparison.load(tmp_path))
    assert half["secure aggregation", "lora"][ACCURACY].value == 0.5
    assert "not measured yet" in half["none", "prototypes"][ACCURACY].failed
    world.stop_at = None
    done = list(world.ran)
    module.Grower(SPEC, tmp_path).run()
    assert world.ran[: len(done)] == done
    assert len(world.ran) == len(set(world.ran)) == 7


def test_the_table_is_told_in_words_and_units(world, tmp_path):
    found = module.Grower(SPEC, tmp_path).run()
    text = markdown(found)
    assert "| none · lora | 50.0 % [40.0, 60.0] |" in text
    assert "1.6 MB" in text
    assert "zero-shot 25.0 %, central 60.0 %" in text
    assert "refused: noise =" in text
    assert "What can't be, and why" in text
    assert tables(found).renderables
    assert text_of(Cell(0.0191), Column("t", "t", "s")) == "19.1 ms"
    assert text_of(None, Column("t", "t")) == "–"


def test_a_quick_table_says_so(world, tmp_path):
    found = module.Grower(Spec(Config(), ("none",), ("utility",), quick=True), tmp_path).run()
    assert found.note.startswith("quick:")
    assert "quick:" in markdown(found).lower()


def test_what_is_there_is_shown_without_a_run(world, tmp_path):
    half = Spec(Config(), ("none",), SPEC.groups, ("lora",))
    module.Grower(half, tmp_path).run()
    lines = []
    found = by_name(module.Grower(SPEC, tmp_path, say=lines.append, measures=False).run())
    assert world.ran == ["none-lora-0"]
    assert found["none", "lora"][ACCURACY].value == 0.5
    assert "not measured yet" in found["secure aggregation", "lora"][ACCURACY].failed


def test_private_inference_alone_runs_no_federation(world, tmp_path, monkeypatch):
    monkeypatch.setattr(module, "inference_grid", lambda *_: Grid())
    spec = Spec(Config(), ("none",), ("inference",))
    found = module.Grower(spec, tmp_path).run()
    assert world.ran == []
    assert (found.rows, found.inference) == ((), Grid())
