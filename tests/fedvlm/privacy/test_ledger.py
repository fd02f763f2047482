"""The ledger: it stops before it is overspent, and remembers across a resume."""

import json

import pytest
from typer.testing import CliRunner

from fedvlm.errors import BudgetExceeded, ConfigError, IntegrityError
from fedvlm.privacy import (
    ClientEpsilon,
    ExampleEpsilon,
    GaussianMechanism,
    Ledger,
    epsilon,
    plan,
)
from fedvlm.privacy.cli import app


def test_it_stops_before_the_budget_is_overspent():
    planned = plan(delta=1e-5, sample_rate=0.1, steps=4, target_epsilon=2.0)
    mechanism = GaussianMechanism(1.0, planned.noise_multiplier, 0.1)
    ledger = Ledger("client", 2.0, 1e-5)
    seen = [ledger.spend(mechanism).value for _ in range(4)]
    assert seen == sorted(seen)
    assert seen[-1] == pytest.approx(2.0, rel=2e-3)
    with pytest.raises(BudgetExceeded, match="over the budget of 2"):
        ledger.spend(mechanism)
    assert ledger.releases == 4
    assert ledger.spent.value == seen[-1] <= 2.0


def test_a_block_that_does_not_fit_is_refused_whole():
    ledger = Ledger("example", 1.0, 1e-5)
    with pytest.raises(BudgetExceeded):
        ledger.spend(GaussianMechanism(1.0, 5.0), times=100)
    assert ledger.releases == 0
    assert ledger.spent.value == 0


def test_it_is_kept_across_a_resume():
    mechanism = GaussianMechanism(2.0, 3.0, 0.25)
    ledger = Ledger("client", 3.0, 1e-5)
    ledger.spend(mechanism, times=4)
    ledger.spend(GaussianMechanism(1.0, 8.0))
    again = Ledger.from_json(ledger.to_json())
    assert again.spent == ledger.spent
    assert again.releases == 5
    for each in (ledger, again):
        each.spend(mechanism, times=2)
    assert again.spent == ledger.spent
    expected = epsilon([(mechanism.event(), 6), (GaussianMechanism(1.0, 8.0).event(), 1)], 1e-5)
    assert again.spent.value == pytest.approx(expected)


def _altered(**changes):
    ledger = Ledger("client", 3.0, 1e-5)
    ledger.spend(GaussianMechanism(1.0, 8.0))
    return json.dumps({**json.loads(ledger.to_json()), **changes})


@pytest.mark.parametrize(
    "text",
    [
        "",
        "[]",
        "{}",
        _altered(unit="other"),
        _altered(delta=0),
        _altered(events=[[{"kind": "gaussian", "noise_multiplier": 8.0}, -1]]),
        _altered(events=[[{"kind": "none"}, 1]]),
    ],
)
def test_a_broken_ledger_is_refused(text):
    with pytest.raises(IntegrityError):
        Ledger.from_json(text)


def test_units_are_never_compared_or_added():
    example, client = ExampleEpsilon(1.0, 1e-5), ClientEpsilon(1.0, 1e-5)
    with pytest.raises(TypeError, match="different things"):
        _ = example < client
    with pytest.raises(TypeError, match="different things"):
        _ = example == client
    with pytest.raises(TypeError):
        _ = example + client  # pyright: ignore
    with pytest.raises(TypeError):
        _ = example + example  # pyright: ignore
    with pytest.raises(TypeError):
        _ = example < 3.0
    assert ExampleEpsilon(1.0, 1e-5) <= example
    with pytest.raises(TypeError, match="different things"):
        _ = example == ExampleEpsilon(1.0, 1e-6)


def test_bad_ledgers_are_refused():
    for unit, budget, delta in (("round", 1, 1e-5), ("client", 0, 1e-5), ("client", 1, 1)):
        with pytest.raises(ConfigError):
            Ledger(unit, budget, delta)


def test_the_command_solves_both_ways():
    common = ["plan", "--steps", "100", "--delta", "1e-4", "--sample-rate", "0.1", "--json"]
    there = CliRunner().invoke(app, [*common, "--epsilon", "3"])
    z = json.loads(there.stdout)["noise_multiplier"]
    assert z == pytest.approx(1.50, abs=0.01)
    back = CliRunner().invoke(app, [*common, "--noise-multiplier", str(z)])
    assert json.loads(back.stdout)["epsilon"] == pytest.approx(3.0, abs=0.01)
    text = CliRunner().invoke(app, [*common[:-1], "--epsilon", "3"]).stdout
    assert "noise multiplier 1.49" in text


def test_the_command_refuses_in_one_line():
    got = CliRunner().invoke(app, ["plan", "--steps", "10", "--delta", "1e-4"])
    assert got.exit_code == 2
    assert "not both" in got.output
