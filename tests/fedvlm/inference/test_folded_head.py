"""Private inference of a run with a head: the client's part is public, the scores are the run's."""

import numpy as np
import pytest
import torch

from fedvlm.config import config_from
from fedvlm.errors import ConfigError
from fedvlm.federation import simulate
from fedvlm.inference.owner import compile_model, load_compiled, load_owned
from fedvlm.inference.preparation import read_images, read_preparation
from secure.smpc import Query, infer
from simulations.two_classes import CAPTIONS
from tests.fedvlm.federation.heads_base import two_classes

KINDS = ["prototypes", "head"]


@pytest.mark.slow
@pytest.mark.parametrize("adapter", KINDS)
def test_two_parties_get_the_runs_scores(adapter, tmp_path):
    base = two_classes(tmp_path / "data", adapter, 60)
    simulate(config_from(base), out=tmp_path / "run")
    owned = load_owned(run=tmp_path / "run")
    compile_model(owned, tmp_path / "compiled", tmp_path / "data")
    owner, plan = load_compiled(tmp_path / "compiled")
    public = {path.name for path in (tmp_path / "compiled" / "public").iterdir()}
    assert public == {"program.json", "stem.json", "head.npz"}
    images = read_images([tmp_path / "data" / f"000{n}.png" for n in (0, 1)])
    raw = read_preparation(tmp_path / "compiled" / "public")(images)
    labels = owner.embed_labels(CAPTIONS)
    found = infer(plan, raw, Query("scores", labels=2, batch=2), labels).value
    vlm = owner.loaded.vlm
    pixels = owner.preparation.__class__.__mro__[1]()(images)
    expected = vlm.similarity(pixels, owner.loaded.processor.texts(list(CAPTIONS))).detach()
    assert torch.allclose(found.float(), expected, atol=2e-3)
    assert found.argmax(dim=1).tolist() == expected.argmax(dim=1).tolist()


def test_a_clients_part_holds_no_sum(tmp_path):
    """What is handed out beside the program is the whitening, of public pairs alone."""
    base = two_classes(tmp_path / "data", "prototypes", 60)
    simulate(config_from(base), out=tmp_path / "run")
    owned = load_owned(run=tmp_path / "run")
    owned.preparation.write(tmp_path)
    with np.load(tmp_path / "head.npz") as held:
        assert set(held.files) == {"mean", "matrix"}
    (tmp_path / "head.npz").write_bytes(b"no archive")
    with pytest.raises(ConfigError, match="can't be read"):
        read_preparation(tmp_path)
