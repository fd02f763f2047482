"""A new project: what it holds, that it runs at once, and that nothing is written over."""

import json
import os
import subprocess
import sys
import tomllib

import pytest
from flwr.common.config import flatten_dict
from typer.testing import CliRunner

from fedvlm.cli import app
from fedvlm.config import from_run_config, load_config
from fedvlm.data import load_folder
from fedvlm.errors import ConfigError
from fedvlm.federation import Result
from fedvlm.scaffold import init_project
from fedvlm.scaffold.project import project_config
from tests.secure.aggregation.test_flower_deployed import federation, result_of

__all__ = ["federation"]


@pytest.fixture(scope="module")
def project(tmp_path_factory):
    folder = tmp_path_factory.mktemp("made") / "My Federation 2"
    init_project(folder)
    return folder


def test_its_settings_are_the_same_for_both_ways_to_run_it(project):
    config = load_config(project / "config.toml")
    assert config == project_config(project)
    app = tomllib.loads((project / "pyproject.toml").read_text())["tool"]["flwr"]["app"]
    assert from_run_config(flatten_dict(app["config"])) == config
    assert app["components"]["serverapp"] == "my_federation_2.server_app:app"


def test_its_data_is_read_and_its_apps_are_the_librarys(project):
    data = load_folder(project / "data")
    assert len(data) == 120
    assert len(set(data.captions)) == 24
    sys.path.insert(0, str(project))
    try:
        from my_federation_2 import client_app, server_app  # pyright: ignore
    finally:
        sys.path.remove(str(project))
    from fedvlm.federation.client_app import app as client
    from fedvlm.federation.server_app import app as server

    assert (client_app.app, server_app.app) == (client, server)


def test_its_own_prepare_data_makes_the_same_pictures(project, tmp_path):
    before = {p.name: p.read_bytes() for p in (project / "data" / "images").iterdir()}
    copy = tmp_path / "prepare_data.py"
    copy.write_text((project / "prepare_data.py").read_text())
    subprocess.run([sys.executable, str(copy)], check=True, capture_output=True)
    made = {p.name: p.read_bytes() for p in (tmp_path / "data" / "images").iterdir()}
    assert made == before


def test_nothing_that_is_there_is_written_over(project, tmp_path):
    with pytest.raises(ConfigError, match=r"has config.toml, .* already"):
        init_project(project)
    (tmp_path / "config.toml").write_text("mine")
    told = CliRunner().invoke(app, ["init", str(tmp_path)])
    assert isinstance(told.exception, ConfigError)
    assert (tmp_path / "config.toml").read_text() == "mine"
    assert not (tmp_path / "data").exists()


@pytest.mark.slow
@pytest.mark.xdist_group("embedded")
def test_it_runs_at_once(project, tmp_path):
    command = [sys.executable, "-m", "fedvlm.cli", "simulate", "config.toml"]
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
    subprocess.run(
        [*command, "--out", str(tmp_path / "run")], cwd=project, check=True, env=environment
    )
    result = Result.load(tmp_path / "run")
    federated, zero = result.summary["federated"], result.summary["zero_shot"]
    assert federated is not None
    assert zero is not None
    assert federated > zero + 0.05  # it learns something, or it were no start


@pytest.mark.slow
@pytest.mark.xdist_group("embedded")
@pytest.mark.timeout(600)
def test_flwr_runs_it_at_once(federation, project):
    federation.app = project
    federation.superlink("--simulation")
    out = federation.run(
        "training.rounds=1 training.references=false",
        *("--federation-config", "num-supernodes=3 client-resources-num-cpus=1"),
    )
    there = result_of(federation, out / "result.json", 400)
    assert len(there["rounds"]) == 2
    assert json.loads((out / "result.json").read_text())["data"]["pairs"] == 120
