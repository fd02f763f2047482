"""Batched shadows against shadows trained one by one, and exact leave-one-out."""

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from fedvlm.errors import ConfigError
from fedvlm.leakage.shadows import (
    Shadows,
    ShadowSettings,
    batch_order,
    draw_masks,
    fresh_shadows,
    ridge_leave_one_out,
    similarities,
    train_linear_shadows,
    train_shadows,
)

SMALL = ShadowSettings(rank=3, epochs=4, batch_size=10, learning_rate=3.0)


def _features(count: int = 40, width: int = 24) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    images = F.normalize(torch.randn(count, width, generator=generator), dim=1)
    noise = F.normalize(torch.randn(count, width, generator=generator), dim=1)
    return images, F.normalize(images + 0.5 * noise, dim=1)


def _one_by_one(images, texts, masks, settings, rng) -> Shadows:
    """Train each shadow alone on its own examples, residuals applied as written."""
    start = fresh_shadows(len(masks), images.shape[1], settings.rank, rng)
    order = batch_order(len(images), settings, rng)
    done = []
    for number, mask in enumerate(masks):
        factors = [f[number].clone().requires_grad_() for f in start.tensors]
        optimizer = torch.optim.SGD(factors, lr=settings.learning_rate, momentum=settings.momentum)
        for step in order:
            rows = step[torch.from_numpy(mask)[step]]
            x, t = images[rows], texts[rows]
            a, b, c, e = factors
            logits = settings.scale * (
                F.normalize(x + x @ a @ b, dim=1) @ F.normalize(t + t @ c @ e, dim=1).T
            )
            right = torch.arange(len(rows))
            loss = (F.cross_entropy(logits, right) + F.cross_entropy(logits.T, right)) / 2
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        done.append([f.detach() for f in factors])
    return Shadows(*(torch.stack(column) for column in zip(*done, strict=True)))


def test_batched_shadows_equal_shadows_one_by_one() -> None:
    images, texts = _features()
    masks = draw_masks(6, len(images), np.random.default_rng(1))
    ours = train_shadows(images, texts, masks, SMALL, np.random.default_rng(2))
    plain = _one_by_one(images, texts, masks, SMALL, np.random.default_rng(2))
    for one, other in zip(ours.tensors, plain.tensors, strict=True):
        assert (one - other).abs().max() < 1e-5
    assert ours.B.abs().max() > 1e-3  # something was learned


def test_similarities_equal_explicit_residuals() -> None:
    images, texts = _features()
    generator = torch.Generator().manual_seed(3)
    A, C = (0.3 * torch.randn(5, 24, 3, generator=generator) for _ in range(2))
    B, E = (0.3 * torch.randn(5, 3, 24, generator=generator) for _ in range(2))
    left = F.normalize(images + images @ A @ B, dim=-1)
    right = F.normalize(texts[:7] + texts[:7] @ C @ E, dim=-1)
    found = similarities(Shadows(A, B, C, E), images, texts[:7])
    torch.testing.assert_close(found, left @ right.mT, atol=1e-5, rtol=1e-5)


def test_linear_shadows_equal_heads_one_by_one() -> None:
    images, _ = _features()
    labels = torch.arange(len(images)) % 4
    masks = draw_masks(4, len(images), np.random.default_rng(1))
    ours = train_linear_shadows(images, labels, 4, masks, SMALL, np.random.default_rng(2))
    order = batch_order(len(images), SMALL, np.random.default_rng(2))
    for number, mask in enumerate(masks):
        head = torch.nn.Linear(images.shape[1], 4)
        torch.nn.init.zeros_(head.weight)
        torch.nn.init.zeros_(head.bias)
        optimizer = torch.optim.SGD(head.parameters(), lr=3.0, momentum=0.9)
        for step in order:
            rows = step[torch.from_numpy(mask)[step]]
            optimizer.zero_grad()
            F.cross_entropy(head(images[rows]), labels[rows]).backward()
            optimizer.step()
        assert (ours[number, :-1] - head.weight.detach().T).abs().max() < 1e-5
        assert (ours[number, -1] - head.bias.detach()).abs().max() < 1e-5


def test_ridge_leave_one_out_equals_fitting_without_each_example() -> None:
    rng = np.random.default_rng(0)
    X, Y = rng.normal(size=(20, 5)), rng.normal(size=(20, 2))
    inside, outside = ridge_leave_one_out(X, Y, 0.7)
    whole = np.linalg.solve(X.T @ X + 0.7 * np.eye(5), X.T @ Y)
    np.testing.assert_allclose(inside, Y - X @ whole)
    for i in range(20):
        keep = np.arange(20) != i
        rest = np.linalg.solve(X[keep].T @ X[keep] + 0.7 * np.eye(5), X[keep].T @ Y[keep])
        np.testing.assert_allclose(outside[i], Y[i] - X[i] @ rest)
    with pytest.raises(ConfigError, match="penalty"):
        ridge_leave_one_out(X, Y, 0.0)


def test_each_example_is_in_half_of_the_shadows() -> None:
    masks = draw_masks(8, 30, np.random.default_rng(0))
    assert (masks.sum(axis=0) == 4).all()
    with pytest.raises(ConfigError, match="even"):
        draw_masks(3, 30, np.random.default_rng(0))
