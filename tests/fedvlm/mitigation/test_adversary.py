"""An attribute that a classifier can't keep up with: hidden, at a price, and kept on the client."""

import itertools
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import cross_val_score
from torch.nn.functional import binary_cross_entropy_with_logits

from fedvlm.adapters import AdapterSpec, FlatView, attach
from fedvlm.config import config_from
from fedvlm.errors import ConfigError
from fedvlm.federation import load_task, simulate
from fedvlm.federation.floor import Floor
from fedvlm.federation.mitigated import mitigated, require_material
from fedvlm.federation.node import Node
from fedvlm.mitigation.adversary import Adversary, labels_of
from fedvlm.models import load_model
from fedvlm.seeds import ExperimentSeed
from fedvlm.training import LocalSettings, encode_pairs, train_adapter


def _read_anew(embeddings, labels):
    """Return how often a reader that is fitted to some folds is right on the others."""
    reader = LogisticRegression(C=100, max_iter=2000)
    return float(cross_val_score(reader, embeddings / embeddings.std(), labels, cv=6).mean())


def test_a_classifier_that_is_fitted_afterwards_reads_nothing():
    """A linear encoder that tells an attribute at once, beside what it has to learn.

    The reader afterwards is freer than the adversary's own: what shrank, it may scale up again.
    """
    rng = torch.Generator().manual_seed(0)
    rows, wanted = np.arange(120), torch.eye(8)[4]
    labels, right = torch.arange(120) % 2, torch.arange(120) // 2 % 2
    inputs = 0.3 * torch.randn(120, 8, generator=rng)
    inputs[:, 0] += 2.0 * labels - 1
    inputs[:, 4] += 2.0 * right - 1
    before = torch.nn.functional.normalize(inputs, dim=1)
    encoder = torch.eye(8, requires_grad=True)
    step = torch.optim.Adam([encoder], lr=0.02)

    def embed():
        return torch.nn.functional.normalize(inputs @ encoder, dim=1)

    pairs = SimpleNamespace(images=torch.from_numpy)
    vlm = SimpleNamespace(embed=lambda chosen, which: embed()[chosen].detach())
    begun = Adversary(labels.numpy(), 3.0).begun(vlm, pairs, rows)
    for _ in range(100):
        images = embed()
        loss = binary_cross_entropy_with_logits(5 * images @ wanted, right.float())
        term = begun.penalty(vlm, images, images, begun.extras(vlm, rows, {}), lambda x: x.sum())
        step.zero_grad()
        (loss + begun.weight * term).backward()
        step.step()
    after = embed().detach()

    def learned(found):
        return float(((found @ wanted > 0) == right.bool()).float().mean())

    assert _read_anew(before.numpy(), labels.numpy()) > 0.75
    assert _read_anew(after.numpy(), labels.numpy()) < 0.6
    assert learned(after) >= learned(before) - 0.02


@pytest.mark.slow
def test_a_dual_encoder_s_designers_are_read_less(shapes, tiny_clip_folder, tmp_path, monkeypatch):
    """Three designers, 1/3 is chance; 54 drawings, so that two seeds are taken together."""
    monkeypatch.setenv("FEDVLM_CACHE", str(tmp_path / "cache"))
    rows, labels, read = np.arange(len(shapes)), labels_of(shapes, "domain"), {0.0: [], 1.0: []}
    for weight, seed in itertools.product(read, (1, 2)):
        model = load_model(str(tiny_clip_folder))
        view = attach(model.vlm, AdapterSpec("lora", 8, 16), ExperimentSeed(seed))
        pairs = encode_pairs(shapes, model, lambda *_: None)
        repair = Adversary(labels, weight) if weight else None
        settings = LocalSettings(epochs=2, batch_size=27, learning_rate=0.01)
        for number in range(12):
            rng = np.random.default_rng([seed, number])
            train_adapter(model.vlm, view, pairs, rows, settings, rng, repair)
        found = model.vlm.embed(pairs.images(rows), "image").numpy()
        read[weight].append(_read_anew(found, labels))
        assert (
            FlatView(model.vlm).layout == view.layout
        )  # the classifier is no part of what is sent
    assert np.mean(read[1.0]) < np.mean(read[0.0]) - 0.1


