"""Every family: a tiny instance of its real architecture through a whole federation.

LLaVA runs with the fast tests; the others are alike, and slow.
"""

import json

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from fedvlm.adapters import AdapterSpec, attach
from fedvlm.config import config_from
from fedvlm.data import load_folder
from fedvlm.federation import simulate
from fedvlm.models.generative import IGNORED, with_answers
from fedvlm.models.generative.loading import load_generative
from fedvlm.privacy.answer_loss import AnswerLoss, answer_units
from fedvlm.privacy.dpsgd import MARGIN, clipped_gradient_sum
from fedvlm.seeds import ExperimentSeed
from fedvlm.training.answers import encode_answers
from tests.fedvlm.generative.families import FAMILIES

EVERY = [
    name if name == "llava" else pytest.param(name, marks=pytest.mark.slow) for name in FAMILIES
]
every_family = pytest.mark.parametrize("name", EVERY)


def adapted(folder, seed=1):
    """Load a model with a LoRA whose factors are both away from zero."""
    model = load_generative(str(folder))
    view = attach(model.vlm, AdapterSpec("lora", 2, 4), ExperimentSeed(0))
    rng = np.random.default_rng(seed)
    view.write((0.1 * rng.standard_normal(view.size)).astype(np.float32))
    return model, view


def by_hand(model, inputs, answer):
    """Return an answer's mean NLL: log-softmax at each of its places, from a forward pass alone."""
    ids, length = inputs["input_ids"][0], len(answer)
    with torch.no_grad():
        logits = model.vlm.backbone(**inputs).logits[0].double()
    logits = logits[len(logits) - len(ids) :]
    total = 0.0
    for number, token in enumerate(answer):
        before = len(ids) - length + number - 1
        assert int(ids[before + 1]) == token
        total -= float(logits[before, token] - torch.logsumexp(logits[before], 0))
    return total / length


@every_family
def test_loss_is_the_answers_cross_entropy_alone(name, family_folder, questions_folder):
    """To four digits, row by row, as computed by hand from an unpadded run of each row."""
    model, _ = adapted(family_folder(name))
    encoded = encode_answers(load_folder(questions_folder), model, lambda *_: None)
    rows = np.array([0, 7, 20, 55])
    with torch.no_grad():
        batched = model.vlm.answer_losses(encoded.batch(rows))
    for row, loss in zip(rows, batched.tolist(), strict=True):
        alone = encoded.batch(np.array([row]))
        wanted = by_hand(model, alone.inputs, encoded.answer_ids[row])
        assert loss == pytest.approx(wanted, abs=5e-5)
    # And as the model itself counts it, where all labels are one row's.
    alone = encoded.batch(rows[:1])
    with torch.no_grad():
        theirs = model.vlm.backbone(**alone.inputs, labels=alone.labels).loss
    assert float(theirs) == pytest.approx(batched[0].item(), abs=5e-5)


@every_family
def test_prompt_and_image_carry_no_loss(name, family_folder, questions_folder):
    """Labels are the answer's ids in their order, and nothing else."""
    model = load_generative(str(family_folder(name)))
    encoded = encode_answers(load_folder(questions_folder), model, lambda *_: None)
    batch = encoded.batch(np.array([0, 1, 40]))
    for row, labels in zip((0, 1, 40), batch.labels, strict=True):
        assert labels[labels != IGNORED].tolist() == encoded.answer_ids[row]
        places = (labels != IGNORED).nonzero()[:, 0]
        assert places.tolist() == list(range(int(places[0]), int(places[-1]) + 1))
    held = batch.inputs["input_ids"][batch.labels != IGNORED]
    assert held.tolist() == batch.labels[batch.labels != IGNORED].tolist()
    assert not bool((held == model.processor.image_token).any())


@every_family
def test_lora_leaves_the_vision_tower_out(name, family_folder):
    model = load_generative(str(family_folder(name)))
    view = attach(model.vlm, AdapterSpec("lora", 2, 4), ExperimentSeed(0))
    names = [name for name, _ in view.layout]
    assert names
    assert not any("vision" in one or "visual" in one or "qformer" in one for one in names)


@every_family
def test_generation_pads_on_the_left(name, family_folder, questions_folder):
    """An answer in a batch of prompts of different lengths is the answer alone."""
    model, _ = adapted(family_folder(name))
    encoded = encode_answers(load_folder(questions_folder), model, lambda *_: None)
    own = model.processor
    rows = np.array([0, 1, 30])
    together = model.vlm.generate(encoded.prompts(rows), 4, own.ends, own.padding)
    for row, answer in zip(rows, together, strict=True):
        alone = model.vlm.generate(encoded.prompts(np.array([row])), 4, own.ends, own.padding)
        assert alone == [answer]


