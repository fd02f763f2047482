"""U10: what a run is told of noise that drowns it and of cohorts too small, and ε on its lines."""

from dataclasses import replace

import pytest

from fedvlm.config import config_from
from fedvlm.federation import simulate
from fedvlm.federation.lines import Follower, epsilon_text, simulated_line
from fedvlm.federation.notices import after, before
from fedvlm.privacy.forecast import forecast_clients


def test_u10_a_round_tells_epsilon_with_unit_and_delta():
    entry = {"round": 2, "test_one_of_100": 0.5, "epsilon": 3.14159}
    for dp, protect, unit in (
        ("example", "plain", "example"),
        ("client", "plain", "client"),
        ("distributed", "secagg", "client"),
    ):
        config = config_from({"dp": dp, "protect": protect, "delta": 1e-4})
        assert simulated_line(entry, config).endswith(f"ε 3.14 per {unit} (δ 0.0001)")
        event = {"event": "round", "time": 0.0, "entry": entry}
        (line,) = Follower(6, config).lines(event)
        assert f"ε 3.14 per {unit} (δ 0.0001)" in line
    assert epsilon_text(entry, config_from({})) == ""
    assert "ε" not in simulated_line(entry, config_from({}))


def test_u10_a_fraction_that_draws_too_few_is_told():
    (told,) = before(config_from({"fraction": 0.05}))
    assert "fraction = 0.05 of 10 clients is 0.5; a round asks 2" in told
    assert before(config_from({"fraction": 0.2})) == []
    private = config_from({"fraction": 0.05, "dp": "client", "adapter": "prototypes", "rounds": 1})
    assert any("draw nobody" in each for each in before(private))


def test_u10_noise_that_drowns_is_told_before_and_after(small_run):
    settings = {"dp": "client", "epsilon": 1.0, "clip_norm": 5.0, "simulated_noise": True}
    config = config_from(small_run | settings)
    (told,) = before(config)
    assert "ε = 1 per client" in told
    assert "expected to lose its gain" in told
    result = simulate(config)
    below = replace(result, summary=result.summary | {"federated": 0.011, "zero_shot": 0.253})
    told = after(below)
    assert "federated 1.1 %, zero-shot 25.3 %" in told[0]
    assert "nothing of this run may be released" in told[-1]
    above = replace(result, summary=result.summary | {"federated": 0.9, "control": 0.5})
    assert len(after(above)) == 1
    assert after(replace(below, privacy=None)) == []


def test_the_forecast_of_clients_follows_the_noise():
    few = {"parameters": 10_000, "rounds": 6, "fraction": 1.0, "epsilon": 8.0, "delta": 1e-5}
    ratios = [forecast_clients(clients=n, **few).ratio for n in (10, 100, 1000, 10_000)]
    assert [r / ratios[0] for r in ratios] == pytest.approx([1, 10, 100, 1000])
    assert not forecast_clients(clients=10, **few).hopeful
    assert forecast_clients(clients=10_000, **few).hopeful
    tighter = forecast_clients(clients=100, **few | {"epsilon": 1.0})
    assert tighter.ratio < ratios[1]
