"""The utility table under DP: its cells, its federations' settings, its intervals, its figure."""

import json
import math

import numpy as np
import pytest
from scipy import stats

from fedvlm.reporting.student import interval
from simulations import _gate_cells, _lora_cells
from simulations._heads_cells import CLIENT_LEVEL, cells
from simulations._privacy_figure import figure, table
from simulations.privacy_utility import REFERENCE, gathered, load_scores, path_of


def _scores(*names, values=(20.0, 30.0)):
    return {name: {"test": list(values), "ood": [1.0], "withheld": []} for name in names}


def test_every_adapter_and_placement_has_a_cell():
    names = {cell.name for cell in cells()}
    assert len(names) == len(cells())
    for delta in ("0.001", "1e-05"):
        for epsilon in (8, 3, 1):
            end = f"ε = {epsilon}, δ = {delta}"
            assert {f"{one}, one noise, {end}" for one in ("prototypes", "head")} <= names
            assert {f"{one}, each alone, {end}" for one in ("gate", "LoRA")} <= names
    for adapter in ("prototypes", "head", "gate", "LoRA"):
        assert f"{adapter}, no DP" in names
    assert [clients for clients, _ in CLIENT_LEVEL] == [10, 100, 300, 1_000, 3_000, 10_000]


def test_federations_under_dp_are_simulated_and_say_so():
    for dp in ("example", "client", "distributed"):
        config = _lora_cells.configuration(3, dp, 8.0)
        assert config.training.seed == 3
        assert config.privacy.simulated_noise
        assert config.privacy.dp == dp
    assert _lora_cells.configuration(3, "none").privacy.dp == "none"
    gate = _gate_cells.configuration(1, 3.0, 1e-5)
    assert (gate.privacy.epsilon, gate.privacy.delta, gate.privacy.simulated_noise) == (
        3.0,
        1e-5,
        True,
    )
    assert _gate_cells.configuration(1, None, 1e-5).privacy.dp == "none"
    # More noise, a lower rate; and at δ = 10⁻³ the rule gives about what was chosen there.
    rates = [
        _lora_cells.configuration(0, "example", e, 1e-5).training.learning_rate for e in (8.0, 3.0)
    ]
    assert rates[0] < _lora_cells.RATES[8.0]
    assert rates[1] < rates[0]


def test_the_interval_is_students():
    values = [0.1, 0.2, 0.4, 0.3, 0.25]
    mean, low, high = interval(values)
    expected = stats.t.interval(0.95, 4, loc=np.mean(values), scale=stats.sem(values))
    assert (low, high) == pytest.approx(expected)
    assert mean == pytest.approx(0.25)


def test_cells_are_kept_and_the_table_is_made_of_them(tmp_path):
    cell = cells()[0]
    for seed in (1, 0):
        scores = {"test": 20.0 + seed, "ood": 10.0, "withheld": 5.0}
        held = {"name": cell.name, "seed": seed, "std": 0.0, "scores": scores}
        path_of(tmp_path, cell, seed).write_text(json.dumps(held))
    found = load_scores(tmp_path)
    assert found[cell.name]["test"] == [20.0, 21.0]
    assert "| zero-shot | 20.5 ± 6.4 | 10.0 ± 0.0 | 5.0 ± 0.0 | 2 |" in table(found, cells())
    told = table(_scores("LoRA, no DP"), cells())
    assert "| LoRA, no DP | 25.0 ± 63.5 | 1.0 | – | 2 |" in told


def test_the_figure_shows_what_was_run_beside_the_control():
    names = [cell.name for cell in cells() if not cell.name.startswith("gate")]
    found = figure(_scores(*names))
    labels = found.axes[0].get_legend_handles_labels()[1]
    assert any(label.startswith("public-only control") for label in labels)
    assert any(label.startswith("zero-shot") for label in labels)
    assert not any("gate" in label for label in labels)
    assert next(tick.get_text() for tick in found.axes[0].get_xticklabels()) == "no DP"
    empty = figure({})
    assert len(empty.axes) == 3


def test_what_the_docs_quote_is_kept_and_reaches_what_was_promised():
    scores = gathered(json.loads(REFERENCE.read_text(encoding="utf-8"))["cells"])

    def test(name):
        return interval(scores[name]["test"])

    control = test("public-only control")
    assert test("prototypes, no DP")[0] >= 76
    assert test("prototypes, one noise, ε = 8, δ = 0.001")[0] >= 48
    assert test("prototypes, planned for 6 of 10, ε = 8")[0] >= 40
    assert test("head, one noise, ε = 8, δ = 0.001")[0] >= 42
    assert test("client level, 1,000 clients, ε = 8, δ = 0.0001")[1] > control[2]
    for head in ("prototypes", "head"):
        assert test(f"{head}, one noise, ε = 1, δ = 0.001")[0] >= control[0]
    declared = [cell for cell in cells() if cell.rows == "declared" and cell.name in scores]
    least = interval(scores["public-only control"]["withheld"])[0] - 1
    for cell in declared:
        if cell.head in ("prototypes", "head"):
            assert interval(scores[cell.name]["withheld"])[0] >= least
    assert all(math.isfinite(v) for one in scores.values() for v in one["test"])
