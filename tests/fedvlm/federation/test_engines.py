"""The same apps on Flower's own engine: a real SuperLink and Ray."""

import json
import tomllib

import numpy as np
import pytest
from flwr.common.config import flatten_dict
from safetensors.numpy import load_file

from fedvlm.config import Config, config_from, from_run_config
from fedvlm.config.flower import app_config
from fedvlm.federation import simulate
from tests.secure.aggregation.test_flower_deployed import ROOT, federation, result_of

__all__ = ["federation"]
SETTINGS = {"clients": 3, "partition": "iid", "rounds": 2, "local_epochs": 1, "references": False}


def test_flwr_run_knows_every_setting():
    app = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["flwr"]["app"]["config"]
    assert flatten_dict(app) == app_config()
    assert from_run_config(flatten_dict(app)) == Config()


@pytest.mark.slow
@pytest.mark.xdist_group("embedded")
@pytest.mark.timeout(600)
def test_ray_gives_the_same_adapter_as_this_process(federation, tmp_path):
    here = simulate(config_from(SETTINGS), out=tmp_path / "here")
    federation.app = ROOT
    federation.superlink("--simulation")
    text = {key: json.dumps(value) for key, value in SETTINGS.items()}
    text["training.seed"] = "0"  # dotted and flat names side by side
    run_config = " ".join(f"{key.replace('_', '-')}={value}" for key, value in text.items())
    out = federation.run(
        run_config, "--federation-config", "num-supernodes=3 client-resources-num-cpus=1"
    )
    there = result_of(federation, out / "result.json", 400)
    one, two = (
        load_file(folder / "adapter" / "adapter_model.safetensors")
        for folder in (tmp_path / "here", out)
    )
    assert one.keys() == two.keys()
    assert max(np.abs(one[name] - two[name]).max() for name in one) < 1e-5
    assert there["summary"]["federated"] == pytest.approx(here.summary["federated"], abs=0.01)
