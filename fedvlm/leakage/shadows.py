"""Shadow adapters by the hundred: frozen features once, masks for in and out, one batched run.

All shadows see the same batches; a mask says which examples a shadow trains on. With features
X, T of shape (B, D) and low-rank residuals x + xAB, t + tCE the similarities are

    S = XTᵀ + (XEᵀ)Qᵀ + P(TBᵀ)ᵀ + P(BEᵀ)Qᵀ,  P = XA, Q = TC,

so that nothing of shape M × B × D is ever made, and XTᵀ is shared by all shadows.
"""

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from fedvlm.errors import ConfigError

_MASKED = -1e4  # a logit that no softmax over cosines can see


@dataclass(frozen=True)
class ShadowSettings:
    """How shadows train: SGD with momentum on batches that all of them share.

    Attributes:
        rank: Rank r of the residuals, at least 1.
        epochs: Passes over the features, at least 1.
        batch_size: Examples a batch before masking, at least 2.
        learning_rate: Above 0.
        momentum: In [0, 1).
        scale: Inverse temperature of InfoNCE, above 0.
    """

    rank: int = 4
    epochs: int = 10
    batch_size: int = 50
    learning_rate: float = 0.5
    momentum: float = 0.9
    scale: float = 20.0

    def __post_init__(self) -> None:
        if self.rank < 1 or self.epochs < 1 or self.batch_size < 2:
            raise ConfigError("shadows need rank >= 1, epochs >= 1 and batch_size >= 2")
        if self.learning_rate <= 0 or self.scale <= 0 or not 0 <= self.momentum < 1:
            raise ConfigError("shadows need a rate and a scale above 0 and momentum in [0, 1)")


@dataclass(frozen=True, eq=False)
class Shadows:
    """Low-rank residual adapters of images (A, B) and captions (C, E).

    Attributes:
        A: Shape (M, D, r).
        B: Shape (M, r, D).
        C: Shape (M, D, r).
        E: Shape (M, r, D).
    """

    A: Tensor
    B: Tensor
    C: Tensor
    E: Tensor

    @property
    def tensors(self) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """The four factors."""
        return self.A, self.B, self.C, self.E


def draw_masks(shadows: int, examples: int, rng: np.random.Generator) -> NDArray[np.bool_]:
    """Draw who trains on what: shape (M, N), each example in half of the shadows exactly.

    Args:
        shadows: M, even and at least 2.
        examples: N.
        rng: Draws.
    """
    if shadows < 2 or shadows % 2:
        raise ConfigError(f"the number of shadows must be even and at least 2, got {shadows}")
    ranks = rng.random((shadows, examples)).argsort(axis=0)
    return ranks < shadows // 2


def fresh_shadows(count: int, width: int, rank: int, rng: np.random.Generator) -> Shadows:
    """Draw A and C from N(0, 0.05²); B and E are zero, so every shadow starts as the backbone."""
    draw = [
        torch.from_numpy((0.05 * rng.normal(size=(count, width, rank))).astype(np.float32))
        for _ in range(2)
    ]
    zero = torch.zeros(count, rank, width)
    return Shadows(draw[0], zero, draw[1], zero.clone())


def batch_order(examples: int, settings: ShadowSettings, rng: np.random.Generator) -> list[Tensor]:
    """Return the rows of each step, the same for every shadow."""
    parts = max(1, round(examples / settings.batch_size))
    return [
        torch.from_numpy(rows)
        for _ in range(settings.epochs)
        for rows in np.array_split(rng.permutation(examples), parts)
    ]


def similarities(shadows: Shadows, images: Tensor, texts: Tensor) -> Tensor:
    """Return the cosines of images with captions under every shadow.

    Args:
        shadows: M of them.
        images: Shape (B, D), unit rows, of the frozen backbone.
        texts: Shape (B', D), likewise.

    Returns:
        Shape (M, B, B').
    """
    A, B, C, E = shadows.tensors
    count, width, rank = A.shape
    flat = [f.permute(1, 0, 2).reshape(width, count * rank) for f in (A, B.mT, C, E.mT)]

    def spread(product: Tensor) -> list[Tensor]:
        pieces = product.view(len(product), -1, count, rank).permute(1, 2, 0, 3)
        return list(pieces.unbind(0))

    # One product per side for all shadows; each piece is (M, rows, r).
    P, XB, XE = spread(images @ torch.cat([flat[0], flat[1], flat[3]], dim=1))
    Q, TE, TB = spread(texts @ torch.cat([flat[2], flat[3], flat[1]], dim=1))
    left = torch.cat([XE + P @ (B @ E.mT), P], dim=2)
    products = (images @ texts.T)[None] + left @ torch.cat([Q, TB], dim=2).mT
    # ‖x + pB‖² = 1 + 2 p·(xBᵀ) + p BBᵀ pᵀ, and likewise for captions.
    image_norm = 1 + 2 * (P * XB).sum(2) + ((P @ (B @ B.mT)) * P).sum(2)
    text_norm = 1 + 2 * (Q * TE).sum(2) + ((Q @ (E @ E.mT)) * Q).sum(2)
    return products * image_norm.rsqrt()[:, :, None] * text_norm.rsqrt()[:, None, :]


