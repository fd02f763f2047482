"""Federations under DP: budgets, resume, what is written down, what leaves a client."""

import dataclasses

import numpy as np
import pytest

from fedvlm.config import config_from
from fedvlm.errors import BudgetExceeded, ConfigError
from fedvlm.federation import simulate
from fedvlm.federation.private_client import example_settings

CLIENT = {"dp": "client", "epsilon": 5.0, "clip_norm": 0.5, "fraction": 0.6}
EXAMPLE = {"dp": "example", "epsilon": 5.0, "delta": 1e-4, "learning_rate": 1e-3}


@pytest.mark.parametrize("adaptive", [False, True])
def test_client_level(small_run, adaptive, tmp_path):
    settings = {**small_run, **CLIENT, "adaptive": adaptive, "simulated_noise": True}
    result = simulate(config_from(settings), out=tmp_path / "whole")
    privacy = result.privacy
    assert privacy is not None
    assert privacy["unit"] == "client"
    assert privacy["simulated_noise"] is True
    assert 4.9 < privacy["epsilon"] <= 5.0
    spent = [entry["epsilon"] for entry in result.rounds[1:]]
    assert spent == sorted(spent)
    assert spent[-1] == privacy["epsilon"]
    # Who came, how long it took and how well it learned are not told.
    for entry in result.rounds[1:]:
        assert entry["clients"] == 2
        assert entry["train_loss"] is None
        assert entry["client_seconds"] is None
    assert (privacy["final_clip_norm"] != 0.5) is adaptive
    again = simulate(config_from(settings))
    assert again.without_times() == result.without_times()


def test_released_noise_is_not_the_seeds(small_run, tmp_path):
    def adapter(name, **changes):
        config = config_from({**small_run, **CLIENT, "rounds": 1, **changes})
        result = simulate(config, out=tmp_path / name)
        assert result.privacy is not None
        assert result.privacy["simulated_noise"] is bool(changes)
        return (tmp_path / name / "adapter" / "adapter_model.safetensors").read_bytes()

    assert adapter("a") != adapter("b")
    assert adapter("c", simulated_noise=True) == adapter("d", simulated_noise=True)


def test_example_level_and_its_resume(small_run, tmp_path):
    settings = {**small_run, **EXAMPLE, "simulated_noise": True}
    config = config_from(settings)
    whole = simulate(config, out=tmp_path / "whole")
    privacy = whole.privacy
    assert privacy is not None
    assert privacy["unit"] == "example"
    assert len(privacy["epsilon_by_client"]) == 3
    assert 4.9 < privacy["epsilon"] <= 5.0
    for entry in whole.rounds[1:]:
        assert entry["train_loss"] is None
        assert entry["client_seconds"] is None

    class StopError(Exception):
        pass

    def stop(entry):
        if entry["round"] == 2:
            raise StopError

    with pytest.raises(StopError):
        simulate(config, out=tmp_path / "cut", on_round=stop)
    resumed = simulate(config, out=tmp_path / "cut", resume=True)
    assert resumed.privacy == whole.privacy
    assert resumed.rounds[3]["epsilon"] == whole.rounds[3]["epsilon"]
    assert resumed.without_times() == whole.without_times()


@pytest.mark.parametrize("protect", ["secagg", "he"])
def test_example_level_under_a_protected_sum(small_run, protect, tmp_path):
    settings = {**small_run, **EXAMPLE, "simulated_noise": True, "rounds": 1}
    plain = simulate(config_from(settings), out=tmp_path / "plain")
    config = config_from(settings | {"protect": protect})
    summed = simulate(config, out=tmp_path / protect)
    assert summed.privacy == plain.privacy
    entry = summed.rounds[1]
    assert entry["clients"] == config.clients
    assert entry["train_loss"] is None
    vectors = []
    for name in ("plain", protect):
        with np.load(tmp_path / name / "checkpoint.npz") as archive:
            vectors.append(archive["vector"])
    # Every client weighs 1. Eight standard deviations of the noise: 1e-15 an entry; or the error
    # of rounding to integers.
    noise = entry["noise_of_sum"] / config.clients if protect == "he" else 1e-5
    assert 0 < np.abs(vectors[0] - vectors[1]).max() < 8 * noise + 1e-6


@pytest.mark.parametrize("dp", ["client", "distributed"])
def test_noise_of_the_server_or_on_integers_is_not_summed_under_encryption(dp):
    with pytest.raises(ConfigError, match="protect"):
        config_from({"dp": dp, "protect": "he"})


def test_the_plan_does_not_depend_on_a_clients_size(small_run):
    config = config_from({**small_run, **EXAMPLE})
    assert example_settings(config, 48) == example_settings(config, 50)


def test_a_budget_that_is_spent_stops_the_run(small_run, monkeypatch, tmp_path):
    from fedvlm.federation import private

    plans = []

    def too_little(**asked):
        found = dataclasses.replace(real(**asked), noise_multiplier=1.0)
        plans.append(found)
        return found

    real = private.plan
    monkeypatch.setattr(private, "plan", too_little)
    seen = []
    config = config_from({**small_run, **CLIENT, "fraction": 1.0, "epsilon": 6.5})
    with pytest.raises(BudgetExceeded):
        simulate(config, on_round=lambda entry: seen.append(entry))
    assert plans
    assert 1 <= len(seen) - 1 < config.rounds
    assert seen[-1]["epsilon"] <= 6.5


def test_settings_are_checked():
    for bad in (
        {"dp": "some"},
        {"epsilon": 0},
        {"delta": 1.0},
        {"clip_norm": 0.0},
        {"dp": "distributed"},
    ):
        with pytest.raises(ConfigError):
            config_from(bad)