def test_the_term_turns_the_classifiers_gradient_round():
    """The encoder goes up the classifier's cross-entropy, and the classifier itself down."""
    rng = torch.Generator().manual_seed(0)
    images = torch.nn.functional.normalize(torch.randn(12, 6, generator=rng), dim=1)
    labels = np.array([0, 1] * 6)
    labels[10:] = -1  # left out
    pairs = SimpleNamespace(images=torch.from_numpy)
    vlm = SimpleNamespace(embed=lambda rows, which: images[rows])
    begun = Adversary(labels, 0.5).begun(vlm, pairs, np.arange(12))
    assert begun.weight == 0.5
    extras = begun.extras(vlm, np.arange(12), {})
    moving = images.clone().requires_grad_(True)
    term = begun.penalty(vlm, moving, moving, extras, lambda x: x.sum())
    term.backward()
    assert term.shape == ()
    assert (moving.grad[10:] == 0).all()

    def read(where):  # by the classifier as it stands: no step of its own
        told = torch.from_numpy(labels[:10])
        return float(begun.losses(where[:10].detach(), told).clamp(max=float(np.log(2))).mean())

    assert term.item() == pytest.approx(-read(moving))
    assert read(moving) < np.log(2)  # it has learned
    assert read(moving - 0.1 * moving.grad) > read(moving)  # a step down the term hides
    none = begun.penalty(vlm, moving, moving, {"labels": torch.full((12,), -1)}, lambda x: x.sum())
    assert none.item() == 0


def test_a_column_is_told_by_its_name(shapes):
    assert len(np.unique(labels_of(shapes, "domain"))) == 3
    assert len(np.unique(labels_of(shapes, "topic"))) == 3
    column = ("a", " ", "b") * 18
    more = replace(shapes, more={"sex": column, "what": shapes.captions, "one": ("x",) * 54})
    assert labels_of(more, "sex")[:6].tolist() == [0, -1, 1, 0, -1, 1]
    assert (labels_of(more, "one") == 0).all()
    with pytest.raises(ConfigError, match="no column 'age' to hide; known: domain, topic, sex"):
        labels_of(more, "age")
    with pytest.raises(ConfigError, match="the caption by another name"):
        labels_of(more, "what")


def test_pairs_of_one_value_train_without_it(shapes):
    labels = labels_of(shapes, "domain")
    rows = np.flatnonzero(labels == 1)
    assert Adversary(labels).begun(None, None, rows) is None
    with pytest.raises(ConfigError, match="has begun"):
        Adversary(labels).extras(None, rows, {})


def _vector(out):
    with np.load(out / "checkpoint.npz", allow_pickle=False) as kept:
        return kept["vector"]


@pytest.mark.slow
def test_in_a_run_nothing_of_it_leaves_and_nothing_is_kept(small_run, tmp_path):
    """The vector is the plain run's in shape; a resumed run is the one that was not cut."""
    settings = small_run | {"rounds": 2, "workers": 2}
    asked = {"mitigate": "adversary", "mitigation_attribute": "domain", "adapter": "ffa-lora"}
    whole = simulate(config_from(settings | asked), out=tmp_path / "whole")
    plain = load_task(config_from(settings | {"adapter": "ffa-lora"}))
    assert whole.adapter["schema"] == plain.view.schema
    config = config_from(settings | asked | {"rounds": 1})
    simulate(config, out=tmp_path / "cut")
    again = simulate(config_from({"rounds": 2}, config), out=tmp_path / "cut", resume=True)
    assert again.rounds[2]["upload_bytes_per_client"] == whole.rounds[2]["upload_bytes_per_client"]
    vectors = [_vector(tmp_path / name) for name in ("whole", "cut")]
    assert (vectors[0] == vectors[1]).all()


def test_it_is_no_part_of_what_is_sent(small_run):
    asked = {"mitigate": "adversary", "mitigation_attribute": "domain"}
    task = load_task(config_from(small_run | asked), client=0)
    plain = load_task(config_from(small_run)).view
    found = mitigated(task, Node(0, Floor(), simulated=True))
    assert isinstance(found.repair, Adversary)
    found.train(0, 1)
    assert FlatView(found.model.vlm).schema == found.view.schema == plain.schema


def test_what_no_client_could_hide_is_refused_before_the_first_round(small_run):
    asked = {"mitigate": "adversary", "mitigation_attribute": "domain"}
    task = load_task(config_from(small_run | asked))
    parts = tuple(np.flatnonzero(task.data.domains == number) for number in range(3))
    apart = replace(task, splits=replace(task.splits, clients=parts))
    with pytest.raises(ConfigError, match="no client's pairs have two values of 'domain'"):
        require_material(apart)
    require_material(task)
    with pytest.raises(ConfigError, match="has no column 'sex' to hide"):
        simulate(config_from(small_run | asked | {"mitigation_attribute": "sex"}))