@every_family
def test_clipped_sum_is_that_of_a_loop_over_examples(name, family_folder, questions_folder):
    model, view = adapted(family_folder(name))
    encoded = encode_answers(load_folder(questions_folder), model, lambda *_: None)
    rows, loss = np.array([0, 3, 17, 60, 61]), AnswerLoss(encoded)
    gradients = []
    for row in rows:
        value = model.vlm.answer_losses(encoded.batch(np.array([row])))[0]
        parts = torch.autograd.grad(value, view.parameters)
        gradients.append(torch.cat([part.reshape(-1) for part in parts]).double())
    norms = [float(gradient.norm()) for gradient in gradients]
    clip = float(np.median(norms))  # some are clipped and some are not
    wanted = sum(g * min(1.0, (1 - MARGIN) * clip / n) for g, n in zip(gradients, norms))  # noqa: B905
    found = clipped_gradient_sum(model.vlm, view, loss, answer_units(rows), clip)
    assert np.abs(found - wanted.numpy()).max() <= 1e-5 * max(1.0, clip)
    # Batches of other sizes, with other padding, give the same.
    pieces = clipped_gradient_sum(model.vlm, view, loss, answer_units(rows), clip, 2)
    assert np.abs(found - pieces).max() <= 1e-5 * max(1.0, clip)


@every_family
def test_two_rounds_under_secure_aggregation(name, family_folder, answering_run, tmp_path):
    """Federated and evaluated by generation; in peft the adapter says what it says here."""
    from peft import PeftModel
    from transformers import AutoModelForImageTextToText

    folder, out = family_folder(name), tmp_path / "run"
    config = config_from({**answering_run, "model": str(folder), "protect": "secagg"})
    result = simulate(config, out=out)
    assert [entry["round"] for entry in result.rounds] == [0, 1, 2]
    assert all(not entry.get("abandoned") for entry in result.rounds)
    for entry in result.rounds:
        for key in ("exact_match", "token_f1", "rouge_l"):
            assert 0 <= entry[f"test_{key}"] <= 1
        assert np.isfinite(entry["test_answer_nll"])
    assert result.rounds[2]["test_answer_nll"] < result.rounds[0]["test_answer_nll"]
    assert result.data["metric"] == "exact_match"
    assert json.loads((out / "result.json").read_text())["data"]["task"] == "answering"

    from fedvlm.adapters import load_adapter

    model = load_generative(str(folder))
    load_adapter(model.vlm, out / "adapter")
    base = AutoModelForImageTextToText.from_pretrained(folder, dtype=torch.float32)
    theirs = PeftModel.from_pretrained(base, out / "adapter").eval()
    with torch.no_grad():
        given = theirs(**model.vlm.probe.inputs).logits
        own = model.vlm.backbone(**model.vlm.probe.inputs).logits
        before = (
            base.disable_adapter if hasattr(base, "disable_adapter") else theirs.disable_adapter
        )
        with before():
            untouched = theirs(**model.vlm.probe.inputs).logits
    assert torch.allclose(given, own, atol=1e-6)
    assert not torch.allclose(given, untouched, atol=1e-6)


def test_tokens_of_a_prompt_are_no_prefix_of_prompt_and_answer(family_folder):
    """Why both are tokenised apart: a merge crosses the border, and a mask by length is off."""
    own = load_generative(str(family_folder("llava"))).processor
    prompt, answer = "what colour is this ", "shape"
    together = own.tokenizer(prompt + answer, add_special_tokens=False)["input_ids"]
    alone = own.tokenizer(prompt, add_special_tokens=False)["input_ids"]
    assert together[: len(alone)] != alone
    inputs = {
        "input_ids": torch.tensor([alone]),
        "attention_mask": torch.ones(1, len(alone), dtype=torch.int64),
    }
    ids = own.answer_ids(answer)
    made = with_answers(inputs, [ids], own.padding, own._family)
    assert made.inputs["input_ids"][0].tolist() == alone + ids
    assert F.pad(torch.tensor(ids), (len(alone), 0), value=IGNORED).tolist() == (
        made.labels[0].tolist()
    )


@pytest.mark.slow
def test_a_merged_model_stands_alone(family_folder, answering_run, tmp_path):
    """Exported, a run's model is loaded by transformers alone, and says what it said."""
    from fedvlm.trained import export_merged, load_trained

    folder = family_folder("llava")
    simulate(config_from({**answering_run, "model": str(folder), "rounds": 1}), out=tmp_path / "r")
    trained = load_trained(tmp_path / "r")
    batch = trained.model.vlm.probe
    with torch.no_grad():
        before = trained.model.vlm.answer_losses(batch)
        export_merged(trained, tmp_path / "merged")
        after = load_generative(str(tmp_path / "merged")).vlm.answer_losses(batch)
    assert torch.allclose(before, after, atol=1e-5)
