"""Cells by content: kept, not kept where a stage failed, and another folder for other inputs."""

import pytest

from fedvlm.compare.cells import CellFolder
from fedvlm.config import Config, config_from

INPUTS = {"data": "a", "weights": "b"}
VERSIONS = {"torch": "1"}


def test_a_stage_is_measured_once_and_a_failed_one_again(tmp_path):
    cell, calls = CellFolder(tmp_path), []

    def measure():
        calls.append(1)
        if len(calls) == 1:
            raise RuntimeError("no")
        return {"value": 0.1}

    with pytest.raises(RuntimeError):
        cell.kept("attack", measure, candidates=60)
    assert cell.kept("attack", measure, candidates=60) == {"value": 0.1}
    assert cell.kept("attack", measure, candidates=60) == {"value": 0.1}
    assert len(calls) == 2
    cell.kept("attack", measure, candidates=200)  # other sizes are another measurement
    assert len(calls) == 3


def test_a_broken_file_is_measured_again(tmp_path):
    cell = CellFolder(tmp_path)
    cell.kept("utility", lambda: {"value": 1})
    (path,) = tmp_path.glob("*.json")
    path.write_text("{")
    assert cell.kept("utility", lambda: {"value": 2}) == {"value": 2}


def test_what_decides_a_cell_names_it_and_nothing_else_does(tmp_path):
    def of(config=None, inputs=INPUTS, versions=VERSIONS):
        return CellFolder.of(tmp_path, "none-lora-0", config or Config(), inputs, versions).path

    assert of() == of()
    assert of(config_from({"workers": 2})) == of()  # how many train at a time decides nothing
    others = [
        of(config_from({"rounds": 7})),
        of(config_from({"transcript": True})),
        of(inputs=INPUTS | {"data": "c"}),
        of(inputs=INPUTS | {"weights": "c"}),
        of(versions={"torch": "2"}),
    ]
    assert len({of(), *others}) == 6


def test_seconds_add_up_over_visits(tmp_path):
    cell = CellFolder(tmp_path)
    with pytest.raises(KeyboardInterrupt), cell.timed():
        raise KeyboardInterrupt
    first = cell.seconds["wall"]
    with cell.timed():
        pass
    assert cell.seconds["wall"] >= first
    assert cell.files == 0  # the clock's own file is no stage