def _loss(shadows: Shadows, images: Tensor, texts: Tensor, mask: Tensor, scale: float) -> Tensor:
    """Return the sum over shadows of InfoNCE over the examples that each trains on."""
    logits = scale * similarities(shadows, images, texts)
    outside = (1 - mask) * _MASKED
    own = torch.diagonal(logits, dim1=1, dim2=2)
    rows = torch.logsumexp(logits + outside[:, None, :], dim=2)
    columns = torch.logsumexp(logits + outside[:, :, None], dim=1)
    each = 0.5 * (rows + columns - 2 * own) * mask
    return (each.sum(1) / mask.sum(1).clamp(min=1)).sum()


def train_shadows(
    images: Tensor,
    texts: Tensor,
    masks: NDArray[np.bool_],
    settings: ShadowSettings,
    rng: np.random.Generator,
) -> Shadows:
    """Train one shadow per mask, all at once.

    Args:
        images: Shape (N, D), float32, unit rows: features of the frozen backbone.
        texts: Shape (N, D), likewise.
        masks: Shape (M, N): which examples a shadow trains on.
        settings: How they train.
        rng: Draws initial factors and batches.

    Returns:
        The trained shadows: the same as trained one by one, within rounding.

    Raises:
        ConfigError: The shapes don't fit.
    """
    if images.shape != texts.shape or masks.shape[1] != len(images):
        raise ConfigError(
            f"images {tuple(images.shape)}, texts {tuple(texts.shape)} and masks {masks.shape} "
            "must agree in N and D"
        )
    start = fresh_shadows(len(masks), images.shape[1], settings.rank, rng)
    order = batch_order(len(images), settings, rng)
    member = torch.from_numpy(masks.astype(np.float32))
    factors = [f.clone().requires_grad_() for f in start.tensors]
    optimizer = torch.optim.SGD(
        factors, lr=settings.learning_rate, momentum=settings.momentum, foreach=True
    )
    for rows in order:
        optimizer.zero_grad(set_to_none=True)
        _loss(
            Shadows(*factors), images[rows], texts[rows], member[:, rows], settings.scale
        ).backward()
        optimizer.step()
    return Shadows(*(f.detach() for f in factors))


def train_linear_shadows(
    features: Tensor,
    labels: Tensor,
    classes: int,
    masks: NDArray[np.bool_],
    settings: ShadowSettings,
    rng: np.random.Generator,
) -> Tensor:
    """Train one linear softmax head per mask, all at once, in one product per step.

    The gradient of softmax regression is known, so no graph is built: Xᵀ(softmax − onehot).

    Args:
        features: Shape (N, D), float32.
        labels: Shape (N,), int64 in [0, classes).
        classes: C, at least 2.
        masks: Shape (M, N).
        settings: Epochs, batch size, rate, momentum; rank and scale are not used.
        rng: Draws batches. Heads start at zero.

    Returns:
        Weights of shape (M, D + 1, C), the bias in the last row.
    """
    count, width = len(masks), features.shape[1] + 1
    inputs = torch.cat([features, torch.ones(len(features), 1)], dim=1)
    targets = torch.nn.functional.one_hot(labels, classes).float()
    member = torch.from_numpy(masks.astype(np.float32)).T.contiguous()
    heads = torch.zeros(width, count * classes)
    speed = torch.zeros_like(heads)
    for rows in batch_order(len(features), settings, rng):
        x, mask = inputs[rows], member[rows]
        chance = (x @ heads).view(len(rows), count, classes).softmax(dim=2)
        share = mask / mask.sum(0).clamp(min=1)
        error = (chance - targets[rows][:, None, :]) * share[:, :, None]
        speed.mul_(settings.momentum).add_(x.T @ error.view(len(rows), -1))
        heads.sub_(speed, alpha=settings.learning_rate)
    return heads.view(width, count, classes).permute(1, 0, 2)


def ridge_leave_one_out(
    features: NDArray[np.float64], targets: NDArray[np.float64], penalty: float
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Return residuals of a ridge head with and without each example, exactly.

    e_i / (1 − h_ii) is the residual of example i under the head fitted on all others (Cook and
    Weisberg 1982, section 2.2.3): a membership score that needs no shadow at all.

    Args:
        features: Shape (N, D).
        targets: Shape (N, C).
        penalty: λ of λ‖W‖², above 0.

    Returns:
        Residuals "in" and "out", each (N, C).
    """
    if penalty <= 0:
        raise ConfigError(f"penalty must be above 0, got {penalty}")
    gram = features.T @ features + penalty * np.eye(features.shape[1])
    solved = np.linalg.solve(gram, features.T)
    inside = targets - features @ (solved @ targets)
    leverage = np.einsum("nd,dn->n", features, solved)
    return inside, inside / (1 - leverage)[:, None]
