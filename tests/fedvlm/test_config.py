"""A wrong setting is one clear line that says how to mend it."""

import math

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fedvlm.config import SECTIONS, SETTINGS, Config, config_from, load_config, to_run_config
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
        ({"fraction": 0}, "fraction must be above 0"),
        ({"fraction": 1.5}, "fraction must be a number at most 1"),
        ({"alpha": 0}, "alpha"),
        ({"workers": -1}, "workers must be at least 0"),
        ({"reference_learning_rate": 0}, "reference_learning_rate"),
        ({"server_momentum": 1}, "server.momentum must be a number below 1"),
        ({"partition": "random"}, "partition must be one of"),
        ({"adapter": "dora"}, "adapter.kind must be one of"),
        ({"rank": 0}, "rank must be at least 1"),
        ({"learning_rate": -1}, "learning_rate must be above 0"),
        ({"batch_size": 1}, "batch_size must be at least 2"),
        ({"proximal_mu": -0.1}, "proximal_mu"),
        ({"references": "yes"}, "references must be of type bool"),
    ],
)
def test_values_out_of_range_are_named(settings, message):
    with pytest.raises(ConfigError, match=message):
        config_from(settings)


NUMBERS = [entry.name for entry in SETTINGS.values() if entry.kind in (int, float)]


@given(
    st.sampled_from(NUMBERS),
    st.one_of(
        st.sampled_from([math.nan, math.inf, -math.inf, -1, -1e-300, 10**30, 1e300, True, None]),
        st.floats(),
        st.integers(),
    ),
)
@settings(max_examples=400)
def test_every_number_is_in_its_range_or_named(name, value):
    """D8: nan, infinity and what is out of range were found late, or by a stranger's message."""
    assert len(NUMBERS) > 25
    entry = SETTINGS[name]
    try:
        section = SECTIONS[entry.table](**{entry.key: value})
    except ConfigError as error:
        section, found = None, str(error)
    else:
        found = ""
    if section is None:
        assert found.startswith(f"{name} ")
        return
    config = Config(**{entry.table: section})
    kept = config.value(entry)
    assert not isinstance(kept, bool)
    assert math.isfinite(kept)
    assert -1 < kept <= 2**63 - 1
    assert config_from({name: value}) == config_from({entry.flat: value}) == config
    assert config_from(to_run_config(config)) == config
    assert config_from(config.to_dict()) == config


@pytest.mark.parametrize("name", NUMBERS)
@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf, -1, 1e300])
def test_no_number_takes_what_is_none(name, value):
    for written in (name, SETTINGS[name].flat):
        for given_as in (value, str(value)):
            with pytest.raises(ConfigError, match=rf"^{name} must be"):
                config_from({written: given_as})


@pytest.mark.parametrize(
    "name",
    ["data.source", "model.name", "protection.protect", "privacy.adaptive", "training.references"],
)
def test_what_is_no_number_is_checked_too(name):
    entry = SETTINGS[name]
    with pytest.raises(ConfigError, match=f"^{name} must be"):
        SECTIONS[entry.table](**{entry.key: 1.5})


def test_references_are_off_under_dp_unless_asked_for():
    """N3: they are trained without noise."""
    assert config_from({}).computes_references
    assert not config_from({"dp": "example"}).computes_references
    assert config_from({"dp": "example", "references": True}).computes_references
    assert not config_from({"references": False}).computes_references
    # A base that didn't ask doesn't ask for what is built upon it.
    assert not config_from({"dp": "client"}, config_from({"rounds": 2})).computes_references
    assert config_from({"references": "auto"}).training.references is None


def test_text_from_the_command_line_is_converted():
    config = config_from({"rounds": "3", "proximal-mu": "0.5", "references": "false"})
    assert (config.training.rounds, config.training.proximal_mu, config.training.references) == (
        3,
        0.5,
        False,
    )


def test_flower_run_config_round_trip():
    config = config_from({"rounds": 4, "partition": "iid", "references": False})
    assert config_from(to_run_config(config)) == config


def test_toml(tmp_path):
    path = tmp_path / "c.toml"
    path.write_text('rounds = 2\npartition = "iid"\n')
    assert load_config(path) == config_from({"rounds": 2, "partition": "iid"})
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

    from fedvlm.compare.spec import read_spec

    found = sorted(Path("simulations/configs").glob("*.toml"))
    assert found
    for path in found:
        if path.name == "compare.toml":
            read_spec(path)
        else:
            load_config(path)


def test_the_rate_falls_to_a_tenth():
    config = config_from({"rounds": 10, "learning_rate": 1.0})
    assert config.training.local_settings(1).learning_rate == 1.0
    assert config.training.local_settings(10).learning_rate == pytest.approx(0.19)
