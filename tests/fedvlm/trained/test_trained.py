"""U8: what a run trained is used: predicted with, scored, exported, as the page says."""

import json
import re
from pathlib import Path

import numpy as np
import pytest
import torch

from fedvlm import cli
from fedvlm.config import config_from
from fedvlm.errors import ConfigError, DataError
from fedvlm.federation import simulate, task
from fedvlm.models import load_model
from fedvlm.trained import evaluate, export_merged, load_trained, predict
from tests.fedvlm.conftest import draw, tiny_inputs

PAGE = Path(__file__).parents[3] / "docs" / "use-an-adapter.md"
TEXTS = ["a red circle", "a blue square", "a black bar"]


def _run(settings, folder, **more):
    simulate(config_from(settings | {"rounds": 1} | more), out=folder)
    task._local.__dict__.clear()
    return load_trained(folder)


@pytest.fixture
def image(tmp_path):
    path = tmp_path / "photo.png"
    path.write_bytes(draw("red", "circle", "filled", size=40))
    return path


@pytest.mark.parametrize("kind", ["lora", "ffa-lora", "prompt", "feature"])
def test_a_run_s_own_scores_come_again(kind, small_run, tmp_path, image):
    trained = _run(small_run, tmp_path / "run", adapter=kind)
    again = evaluate(trained)
    last = trained.result.rounds[-1]
    assert {name: last[name] for name in again} == pytest.approx(again, abs=1e-6)
    (ranked,) = predict(trained, [image], TEXTS)
    assert sorted(one.text for one in ranked) == sorted(TEXTS)
    assert sum(one.share for one in ranked) == pytest.approx(1, abs=1e-5)
    assert [one.cosine for one in ranked] == sorted((o.cosine for o in ranked), reverse=True)


@pytest.mark.parametrize("family", ["clip", "siglip", "siglip2"])
def test_the_export_scores_as_the_run_does(family, small_run, tmp_path, image, request):
    small_run["model"] = str(request.getfixturevalue(f"tiny_{family}_folder"))
    trained = _run(small_run, tmp_path / "run", learning_rate=0.05)
    before = predict(trained, [image], TEXTS)[0]
    export_merged(trained, tmp_path / "plain")
    plain = load_model(str(tmp_path / "plain"))
    from PIL import Image

    with torch.no_grad():
        pixels = plain.processor.pixels([Image.open(image).convert("RGB")])
        after = plain.vlm.similarity(pixels, plain.processor.texts(TEXTS))[0]
    found = {one.text: one.cosine for one in before}
    assert np.allclose([found[text] for text in TEXTS], after, atol=1e-5)

    from transformers import AutoModel  # and without this library

    images, texts = tiny_inputs(family)
    texts = texts if family == "clip" else {"input_ids": texts["input_ids"]}
    with torch.no_grad():
        theirs = AutoModel.from_pretrained(tmp_path / "plain")(**images, **texts).logits_per_image
        ours = plain.vlm.logit_scale * plain.vlm.similarity(images, texts)
    if family != "clip":
        theirs = theirs - plain.vlm.backbone.logit_bias
    assert torch.allclose(ours, theirs, atol=1e-4)


def test_the_embedded_model_s_export_loads_with_its_stem(tmp_path, monkeypatch):
    from fedvlm.adapters import AdapterSpec, attach, save_adapter
    from fedvlm.seeds import ExperimentSeed
    from fedvlm.trained.model import TrainedModel

    model = load_model()
    spec = AdapterSpec(rank=2)
    view = attach(model.vlm, spec, ExperimentSeed(0))
    view.write(np.random.default_rng(0).normal(0, 0.05, view.size).astype("f4"))
    save_adapter(model.vlm, spec, tmp_path / "adapter")
    inputs = {"pixel_values": torch.randn(2, 320, 3, 3)}
    texts = model.processor.texts(TEXTS)
    with torch.no_grad():
        before = model.vlm.similarity(inputs, texts)
    export_merged(TrainedModel(model, spec, None, None), tmp_path / "plain")
    plain = load_model(str(tmp_path / "plain"))
    with torch.no_grad():
        after = plain.vlm.similarity(inputs, plain.processor.texts(TEXTS))
    assert torch.allclose(before, after, atol=1e-5)
    assert plain.hashes.tokenizer == load_model().hashes.tokenizer


@pytest.mark.parametrize("kind", ["prompt", "feature"])
def test_what_can_t_be_folded_is_not_exported(kind, small_run, tmp_path):
    trained = _run(small_run, tmp_path / "run", adapter=kind)
    with pytest.raises(ConfigError, match=f"a {kind} adapter can't be folded"):
        export_merged(trained, tmp_path / "plain")
    assert not (tmp_path / "plain").exists()


def test_wrong_use_is_named(small_run, tmp_path, image):
    trained = _run(small_run, tmp_path / "run")
    with pytest.raises(ConfigError, match="none empty, none twice"):
        predict(trained, [image], ["a", "a"])
    with pytest.raises(DataError, match="can't read .*missing.png"):
        predict(trained, [tmp_path / "missing.png"], TEXTS)
    (tmp_path / "torn.png").write_bytes(image.read_bytes()[:40])
    with pytest.raises(DataError, match=r"torn.png"):
        predict(trained, [tmp_path / "torn.png"], TEXTS)
    with pytest.raises(ConfigError, match="not an empty folder"):
        export_merged(trained, tmp_path / "run")
    with pytest.raises(ConfigError, match="no result at"):
        load_trained(tmp_path / "nowhere")


def _command(monkeypatch, capsys, *arguments):
    monkeypatch.setattr("sys.argv", ["fedvlm", *map(str, arguments)])
    with pytest.raises(SystemExit) as stop:
        cli.main()
    assert stop.value.code == 0, capsys.readouterr().err
    return capsys.readouterr().out


def test_the_page_s_commands_and_snippets_run(
    small_run, shapes_folder, tmp_path, image, monkeypatch, capsys
):
    _run(small_run, tmp_path / "runs" / "mine")
    monkeypatch.chdir(tmp_path)
    (tmp_path / "other.jpg").write_bytes(image.read_bytes())
    (tmp_path / "my-new-data").symlink_to(shapes_folder)
    (tmp_path / "base-model").symlink_to(small_run["model"])
    page = PAGE.read_text()
    (shell,) = re.findall(r"```sh\n(.*?)```", page, re.DOTALL)
    import shlex

    lines = [shlex.split(line, comments=True) for line in shell.splitlines()]
    assert [line[1] for line in lines] == ["predict", "evaluate", "evaluate", "export"]
    for line in lines:
        assert _command(monkeypatch, capsys, *line[1:])
    found = json.loads(
        _command(monkeypatch, capsys, "evaluate", "runs/mine", "--data", "my-new-data", "--json")
    )
    assert found["data_pairs"] == 54
    assert found["data_captions"] == 18
    snippets = re.findall(r"```python\n(.*?)```", page, re.DOTALL)
    assert len(snippets) == 4
    for snippet in snippets[:3]:  # the last one is of a head: adapters/test_folding.py
        exec(snippet.replace('"models/merged"', '"models/again"'), {})  # the page's own code
    assert (tmp_path / "models" / "again" / "model.safetensors").exists()
