"""A wrong setting is one clear line that says how to mend it."""

import pytest

from fedvlm.config import SimulationConfig, config_from, load_config
from fedvlm.errors import ConfigError


def test_unknown_key_suggests_the_nearest():
    with pytest.raises(ConfigError, match=r"unknown configuration key 'lerning_rate'.*'learning_"):
        config_from({"lerning_rate": 0.1})


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"rounds": -1}, "rounds must be at least 1; got -1"),
        ({"rounds": 0}, "rounds must be at least 1"),
        ({"rounds": "many"}, "rounds must be of type int; got 'many'"),
        ({"rounds": 2.5}, "rounds must be of type int"),
        ({"rounds": True}, "rounds must be of type int"),
        ({"clients": 1}, "clients must be at least 2"),
        ({"fraction": 0}, r"fraction must be in \(0, 1\]"),
        ({"fraction": 1.5}, r"fraction must be in \(0, 1\]"),
        ({"alpha": 0}, "alpha"),
        ({"workers": -1}, "workers must be at least 0"),
        ({"reference_learning_rate": 0}, "reference_learning_rate"),
        ({"server_momentum": 1}, "server_momentum"),
        ({"partition": "random"}, "partition must be one of"),
        ({"adapter": "dora"}, "adapter must be one of"),
        ({"rank": 0}, "rank >= 1"),
        ({"learning_rate": -1}, "learning_rate > 0"),
        ({"batch_size": 1}, "batch_size >= 2"),
        ({"proximal_mu": -0.1}, "proximal_mu"),
        ({"references": "yes"}, "references must be of type bool"),
    ],
)
def test_values_out_of_range_are_named(settings, message):
    with pytest.raises(ConfigError, match=message):
        config_from(settings)


def test_text_from_the_command_line_is_converted():
    config = config_from({"rounds": "3", "proximal-mu": "0.5", "references": "false"})
    assert (config.rounds, config.proximal_mu, config.references) == (3, 0.5, False)


def test_flower_run_config_round_trip():
    config = SimulationConfig(rounds=4, partition="iid", references=False)
    assert config_from(config.to_run_config()) == config


def test_toml(tmp_path):
    path = tmp_path / "c.toml"
    path.write_text('rounds = 2\npartition = "iid"\n')
    assert load_config(path) == SimulationConfig(rounds=2, partition="iid")
    path.write_text("rounds = \n")
    with pytest.raises(ConfigError, match="is not TOML"):
        load_config(path)
    path.write_text("round = 2\n")
    with pytest.raises(ConfigError, match=r"c\.toml: unknown.*'rounds'"):
        load_config(path)
    with pytest.raises(ConfigError, match="can't read"):
        load_config(tmp_path / "none.toml")


def test_the_shipped_configurations_load():
    from pathlib import Path

    found = sorted(Path("simulations/configs").glob("*.toml"))
    assert found
    for path in found:
        load_config(path)


def test_the_rate_falls_to_a_tenth():
    config = SimulationConfig(rounds=10, learning_rate=1.0)
    assert config.local_settings(1).learning_rate == 1.0
    assert config.local_settings(10).learning_rate == pytest.approx(0.19)
