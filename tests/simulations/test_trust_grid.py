"""The grid's table, contrasts and figures come from its cells alone; cells are what they say."""

import numpy as np
import pytest

from fedvlm.errors import ConfigError
from simulations._trust_backdoor import ATTACKS, attack_configuration
from simulations._trust_repairs import POSTHOC, TRAINED, repaired_client
from simulations._trust_rows import PROTECTIONS, configuration
from simulations._trust_table import MARGINS, contrasts, save_figures, summary, write_tables
from simulations.trust_grid import cells


def _cell(name, seed, shift, spread=0.02, kind="protection"):
    rng = np.random.default_rng(seed)
    noise = np.random.default_rng([seed, sum(map(ord, name))]).normal(0, spread, 120)
    columns = []
    for measure in ("tone_gap", "overconfidence", "backdoor"):
        values = rng.normal(0.1, 0.2, 120) + shift + noise
        after = {
            "value": float(values.mean()),
            "low": 0.0,
            "high": 0.2,
            "rows": 120,
            "clusters": 120,
        }
        columns.append(
            {
                "pillar": "fairness",
                "name": measure,
                "title": measure,
                "before": {**after, "value": 0.05},
                "after": after,
                "by_concept": {str(n): float(v) for n, v in enumerate(values)},
            }
        )
    return {"cell": name, "kind": kind, "seed": seed, "columns": columns, "seconds": 1.0}


@pytest.fixture
def grid():
    return [
        _cell(name, seed, shift)
        for name, shift in (("plain", 0.0), ("secagg", 0.0), ("client", 0.1))
        for seed in range(3)
    ]


def test_a_row_that_changed_is_found_and_one_that_did_not_is_shown_equal(grid):
    rows = {row[0]: row for row in contrasts(grid, ["plain", "secagg", "client"])}
    assert "plain" not in rows
    assert all("equal within" in cell and "not shown" not in cell for cell in rows["secagg"][2:])
    assert all(cell.endswith("*") for cell in rows["client"][2:])
    assert all("*" not in cell for cell in rows["secagg"][2:])


def test_seeds_too_noisy_are_not_shown_equal():
    noisy = [_cell(n, s, 0.0, spread=2.0) for n in ("plain", "secagg") for s in range(3)]
    (row,) = contrasts(noisy, ["plain", "secagg"])
    assert all("not shown equal" in cell for cell in row[2:])


def test_tables_and_figures_are_rebuilt_from_the_cells(grid, tmp_path):
    text = write_tables(grid, ["plain", "secagg", "client"], tmp_path)
    assert "| zero-shot |" in text
    assert "contrasts to plain" in text
    paths = save_figures(grid, ["plain", "secagg", "client"], tmp_path)
    assert {path.name for path in paths} >= {"trust-fairness.svg"}
    assert summary(grid[:1], "tone_gap").low == 0.0  # one seed: its own interval
    assert summary([], "tone_gap") is None


def test_every_cell_is_a_federation_that_can_be_configured():
    assert set(MARGINS) == {"tone_gap", "overconfidence", "backdoor"}
    for row in PROTECTIONS:
        assert configuration(row, 0).data.membership == "half"
    for name in ATTACKS:
        assert attack_configuration(name, 0).data.clients == 10
    known = cells()
    assert {"plain", "attack-plain", "plain+leace", "example-8+robust"} <= set(known)
    assert len(known) == len(PROTECTIONS) + len(ATTACKS) + 2 * (len(POSTHOC) + len(TRAINED))


def test_a_repair_that_does_not_compose_never_starts():
    with pytest.raises(ConfigError, match="couples"):
        repaired_client(configuration("example-8", 0), "adversary")
