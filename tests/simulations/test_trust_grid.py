"""The grid's table, contrasts and figures come from its cells alone; cells are what they say."""

import numpy as np
import pytest

from fedvlm.errors import ConfigError
from simulations._trust_backdoor import ATTACKS, attack_configuration
from simulations._trust_figures import save_figures
from simulations._trust_findings import findings
from simulations._trust_inference import INFERENCES
from simulations._trust_repairs import POSTHOC, TRAINED, repaired_client
from simulations._trust_rows import PROTECTIONS, configuration
from simulations._trust_run import Held, cells
from simulations._trust_table import MARGINS, NOT_RUN, contrasts, summary, write_tables
from simulations.trust_grid import compact


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


def _attack(name, seed, shift):
    whole = _cell(name, seed, shift)["columns"][0]
    success = whole["after"]
    return {
        "cell": f"attack-{name}",
        "kind": "attack",
        "seed": seed,
        "before": {"success": {**success, "value": 0.01}, "one_of_100": 0.25, "by_concept": {}},
        "after": {"success": success, "one_of_100": 0.5, "by_concept": whole["by_concept"]},
        "seconds": 1.0,
    }


ROWS = (("plain", "plain", 0.0), ("secagg", "secagg", 0.0), ("client", "client", 0.1))
ORDER = ["plain", "secagg", "he", "client", "attack-plain", "attack-secagg", "attack-client"]


@pytest.fixture
def grid():
    return [
        made
        for row, attack, shift in ROWS
        for seed in range(3)
        for made in (_cell(row, seed, shift), _attack(attack, seed, shift))
    ]


def test_a_row_that_changed_is_found_and_one_that_did_not_is_shown_equal(grid):
    rows = {row[0]: row for row in contrasts(grid, ORDER)}
    assert set(rows) == {"secagg", "client"}
    assert all("equal within" in cell and "not shown" not in cell for cell in rows["secagg"][2:])
    assert all(cell.endswith("*") for cell in rows["client"][2:])
    assert all("*" not in cell for cell in rows["secagg"][2:])


def test_a_backdoor_that_was_not_run_under_a_protection_is_not_the_floor_of_a_clean_run(grid):
    clean = [cell for cell in grid if cell["kind"] != "attack"]
    rows = {row[0]: row for row in contrasts(clean, ORDER)}
    assert rows["client"][-1] == NOT_RUN
    assert "equal within" in rows["secagg"][2]


def test_seeds_too_noisy_are_not_shown_equal():
    noisy = [_cell(n, s, 0.0, spread=2.0) for n in ("plain", "secagg") for s in range(3)]
    (row,) = contrasts(noisy, ["plain", "secagg"])
    assert all("not shown equal" in cell for cell in row[2:4])


def test_private_inference_is_compared_with_the_same_images_in_the_clear():
    cells = [_cell("plain", 0, 0.5)]
    cells += [
        {**_cell(f"inference-{n}", 0, 0.1), "kind": "inference", "same_first": 1.0}
        for n in ("float", "smpc")
    ]
    cells = [{**cell, "largest_error": 1e-5} for cell in cells]
    (row,) = contrasts(cells, ["plain", "inference-float", "inference-smpc"])
    assert row[0] == "inference-smpc"
    assert "equal within" in row[2]  # and 0.4 below plain's, on other images


def test_a_mitigation_is_compared_with_the_run_without_it():
    order = ["plain", "example-8", "plain+robust", "example-8+robust"]
    shifts = {"plain": 0.3, "example-8": 0.0, "plain+robust": 0.3, "example-8+robust": 0.0}
    kind = {True: "trained", False: "protection"}
    found = [
        _cell(name, seed, shift, kind=kind["+" in name])
        for name, shift in shifts.items()
        for seed in range(3)
    ]
    rows = {row[0]: row for row in contrasts(found, order)}
    assert rows["example-8"][2].startswith("-0.3")
    assert not {"-0.3", "0.3"} & {rows[name][2][:4] for name in order[2:]}
    assert "*" not in rows["example-8+robust"][2]


def test_tables_and_figures_are_rebuilt_from_the_cells(grid, tmp_path):
    text = write_tables(grid, ORDER, tmp_path)
    assert "| zero-shot |" in text
    assert "Contrasts to plain" in text
    he = next(line for line in text.splitlines() if line.startswith("| he |"))
    assert he.count(NOT_RUN) == he.count("|") - 3  # all but its name and its seeds
    kept = [compact(cell) for cell in grid]
    assert write_tables(kept, ORDER, tmp_path).count("equal within") == text.count("equal within")
    assert "by_concept" not in kept[1]["before"]
    paths = save_figures(grid, ORDER, tmp_path)
    assert {path.name for path in paths} >= {"trust-fairness.svg"}


