"""The kept comparison: its page is made from it, and a fresh cell comes out as it says."""

import pytest

from fedvlm.compare import measure
from fedvlm.compare.cells import CellFolder
from fedvlm.compare.columns import GROUPS, columns_of
from fedvlm.compare.rows import ROWS
from fedvlm.compare.spec import read_spec
from fedvlm.federation.task import quiet
from fedvlm.reporting.comparison import Comparison
from simulations.compare_page import PAGE, REFERENCE, page
from tests.docs.pages import ROOT

CONFIG = ROOT / "simulations" / "configs" / "compare.toml"


def test_the_page_is_made_from_the_kept_comparison():
    written = (ROOT / "docs" / "figures" / PAGE).read_text("utf-8")
    assert written == page(), "python -m simulations.compare_page"


def test_the_kept_comparison_is_of_every_row_on_every_adapter():
    found, spec = Comparison.load(REFERENCE), read_spec(CONFIG, quick=True)
    rows = [(row.name, row.adapter) for row in found.rows]
    assert rows == [(ROWS[row].title, each) for each in spec.adapters for row in spec.rows]
    assert found.columns == columns_of(tuple(GROUPS))
    assert found.note.startswith("quick:")
    assert set(found.references) == {"zero_shot", "control", "local_only", "central"}
    for row in found.rows:  # a value, or why there is none
        assert row.cells["accuracy"] is not None


@pytest.mark.slow
@pytest.mark.xdist_group("embedded")
@pytest.mark.parametrize("row", ["none", "shared-8"])
def test_a_fresh_cell_is_the_kept_one(row, tmp_path):
    """Noise follows from the seed, so that only rounding differs from machine to machine."""
    kept = next(
        one.cells
        for one in Comparison.load(REFERENCE).rows
        if (one.name, one.adapter) == (ROWS[row].title, "prototypes")
    )
    config = read_spec(CONFIG, quick=True).config(row, "prototypes", 0)
    cell = CellFolder(tmp_path)
    measure.federate(cell, config, quiet)
    found = measure.utility(cell.run, quiet)
    for key in ("accuracy", "unseen", "worst_domain", "forgotten"):
        assert found[key]["value"] == pytest.approx(kept[key].value, abs=0.01), key
    upload = measure.costs(cell.run)["upload_bytes"]
    assert upload == pytest.approx(kept["upload_bytes"].value, rel=0.05)
