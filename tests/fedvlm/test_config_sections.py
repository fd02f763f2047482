"""Sections: each setting has one place, two names, and an owner."""

import math
from dataclasses import FrozenInstanceError, fields
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from typer.testing import CliRunner

from fedvlm.cli import app
from fedvlm.config import (
    SECTIONS,
    SETTINGS,
    Config,
    config_from,
    for_nodes,
    for_server,
    from_run_config,
    load_config,
    to_run_config,
)
from fedvlm.config.flower import PUBLIC, app_config
from fedvlm.config.listing import page, plain
from fedvlm.config.reading import FLAT
from fedvlm.errors import ConfigError
from fedvlm.federation.server_part import FILE, servers_config, write_server_part

OTHER = config_from(
    {
        "data": "/srv/secret/images",
        "model": "/srv/secret/model",
        "protect": "secagg",
        "rounds": 4,
        "server_optimizer": "fedavgm",
        "server_momentum": 0.5,
        "transcript": True,
        "reference_epochs": 2,
        "references": False,
        "round_timeout": 7.5,
    }
)


def test_every_setting_is_in_one_section_under_one_flat_name():
    assert set(SECTIONS) == {field.name for field in fields(Config)}
    assert len(FLAT) == len(SETTINGS) == sum(len(fields(each)) for each in SECTIONS.values())
    config = Config()
    assert all(config.value(entry) == entry.default for entry in SETTINGS.values())
    with pytest.raises(FrozenInstanceError):
        config.training = None  # pyright: ignore
    with pytest.raises(FrozenInstanceError):
        config.training.rounds = 2  # pyright: ignore


def test_tables_dotted_and_flat_names_say_the_same(tmp_path):
    path = tmp_path / "c.toml"
    path.write_text(
        "seed = 3\n[training]\nrounds = 2\nlearning-rate = 1e-3\n[server]\nfraction = 1\n"
    )
    tables = load_config(path)
    assert (tables.training.seed, tables.training.rounds) == (3, 2)
    assert tables == config_from({"seed": 3, "training.rounds": "2", "learning_rate": 1e-3})
    path.write_text('data = "none"\nadapter = "prompt"\n')
    assert load_config(path).adapter.kind == "prompt"
    assert load_config(path).data.source == "none"


@given(st.sampled_from(sorted(SETTINGS)), st.booleans())
def test_a_setting_given_twice_is_refused(name, nested):
    entry = SETTINGS[name]
    value = entry.default
    twice = {entry.table: {entry.key: value}} if nested else {name: value}
    if entry.flat in twice:  # `model` as a table is no `model` as a text
        return
    with pytest.raises(ConfigError, match="one setting, given twice"):
        config_from({**twice, entry.flat: value})


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"train": {"rounds": 3}}, r"unknown table \[train\]; did you mean 'training'"),
        ({"train.rounds": 3}, r"unknown table 'train' in 'train.rounds'; did you mean 'training'"),
        ({"training": {"rouds": 3}}, "'training.rouds'; did you mean 'training.rounds'"),
        ({"server": {"rounds": 3}}, "'server.rounds'; did you mean 'training.rounds'"),
        ({"training": {"a": {"b": 1}}}, "unknown configuration key 'training.a'"),
        ({"training.rounds.x": 3}, "unknown configuration key 'training.rounds.x'"),
        ({"training": 3}, r"training is a table, \[training\]; got 3"),
        ({"optimizer": "fedavg"}, "did you mean 'server.optimizer'"),
        ({"rounds": {"a": 1}}, r"unknown table \[rounds\]"),
        ({"training": {"rounds": {"a": 1}}}, "training.rounds must be of type int"),
    ],
)
def test_u11_what_is_unknown_names_the_nearest_of_its_kind(settings, message):
    with pytest.raises(ConfigError, match=message):
        config_from(settings)


def test_a_result_of_0_1_is_still_read():
    flat = {entry.flat: entry.default for entry in SETTINGS.values()}
    assert config_from(flat) == Config()
    assert config_from(OTHER.to_dict()) == OTHER
    assert config_from(OTHER.by_name()) == OTHER


def test_flowers_run_config_takes_either_name():
    given_by_nobody = app_config()
    assert from_run_config(given_by_nobody) == Config()
    assert from_run_config({**given_by_nobody, "rounds": 9}).training.rounds == 9
    assert from_run_config({**given_by_nobody, "training.rounds": 9}).training.rounds == 9
    with pytest.raises(ConfigError, match="given twice"):
        from_run_config({**given_by_nobody, "training.rounds": 9, "rounds": 8})
    assert from_run_config(to_run_config(OTHER)) == OTHER


def test_nodes_are_told_nothing_of_what_is_the_servers():
    told = for_nodes(OTHER)
    assert not any("/srv" in str(value) for value in told.values())
    assert not {f"server.{key}" for key in ("optimizer", "learning_rate", "workers")} & set(told)
    assert "audit.transcript" not in told
    assert "training.references" not in told
    node = from_run_config(told)
    for entry in SETTINGS.values():
        if entry.name in PUBLIC:
            assert node.value(entry) == PUBLIC[entry.name][1]
        elif entry.about.server:
            assert node.value(entry) == entry.default
        else:
            assert node.value(entry) == OTHER.value(entry)
    assert node.protection == OTHER.protection  # terms of a sum are the same on both sides
    assert node.privacy == OTHER.privacy
    public = from_run_config(for_nodes(Config()))
    assert (public.data.source, public.model.name) == ("emoji", "embedded")


def test_the_server_has_what_nodes_are_not_told(tmp_path):
    assert from_run_config(for_nodes(OTHER), for_server(OTHER)) == OTHER
    write_server_part(OTHER, tmp_path)
    assert servers_config(for_nodes(OTHER) | {"out": str(tmp_path)}, tmp_path) == OTHER
    # A simulation's run config is whole, whatever lies in its folder.
    assert servers_config(to_run_config(Config()), tmp_path) == Config()
    for folder in (None, tmp_path / "empty"):
        with pytest.raises(ConfigError, match="deploy run"):
            servers_config(for_nodes(OTHER), folder)
    for text in ("{", "[]", '{"server.workers": 1}', '{"training.rounds": 1}'):
        (tmp_path / FILE).write_text(text)
        with pytest.raises(ConfigError):
            servers_config(for_nodes(OTHER), tmp_path)


def test_the_page_of_settings_is_of_this_code_and_complete():
    written = Path("docs/settings.md").read_text(encoding="utf-8")
    assert written == page(), "python -m fedvlm.config.listing docs/settings.md"
    for entry in SETTINGS.values():
        assert f"| `{entry.key}` | `{entry.flat}` | {entry.kind.__name__} |" in written
        assert entry.about.words
        assert entry.kind in (str, bool) or math.isfinite(entry.about.low)


def test_u11_the_command_line_lists_every_setting():
    shown = CliRunner().invoke(app, ["simulate", "--settings"])
    assert shown.exit_code == 0
    assert shown.stdout == plain()
    for name, entry in SETTINGS.items():
        assert f"{name} " in shown.stdout
        assert entry.flat in shown.stdout
    assert "--settings" in CliRunner().invoke(app, ["simulate", "--help"]).stdout