def test_every_panel_of_a_figure_names_its_rows_alike(tmp_path):
    """A measure that zero-shot has not must not move the others' points by a row."""
    from matplotlib.figure import Figure

    from simulations import _trust_figures

    cells = [
        _told("plain", {"tone_gap": (0.14, 0.1, 0.2), "gap_of_gains": (0.07, 0.04, 0.1)}),
        _told("he", {"tone_gap": (0.15, 0.1, 0.2), "gap_of_gains": (0.05, 0.02, 0.1)}),
    ]
    cells[0]["columns"][0]["before"] = cells[0]["columns"][0]["after"]
    for measure in ("tone_gap", "gap_of_gains"):
        ax = Figure().subplots()
        _trust_figures._panel(ax, cells, ["plain", "he"], measure, measure, "fairness")
        names = [label.get_text() for label in ax.get_yticklabels()]
        assert names == ["zero-shot", "plain", "he"]
        points = [line.get_ydata()[0] for line in ax.lines if len(line.get_ydata()) == 1]
        assert {1, 2} <= set(points) <= {0, 1, 2}


def test_what_is_said_of_one_two_and_three_seeds(grid):
    plain = [cell for cell in grid if cell["cell"] == "plain"]
    one, two, three = (summary(plain[:n], "tone_gap") for n in (1, 2, 3))
    assert (one.low, one.high) == (0.0, 0.2)  # its own interval
    assert (two.low, two.high) == (0.0, 0.2)  # what either's holds
    values = [cell["columns"][0]["after"]["value"] for cell in plain]
    assert three.low < min(values) < max(values) < three.high  # Student's, and more
    alike = [_told("plain", {"tone_gap": (0.1, 0.05, 0.15)}) for _ in range(3)]
    same = summary(alike, "tone_gap")  # seeds that agree don't make concepts more
    assert same.high - same.low == pytest.approx(0.1)
    assert summary([], "tone_gap") is None


def _told(name, measures, before=None):
    """A cell of one seed whose measures are given as value, low, high."""

    def number(one):
        return {**dict(zip(("value", "low", "high"), one, strict=True)), "rows": 99, "clusters": 99}

    columns = [
        {"name": key, "pillar": "x", "after": number(one)}
        | ({"before": number(before[key])} if before else {})
        for key, one in measures.items()
    ]
    return {"cell": name, "kind": "protection", "seed": 0, "columns": columns, "seconds": 1.0}


def test_a_verdict_follows_the_numbers_and_what_was_not_run_has_none():
    def rows(cells):
        lines = [line.split(" | ") for line in findings(cells).splitlines()[2:]]
        return {line[0].removeprefix("| "): line for line in lines}

    before = {"tone_gap": (0.08, 0.06, 0.1)}
    one = rows([_told("plain", {"tone_gap": (0.14, 0.1, 0.2)}, before)])
    claim = "Dark drawings are found less often than yellow ones, before training too"
    assert one[claim][2] == "reproduced"
    assert one[claim][3] == "1 |"
    others = [line for text, line in one.items() if text != claim]
    assert all(line[2] == NOT_RUN for line in others)
    attacked = [
        {"cell": f"attack-{name}", "kind": "attack", "seed": 0, "after": {"success": told}}
        for name, told in (
            ("plain", {"value": 0.4, "low": 0.3, "high": 0.5, "rows": 99, "clusters": 99}),
            ("norm-bound", {"value": 0.0, "low": 0.0, "high": 0.1, "rows": 99, "clusters": 99}),
        )
    ]
    stopped = rows(attacked)
    assert stopped["A norm bound stops it, at a server that sees single updates"][2] == "reproduced"
    assert stopped["Secure aggregation hides who did it, and stops nothing"][2] == NOT_RUN
    none = rows([_told("plain", {"tone_gap": (0.1, 0.0, 0.2)}, {"tone_gap": (0.02, -0.1, 0.1)})])
    assert none[claim][2].startswith("undecided")
    less = rows([_told("plain", {"tone_gap": (0.1, 0.0, 0.2)}, {"tone_gap": (-0.1, -0.2, -0.05)})])
    assert less[claim][2] == "not reproduced"


def test_half_of_the_tones_is_read_anew_and_nothing_else(monkeypatch):
    """A measure that `Sizes.half` changes is never taken from the whole."""
    from types import SimpleNamespace

    from fedvlm.trust.audit import TONE_MEASURES
    from simulations import _trust_run

    asked = []

    def read_all(context, known=None):
        asked.append(known)
        return {"one_of_100": 1, **dict.fromkeys(TONE_MEASURES, 2)}

    monkeypatch.setattr(_trust_run, "read_all", read_all)
    held = Held()
    whole, half = (SimpleNamespace(sizes=SimpleNamespace(half=h)) for h in (False, True))
    held(whole, "plain", 0)
    held(half, "plain", 0)
    held(half, "plain", 0)
    assert asked == [None, {"one_of_100": 1}]


def test_every_cell_is_a_federation_that_can_be_configured():
    assert set(MARGINS) == {"tone_gap", "overconfidence", "backdoor"}
    for row in PROTECTIONS:
        assert configuration(row, 0).data.membership == "half"
    for name in ATTACKS:
        assert attack_configuration(name, 0).data.clients == 10
    known = cells()
    assert {"plain", "attack-plain", "plain+leace", "example-8+robust"} <= set(known)
    assert "plain+resample" in known
    assert "example-8+resample" not in known  # refused
    mitigated = 2 * (len(POSTHOC) + len(TRAINED)) - 1
    assert len(known) == len(PROTECTIONS) + len(ATTACKS) + len(INFERENCES) + mitigated


def test_a_repair_that_does_not_compose_never_starts():
    with pytest.raises(ConfigError, match="couples"):
        repaired_client(configuration("example-8", 0), "adversary")
