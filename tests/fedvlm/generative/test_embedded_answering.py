"""The embedded generative default, through the whole path."""

import hashlib

import numpy as np
import pytest
import torch

from fedvlm.adapters import AdapterSpec, FlatView, attach, load_adapter, merge
from fedvlm.config import config_from
from fedvlm.data import load_folder
from fedvlm.errors import BudgetExceeded, ConfigError
from fedvlm.federation import simulate
from fedvlm.models import load_any
from fedvlm.models.generative.embedded import NAME, answering_checkpoint_dir
from fedvlm.privacy.answer_loss import AnswerLoss, answer_units
from fedvlm.privacy.dpsgd import MARGIN, clipped_gradient_sum
from fedvlm.seeds import ExperimentSeed
from fedvlm.training.answers import encode_answers
from fedvlm.training.generation import answer, negative_log_likelihoods
from fedvlm.training.text_scores import text_scores

MOST_BYTES = 6_000_000


@pytest.fixture(scope="module")
def model():
    return load_any(NAME)


@pytest.fixture
def encoded(model, questions_folder, tmp_path, monkeypatch):
    monkeypatch.setenv("FEDVLM_CACHE", str(tmp_path / "cache"))
    return encode_answers(load_folder(questions_folder), model, lambda *_: None)


def test_checkpoint_is_small_half_precision_and_has_a_card():
    from safetensors import safe_open

    folder = answering_checkpoint_dir()
    assert sum(path.stat().st_size for path in folder.iterdir()) < MOST_BYTES
    with safe_open(folder / "model.safetensors", "pt") as file:
        assert {file.get_slice(name).get_dtype() for name in file.keys()} == {"F16"}  # noqa: SIM118
    card = (folder / "README.md").read_text()
    assert "Licence" in card
    assert "private" in card


def test_loading_leaves_the_global_generator_alone():
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    load_any(NAME)
    assert torch.equal(torch.rand(3), expected)


def test_two_loads_are_one_model(model):
    again = load_any(NAME)
    assert again.hashes == model.hashes
    view = attach(again.vlm, AdapterSpec("lora", 4, 8), ExperimentSeed(0))
    assert all("language_model" in name for name, _ in view.layout)
    from fedvlm.models import weights_hash

    assert weights_hash(again.vlm) == model.hashes.weights  # an adapter doesn't change it


def test_loss_is_transformers_own(model, encoded):
    batch = encoded.batch(np.array([4]))
    with torch.no_grad():
        own = model.vlm.answer_losses(batch)
        theirs = model.vlm.backbone(**batch.inputs, labels=batch.labels).loss
    assert own.item() == pytest.approx(theirs.item(), abs=5e-5)


def test_likelihoods_do_not_depend_on_the_batch(model, encoded):
    rows = np.array([0, 1, 50, 77, 101])
    together = negative_log_likelihoods(model.vlm, encoded, rows)
    alone = [negative_log_likelihoods(model.vlm, encoded, rows[i : i + 1])[0] for i in range(5)]
    assert together == pytest.approx(alone, abs=1e-5)


@pytest.mark.slow
def test_merging_keeps_every_answer(encoded):
    model = load_any(NAME)
    view = attach(model.vlm, AdapterSpec("lora", 4, 8), ExperimentSeed(0))
    rng = np.random.default_rng(0)
    view.write((0.05 * rng.standard_normal(view.size)).astype(np.float32))
    rows = np.arange(0, 108, 9)
    before = negative_log_likelihoods(model.vlm, encoded, rows)
    said = answer(model.vlm, encoded, rows)
    merge(model.vlm)
    assert negative_log_likelihoods(model.vlm, encoded, rows) == pytest.approx(before, abs=1e-3)
    found = text_scores(answer(model.vlm, encoded, rows), said)
    assert np.mean(found["exact_match"]) >= 0.9  # a tie may turn


def test_clipped_sum_is_that_of_a_loop(encoded):
    model = load_any(NAME)
    view = attach(model.vlm, AdapterSpec("lora", 4, 8), ExperimentSeed(0))
    rng = np.random.default_rng(0)
    view.write((0.05 * rng.standard_normal(view.size)).astype(np.float32))
    rows = np.array([0, 1, 30, 31, 60, 90])
    gradients = []
    for row in rows:
        value = model.vlm.answer_losses(encoded.batch(np.array([row])))[0]
        parts = torch.autograd.grad(value, view.parameters)
        gradients.append(torch.cat([part.reshape(-1) for part in parts]).double())
    clip = float(np.median([float(g.norm()) for g in gradients]))
    wanted = sum(g * min(1.0, (1 - MARGIN) * clip / float(g.norm())) for g in gradients)
    found = clipped_gradient_sum(model.vlm, view, AnswerLoss(encoded), answer_units(rows), clip)
    assert np.abs(found - wanted.numpy()).max() <= 1e-5 * max(1.0, clip)
    assert np.linalg.norm(found) <= len(rows) * clip


