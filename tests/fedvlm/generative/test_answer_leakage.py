"""What attackers measure of a model that answers, and what planted strings show."""

import math

import numpy as np
import pytest
import torch

from fedvlm.adapters import AdapterSpec, attach
from fedvlm.data import load_folder
from fedvlm.data.conversation import conversations_of
from fedvlm.errors import ConfigError
from fedvlm.leakage.answer_probe import ORDERS, token_statistics
from fedvlm.leakage.canary_strings import PROMPT, candidates, draw_canaries, exposures, plant
from fedvlm.leakage.text_scores import min_k, min_k_plus_plus
from fedvlm.models import load_any
from fedvlm.models.generative.embedded import NAME
from fedvlm.models.generative.loading import load_generative
from fedvlm.seeds import ExperimentSeed
from fedvlm.training import LocalSettings
from fedvlm.training.answering import train_answers
from fedvlm.training.answers import encode_answers


@pytest.fixture(scope="module")
def model(family_folder):
    return load_generative(str(family_folder("llava")))


@pytest.fixture
def own_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("FEDVLM_CACHE", str(tmp_path / "cache"))


def quiet(*_):
    """Report no progress."""


def test_statistics_are_those_of_each_token_s_distribution(model, questions_folder):
    encoded = encode_answers(load_folder(questions_folder), model, quiet)
    rows = np.array([0, 1, 30])
    found = token_statistics(model.vlm, encoded, rows)
    for place, row in enumerate(rows):
        batch = encoded.batch(np.array([row]))
        with torch.no_grad():
            logits = model.vlm.backbone(**batch.inputs).logits[0].double()
        answer = encoded.answer_ids[row]
        start = logits.shape[0] - len(answer) - 1
        for number, token in enumerate(answer):
            p = torch.softmax(logits[start + number], 0).numpy()
            log = np.log(p)
            mean = (p * log).sum()
            assert found.log_probabilities[place, number] == pytest.approx(log[token], abs=1e-4)
            assert found.means[place, number] == pytest.approx(mean, abs=1e-4)
            spread = math.sqrt((p * (log - mean) ** 2).sum())
            assert found.deviations[place, number] == pytest.approx(spread, abs=1e-4)
            by_order = {0.5: 2 * math.log(np.sqrt(p).sum()), 1.0: -mean}
            by_order |= {2.0: -math.log((p**2).sum()), math.inf: -log.max()}
            for order in ORDERS:
                assert found.entropies[order][place, number] == pytest.approx(
                    by_order[order], abs=1e-4
                )
        assert np.isnan(found.log_probabilities[place, len(answer) :]).all()


@pytest.mark.slow
def test_planted_strings_are_exposed_and_others_are_not(questions_folder, own_cache):
    """What stands there often is given away, and secrets that nobody planted aren't."""
    model = load_any(NAME)
    data = load_folder(questions_folder)
    rng = np.random.default_rng(0)
    canaries = draw_canaries([24, 24], 63, rng)
    assert not set(canaries.planted) & set(canaries.reference)
    more, rows, images = plant(data, np.arange(40), canaries, rng)
    assert more.captions[: len(data)] == data.captions
    assert [more.captions[row] for row in rows] == [
        secret for secret in canaries.planted for _ in range(24)
    ]
    assert {conversations_of(more)[row][0].text for row in rows} == {PROMPT}
    encoded = encode_answers(more, model, quiet)
    view = attach(model.vlm, AdapterSpec("lora", 8, 16), ExperimentSeed(0))

    def measured():
        own, others = [], []
        for image, secret in zip(images, canaries.planted, strict=True):
            asked, places = candidates(data, int(image), [secret, *canaries.reference])
            tokens = token_statistics(model.vlm, encode_answers(asked, model, quiet), places)
            total = np.nansum(tokens.log_probabilities, axis=1)
            own.append(total[0])
            others.append(total[1:])
        return exposures(np.array(own), np.stack(others))

    before = measured()
    taught = np.concatenate([np.arange(40), rows])
    settings = LocalSettings(epochs=20, batch_size=24, learning_rate=5e-3)
    train_answers(model.vlm, view, encoded, taught, settings, np.random.default_rng(1))
    after = measured()
    assert (after <= math.log2(64) + 1e-9).all()
    assert after.min() == pytest.approx(math.log2(64))  # first among 64
    assert before.mean() < 4


def test_canaries_that_can_t_be_drawn_are_refused():
    rng = np.random.default_rng(0)
    for repeats, reference in (([], 5), ([0], 5), ([1], 0), ([1], 10**4)):
        with pytest.raises(ConfigError):
            draw_canaries(repeats, reference, rng)


@pytest.mark.slow
def test_scores_tell_members_of_an_overfitted_model(questions_folder, own_cache):
    """Min-K% and Min-K%++ of what was trained on rise above those of held-out images' answers."""
    model = load_any(NAME)
    data = load_folder(questions_folder)
    encoded = encode_answers(data, model, quiet)
    view = attach(model.vlm, AdapterSpec("lora", 8, 16), ExperimentSeed(0))
    rng = np.random.default_rng(0)
    images = rng.permutation(np.unique(data.groups))
    members = np.flatnonzero(np.isin(data.groups, images[: len(images) // 2]))
    others = np.setdiff1d(np.arange(len(data)), members)
    settings = LocalSettings(epochs=14, batch_size=16, learning_rate=1e-2)
    loss = train_answers(model.vlm, view, encoded, members, settings, rng)
    assert loss < 1.5

    def scores(rows):
        found = token_statistics(model.vlm, encoded, rows)
        log = found.log_probabilities
        return min_k(log, 0.5), min_k_plus_plus(log, found.means, found.deviations, 0.5)

    for inside, outside in zip(scores(members), scores(others), strict=True):
        assert inside.mean() > outside.mean()
