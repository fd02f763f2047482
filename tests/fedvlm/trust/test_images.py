"""Corruptions, written words and attacks on images."""

import numpy as np
import pytest
import torch
from torch import nn

from fedvlm.errors import DataError
from fedvlm.seeds import ExperimentSeed
from fedvlm.trust.adversarial import (
    apgd,
    correct,
    least_radius,
    masking,
    pgd,
    square,
)
from fedvlm.trust.corruption import CORRUPTIONS, SEVERITIES, corrupt, noise_images
from fedvlm.trust.estimate import UnresolvedError
from fedvlm.trust.typographic import moved, scrambled, written


def _images(count=3, size=48):
    rng = np.random.default_rng(0)
    low = rng.integers(0, 256, (count, 6, 6, 3), dtype=np.uint8)
    return np.repeat(np.repeat(low, size // 6, axis=1), size // 6, axis=2)


@pytest.mark.parametrize("kind", list(CORRUPTIONS))
def test_a_corruption_grows_with_its_severity_and_repeats_by_seed(kind):
    images = np.random.default_rng(1).integers(0, 256, (3, 48, 48, 3), dtype=np.uint8)
    seed = ExperimentSeed(3)
    far = [np.abs(corrupt(images, kind, s, seed) / 255 - images / 255).mean() for s in SEVERITIES]
    assert far[0] > 0
    assert far == sorted(far)
    again = corrupt(images, kind, 3, seed)
    assert (again == corrupt(images, kind, 3, seed)).all()
    assert (again[:2] == corrupt(images[:2], kind, 3, seed)).all()


def test_images_that_a_corruption_cannot_take_are_refused():
    for wrong in (
        np.zeros((2, 4, 4, 3), np.uint8),
        np.zeros((2, 32, 32), np.uint8),
        _images() / 255,
    ):
        with pytest.raises(DataError, match="corruptions take uint8"):
            corrupt(wrong, "blur", 1, ExperimentSeed(0))
    with pytest.raises(DataError, match="no corruption"):
        corrupt(_images(), "fog", 1, ExperimentSeed(0))


def test_noise_images_show_nothing_twice():
    found = noise_images(6, 32, ExperimentSeed(0))
    assert len({one.tobytes() for one in found}) == 6
    assert (found == noise_images(6, 32, ExperimentSeed(0))).all()


def test_a_word_and_its_letters_cover_the_same_pixels():
    images = _images(2, 96)
    seed = ExperimentSeed(0)
    word, other = written(images, ["bomb", "bomb"]), written(images, [scrambled("bomb", seed)] * 2)
    changed = [np.argwhere((x != images).any(axis=-1)) for x in (word, other)]
    top = [rows[:, 1].min() for rows in changed]
    assert top[0] == top[1] >= 96 * 0.7
    assert sorted(scrambled("bomb", seed)) == sorted("bomb")
    assert (word != other).any()
    with pytest.raises(DataError, match="one text an image"):
        written(images, ["bomb"])


def test_moved_is_paired():
    rng = np.random.default_rng(0)
    word = np.ones(40)
    found = moved(word, np.zeros(40), np.arange(40), rng)
    assert found.value == 1.0
    assert moved(word, word, np.arange(40), rng).value == 0.0


# Attacks


class _Linear(nn.Module):
    """Two classes told apart by one direction: the least L∞ radius is known."""

    def __init__(self, seed=0):
        super().__init__()
        w = torch.randn(3 * 8 * 8, generator=torch.Generator().manual_seed(seed))
        self.w, self.b = w, -0.5 * w.sum()

    def forward(self, x):
        margin = x.flatten(1) @ self.w + self.b
        return torch.stack([margin / 2, -margin / 2], dim=1)


def _world(count=24):
    model = _Linear()
    generator = torch.Generator().manual_seed(1)
    x = 0.3 + 0.4 * torch.rand(count, 3, 8, 8, generator=generator)
    labels = model(x).argmax(dim=1)
    margin = (x.flatten(1) @ model.w + model.b).abs()
    return model, x, labels, margin / model.w.abs().sum()


@pytest.mark.parametrize("attack", [pgd, apgd])
def test_on_a_linear_model_an_attack_breaks_just_what_can_be_broken(attack):
    model, x, labels, need = _world()
    radius = float(need.median())
    found = attack(model, x, labels, radius, torch.Generator().manual_seed(0))
    assert (found.double() - x.double()).abs().max() <= radius
    assert found.min() >= 0
    assert found.max() <= 1
    broken = ~correct(model, found, labels)
    assert (broken <= (need <= radius * 1.000001)).all()  # none beyond what is possible
    assert broken[need < 0.97 * radius].all()


def test_square_needs_no_gradients_and_stays_within():
    model, x, labels, need = _world()

    def blind(images):
        with torch.no_grad():
            return model(images)

    radius = 3 * float(need.max())
    found = square(blind, x, labels, radius, torch.Generator().manual_seed(0), queries=300)
    assert (found.double() - x.double()).abs().max() <= radius
    assert (~correct(model, found, labels)).float().mean() > 0.9
    with pytest.raises(UnresolvedError, match="no gradients"):
        pgd(blind, x, labels, 0.1, torch.Generator())


def test_the_least_radius_is_just_above_what_is_needed():
    model, x, labels, need = _world()
    radii = tuple(float(r) for r in np.linspace(0, float(need.max()) * 1.1, 12)[1:])
    found = least_radius(model, x, labels, torch.Generator().manual_seed(0), radii, steps=20).radii
    gap = radii[1] - radii[0]
    assert (found >= need.numpy() - 1e-6).all()
    assert (found <= need.numpy() + 1.1 * gap).all()
    wrong = least_radius(model, x, 1 - labels, torch.Generator().manual_seed(0), radii)
    assert (wrong.radii == 0).all()


def test_masked_gradients_are_told():
    """A model whose scores are rounded has gradients of nothing, and falls to Square."""
    model, x, labels, need = _world()
    radius = 3 * float(need.max())

    def rounded(images):
        plain = model(images)
        return (plain.detach() * 4).round() / 4 + 0.0 * plain

    honest = masking(model, model, x, labels, radius, torch.Generator().manual_seed(0))
    hidden = masking(rounded, model, x, labels, radius, torch.Generator().manual_seed(0))
    assert not honest.masked
    assert hidden.masked
    assert hidden.transfer.mean() > 0.9


@pytest.mark.slow
def test_apgd_agrees_with_the_reference_within_two_points():
    """pyautoattack's own APGD-CE, same steps and radius, on a small convolutional network."""
    from pyautoattack.autopgd_base import APGDAttack

    torch.manual_seed(0)
    net = nn.Sequential(
        nn.Conv2d(3, 16, 5, 2),
        nn.ReLU(),
        nn.Conv2d(16, 32, 3, 2),
        nn.ReLU(),
        nn.Flatten(),
        nn.LazyLinear(10),
    )
    generator = torch.Generator().manual_seed(0)
    centres = torch.rand(10, 3, 24, 24, generator=generator)
    labels = torch.arange(400) % 10
    x = (0.5 * centres[labels] + 0.5 * torch.rand(400, 3, 24, 24, generator=generator)).clamp(0, 1)
    net(x[:2])
    optimizer = torch.optim.Adam(net.parameters(), 1e-3)
    for _ in range(150):
        optimizer.zero_grad()
        nn.functional.cross_entropy(net(x), labels).backward()
        optimizer.step()
    net.eval()
    assert correct(net, x, labels).float().mean() > 0.95
    rates = []
    for radius in (0.01, 0.02, 0.03, 0.05):
        ours = ~correct(net, apgd(net, x, labels, radius, generator, steps=50), labels)
        theirs = APGDAttack(
            net, n_iter=50, norm="Linf", eps=radius, loss="ce", seed=0, device="cpu"
        )
        found = ~correct(net, theirs.perturb(x, labels), labels)
        rates.append((float(ours.float().mean()), float(found.float().mean())))
    assert any(0.1 < one < 0.95 for one, _ in rates)
    for one, other in rates:
        assert abs(one - other) <= 0.02