def test_one_example_moves_the_sum_by_at_most_the_clip(encoded):
    """Whichever example comes or goes: no slack for float32."""
    model = load_any(NAME)
    view = attach(model.vlm, AdapterSpec("lora", 4, 8), ExperimentSeed(0))
    rng = np.random.default_rng(0)
    view.write((0.2 * rng.standard_normal(view.size)).astype(np.float32))
    rows, loss, clip = np.arange(0, 100, 11), AnswerLoss(encoded), 0.01
    whole = clipped_gradient_sum(model.vlm, view, loss, answer_units(rows), clip)
    for out in range(len(rows)):
        rest = clipped_gradient_sum(model.vlm, view, loss, answer_units(np.delete(rows, out)), clip)
        assert np.linalg.norm(whole - rest) <= clip


def test_a_weight_shared_with_the_embedding_is_refused(encoded):
    """The last layer's weight is the words' too: layer by layer, half of its gradient is missed."""
    model = load_any(NAME)
    for parameter in model.vlm.parameters():
        parameter.requires_grad_(False)
    model.vlm.backbone.get_input_embeddings().weight.requires_grad_(True)
    with pytest.raises(ConfigError, match="lora or ffa-lora"):
        clipped_gradient_sum(
            model.vlm, FlatView(model.vlm), AnswerLoss(encoded), answer_units(np.arange(3)), 1.0
        )


@pytest.mark.slow
def test_federated_with_private_examples_under_secure_aggregation(answering_run, tmp_path):
    """The whole path: DP-SGD on answers, the nodes' ledgers, a secure sum, generation."""
    config = config_from(
        {
            **answering_run,
            "model": NAME,
            "protect": "secagg",
            "dp": "example",
            "delta": 1e-3,
            "epsilon": 4.0,
            "batch_size": 8,
        }
    )
    result = simulate(config, out=tmp_path / "run")
    assert result.privacy["epsilon"] <= 4.0
    assert "example" in str(result.privacy["unit"])
    assert "train_loss" not in result.rounds[-1] or result.rounds[-1]["train_loss"] is None
    assert 0 <= result.summary["federated"] <= 1
    loaded = load_any(NAME)
    spec = load_adapter(loaded.vlm, tmp_path / "run" / "adapter")
    assert spec.kind == "lora"
    # The ledgers hold the whole budget: one round more isn't there.
    more = config_from({"rounds": 3}, config)
    with pytest.raises((ConfigError, BudgetExceeded)):
        simulate(more, out=tmp_path / "run", resume=True)


@pytest.mark.slow
def test_same_seed_same_adapter(answering_run, tmp_path):
    config = config_from({**answering_run, "model": NAME, "rounds": 1, "protect": "plain"})
    hashes = []
    for name in ("one", "two"):
        simulate(config, out=tmp_path / name)
        held = (tmp_path / name / "adapter" / "adapter_model.safetensors").read_bytes()
        hashes.append(hashlib.sha256(held).hexdigest())
    assert hashes[0] == hashes[1]


def test_chats_and_long_prompts_are_refused(model, questions_folder):
    from dataclasses import replace

    data = load_folder(questions_folder)
    long = replace(data, more={"prompt": ("what is this " * 60,) * len(data)})
    with pytest.raises(ConfigError, match="108 triples .* context of 96 tokens"):
        encode_answers(long, model, lambda *_: None)


@pytest.mark.slow
def test_a_run_is_audited_by_its_answers(answering_run, tmp_path):
    """Guards, every attack on answers from each vantage, and no claim where there is no DP."""
    from fedvlm.leakage.answer_attacks import ANSWER_ATTACKS
    from fedvlm.leakage.audit_run import audit_run

    settings = {"membership": "half", "transcript": True, "clients": 3, "rounds": 1}
    simulate(config_from({**answering_run, "model": NAME, **settings}), out=tmp_path / "run")
    found = audit_run(tmp_path / "run", per_client=24)
    assert found.baseline.covers(0.5)
    assert found.claim is None
    names = {one.attack for one in found.results}
    assert {"min-k", "min-k++", "max-renyi-inf", "zlib", "answer-likelihood"} <= names
    assert names <= {attack.name for attack in ANSWER_ATTACKS}
    for one in found.results:
        assert np.isfinite(one.scores).all()
        assert one.auc.low <= one.auc.value <= one.auc.high
    assert found.reconstructions == ()


@pytest.mark.slow
def test_a_trained_run_is_asked_and_exported(answering_run, questions_folder, tmp_path):
    from fedvlm.trained import ask, evaluate, export_merged, load_trained, predict

    simulate(config_from({**answering_run, "model": NAME, "rounds": 1}), out=tmp_path / "run")
    trained = load_trained(tmp_path / "run")
    images = sorted((questions_folder / "images").iterdir())[:3]
    said = ask(trained, images, "what colour is this shape")
    assert len(said) == 3
    assert all(isinstance(one, str) for one in said)
    scores = evaluate(trained, questions_folder)
    assert scores["data_triples"] == 108
    assert 0 <= scores["data_exact_match"] <= 1
    with pytest.raises(ConfigError, match="fedvlm ask"):
        predict(trained, images, ["red", "blue"])
    with pytest.raises(ConfigError, match="<image>"):
        ask(trained, images, "<image> what?")
    with pytest.raises(ConfigError, match="stem"):
        export_merged(trained, tmp_path / "merged")
