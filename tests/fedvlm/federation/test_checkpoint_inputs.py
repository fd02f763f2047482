"""D7: a run goes on only on the data and the model that it was started with."""

import shutil

import pytest
import torch
from safetensors.torch import load_file, save_file

from fedvlm.config import config_from
from fedvlm.errors import ConfigError
from fedvlm.federation import simulate, task
from tests.fedvlm.conftest import draw


class _StopError(Exception):
    pass


@pytest.fixture
def cut(small_run, tmp_path):
    """A run that was interrupted after round 1, on data and a model of its own."""
    for key in ("data", "model"):
        shutil.copytree(small_run[key], tmp_path / key)
        small_run[key] = str(tmp_path / key)
    config = config_from(small_run)

    def stop(entry):
        if entry["round"] == 1:
            raise _StopError

    with pytest.raises(_StopError):
        simulate(config, out=tmp_path / "run", on_round=stop)
    return config, tmp_path


def _resume(config, folder):
    # As another process would: nothing of the first run is left in memory.
    task._shared.clear()
    task._local.__dict__.clear()
    return simulate(config, out=folder / "run", resume=True)


def test_unchanged_it_goes_on(cut):
    config, folder = cut
    assert len(_resume(config, folder).rounds) == 4


def _caption(folder):
    path = folder / "data" / "captions.csv"
    path.write_text(path.read_text().replace("a red circle", "a red round thing", 1))


def _image(folder):
    path = next((folder / "data" / "images").iterdir())
    path.write_bytes(draw("black", "bar", "small", size=33))


def _weights(folder):
    path = folder / "model" / "model.safetensors"
    state = load_file(path)
    octets = state["logit_scale"].view(-1).view(torch.uint8)
    octets[0] ^= 1
    save_file(state, path, metadata={"format": "pt"})


def _tokenizer(folder):
    path = folder / "model" / "tokenizer.json"
    text = path.read_text()
    assert '"red": 5' in text
    path.write_text(text.replace('"red": 5', '"rouge": 5'))


@pytest.mark.parametrize(
    ("change", "named"),
    [
        (_caption, r"the data \(captions, images or labels\) changed"),
        (_image, r"the data \(captions, images or labels\) changed"),
        (_weights, "the model's weights changed"),
        (_tokenizer, "the model's tokenizer changed"),
    ],
)
def test_what_changed_is_named(cut, change, named):
    config, folder = cut
    change(folder)
    with pytest.raises(ConfigError, match=named):
        _resume(config, folder)
