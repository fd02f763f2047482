"""The planner says early what noise will leave, and is held to what was then measured."""

import json

import pytest
from typer.testing import CliRunner

from fedvlm.errors import ConfigError
from fedvlm.privacy.cli import app
from fedvlm.privacy.forecast import ADAPTERS, forecast, least_honest

EMBEDDED = {"clients": 10, "examples": 250, "classes": 1200, "delta": 1e-3}


@pytest.mark.parametrize(
    ("adapter", "epsilon", "verdict"),
    [
        # Points over the control at ε = 8, 3, 1: 14, 3 and 0 of 50 (docs/differential-privacy.md).
        ("prototypes", 8.0, "part"),
        ("prototypes", 3.0, "little"),
        ("prototypes", 1.0, "lose"),
        ("head", 8.0, "part"),
        ("lora", 8.0, "lose"),
    ],
)
def test_the_forecast_is_what_was_measured(adapter, epsilon, verdict):
    assert verdict in forecast(adapter, epsilon=epsilon, **EMBEDDED).verdict


@pytest.mark.parametrize(
    ("clients", "examples", "verdict"),
    # Points over the control at ε = 8: 0, 0, 0.7, 6 and 34 of 51.
    [(10, 248, "lose"), (100, 25, "lose"), (1_000, 2.5, "little"), (10_000, 2.5, "part")],
)
def test_the_forecast_of_whole_clients_is_what_was_measured(clients, examples, verdict):
    delta = {10: 1e-3, 100: 1e-3, 1_000: 1e-4, 10_000: 1e-5}[clients]
    found = forecast(
        "prototypes", clients=clients, examples=examples, classes=1200, epsilon=8.0, delta=delta
    )
    assert verdict in found.verdict_client


def test_few_classes_keep_their_gain():
    found = forecast("prototypes", clients=5, examples=96, classes=2, epsilon=3.0, delta=1e-4)
    assert "nearly all" in found.verdict


def test_the_honest_are_those_that_a_federation_plans_for():
    from fedvlm.config import config_from
    from fedvlm.federation.head_plan import shared_mechanism

    for clients in (3, 5, 10, 30):
        config = config_from(
            {"adapter": "prototypes", "rounds": 1, "clients": clients, "protect": "secagg"}
            | {"dp": "example", "noise": "shared"}
        )
        assert least_honest(clients) == shared_mechanism(config, 64).least_noised
    with pytest.raises(ConfigError, match="at least 3 clients"):
        least_honest(2)


def test_more_noise_never_has_a_better_ratio():
    for adapter in ADAPTERS:
        ratios = [forecast(adapter, epsilon=e, **EMBEDDED).ratio for e in (8.0, 3.0, 1.0, 0.1)]
        assert ratios == sorted(ratios, reverse=True)


def test_the_command_says_so_and_refuses_what_it_does_not_know():
    runner = CliRunner()
    told = runner.invoke(
        app,
        [
            "plan",
            "--clients",
            "10",
            "--examples",
            "250",
            "--classes",
            "1200",
            "--adapter",
            "head",
            "--delta",
            "1e-3",
        ],
    )
    assert told.exit_code == 0
    assert "head: signal" in told.stdout
    assert "lora" in told.stdout
    assert "public-only control" in told.stdout
    assert "hidden as a whole" in told.stdout
    as_json = runner.invoke(app, ["plan", "--adapter", "lora", "--epsilon", "8", "--json"])
    assert {one["adapter"] for one in json.loads(as_json.stdout)} == set(ADAPTERS)
    assert runner.invoke(app, ["plan", "--adapter", "lorra"]).exit_code != 0
    assert runner.invoke(app, ["plan", "--epsilon", "1"]).exit_code != 0
    with pytest.raises(ConfigError, match="at least 1"):
        forecast("head", clients=0, examples=1, classes=1, epsilon=1.0, delta=1e-3)
