"""The file of a comparison: what is written is what is read, and nothing else passes for one."""

import json
import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fedvlm.errors import ConfigError
from fedvlm.reporting.comparison import Cell, Column, Comparison, Grid, Row, comparison_from

NUMBERS = st.floats(allow_nan=False, allow_infinity=False)
CELLS = st.one_of(
    st.none(),
    st.builds(Cell, value=NUMBERS, low=NUMBERS, high=NUMBERS, note=st.text()),
    st.builds(Cell, value=st.text()),
    st.builds(Cell, failed=st.text(min_size=1)),
)
ROWS = st.builds(
    Row, st.text(), st.text(), st.dictionaries(st.sampled_from(["accuracy", "epsilon"]), CELLS)
)
GRIDS = st.builds(
    Grid, st.just((Column("accuracy", "accuracy", "fraction", "high"),)), st.tuples(ROWS, ROWS)
)


@given(grid=GRIDS, inference=st.one_of(st.none(), GRIDS))
def test_what_is_written_is_what_is_read(grid, inference):
    one = Comparison(grid.columns, grid.rows, inference, {"zero_shot": 0.25}, seeds=(0, 1))
    assert comparison_from(json.loads(json.dumps(one.to_dict(), allow_nan=False))) == one


def test_a_folder_keeps_it(tmp_path):
    one = Comparison(rows=(Row("none", "lora", {"accuracy": Cell(0.5, 0.4, 0.6)}),), command="x")
    assert one.save(tmp_path).name == "comparison.json"
    assert Comparison.load(tmp_path) == one
    assert one.rows[0].number("accuracy") == 0.5
    assert one.rows[0].number("epsilon") is None


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"columns": [], "rows": [{}]}', "null"])
def test_nothing_else_passes_for_one(tmp_path, text):
    (tmp_path / "comparison.json").write_text(text)
    with pytest.raises(ConfigError, match="is not a comparison"):
        Comparison.load(tmp_path)


def test_a_missing_one_is_named(tmp_path):
    with pytest.raises(ConfigError, match="no comparison at"):
        Comparison.load(tmp_path)


@pytest.mark.parametrize(
    "told", [{}, {"value": 1.0, "failed": "so"}, {"value": math.nan}, {"value": 1, "low": math.inf}]
)
def test_a_cell_is_a_number_or_a_reason(told):
    with pytest.raises(ConfigError):
        Cell(**told)
