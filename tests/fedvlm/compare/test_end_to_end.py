"""A whole small grid, for real: a tiny CLIP, drawn shapes, real protocols and attacks."""

import json

import pytest
from typer.testing import CliRunner

from fedvlm.cli import app
from fedvlm.compare.grid import Grower
from fedvlm.compare.spec import Effort, Spec
from fedvlm.config import config_from
from fedvlm.federation import Result
from fedvlm.reporting.comparison import ACCURACY, UPLOAD, Comparison

SMALL = Effort(rounds=1, per_client=8, canaries=8, altered=20, designers=1, images=4)


def test_a_grid_of_real_runs_tells_what_the_runs_tell(small_run, tmp_path):
    spec = Spec(config_from(small_run), ("none", "secagg"), ("utility", "cost"), effort=SMALL)
    found = Grower(spec, tmp_path).run()
    cells = {row.name: row.cells for row in found.rows}
    for folder in sorted((tmp_path / "cells").glob("*-lora-0-*")):
        result = Result.load(folder / "run")
        name = {"plain": "none", "secagg": "secure aggregation"}[result.protection["name"]]
        last = result.rounds[-1]
        # One of 100 image by image, by the saved adapter: the run's own score.
        assert cells[name][ACCURACY].value == pytest.approx(last["test_one_of_100"], abs=1e-6)
        assert cells[name]["worst_domain"].value == pytest.approx(last["worst_domain"], abs=1e-6)
        assert cells[name][UPLOAD].value == last["upload_bytes_per_client"]
        assert cells[name]["client_s"].value > 0
        assert found.references["zero_shot"] == pytest.approx(
            result.rounds[0]["test_one_of_100"], abs=1e-6
        )
    assert cells["none"]["gain_kept"].note == "by definition"
    again = Grower(spec, tmp_path)
    again.run()
    assert Comparison.load(tmp_path).rows == found.rows


@pytest.mark.slow
@pytest.mark.xdist_group("embedded")
@pytest.mark.timeout(1200)
def test_every_column_of_a_cell_is_measured_on_the_embedded_data(tmp_path):
    path = tmp_path / "mine.toml"
    path.write_text(
        '[data]\nclients = 5\n[adapter]\nkind = "prototypes"\n'
        "[privacy]\ndelta = 1e-2\nsimulated_noise = true\n"
    )
    out = tmp_path / "out"
    told = CliRunner().invoke(
        app,
        ["compare", str(path), "--quick", "--rows", "none,shared-8,client-8", "--out", str(out)],
    )
    assert told.exit_code == 0, told.output + str(told.exception)
    found = Comparison.load(out)
    plain = found.rows[0].cells
    missing = [c.key for c in found.columns if plain.get(c.key) is None and c.key != "epsilon"]
    assert missing == []
    shared = next(row for row in found.rows if "shared" in row.name).cells
    assert shared["auc_V1"].value == "not seen"
    assert 7.5 < shared["epsilon"].value <= 8.0
    assert found.inference is not None
    assert [row.name for row in found.inference.rows] == ["plaintext", "SMPC", "HE projection"]
    assert all(row.number("agreement") == 1.0 for row in found.inference.rows)
    assert json.loads((out / "comparison.json").read_text())["note"].startswith("quick:")
