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


def _pack(shadows: Shadows) -> Tensor:
    """Put all factors side by side, shape (D, 4Mr): A, then B and E of each shadow, then C."""
    A, B, C, E = shadows.tensors
    both = torch.cat([B, E], dim=1).mT
    return torch.cat([f.permute(1, 0, 2).flatten(1) for f in (A, both, C)], dim=1)


def _unpack(packed: Tensor, count: int) -> Shadows:
    a, both, c = (part.detach() for part in _parts(packed, count))
    B, E = both.mT.contiguous().chunk(2, dim=1)
    return Shadows(a.contiguous(), B.contiguous(), c.contiguous(), E.contiguous())


def _parts(packed: Tensor, count: int) -> tuple[Tensor, Tensor, Tensor]:
    """Return views of A (M, D, r), of B and E (M, D, 2r), and of C (M, D, r)."""
    a, both, c = packed.tensor_split((packed.shape[1] // 4, 3 * packed.shape[1] // 4), dim=1)
    views = (part.unflatten(1, (count, -1)).transpose(0, 1) for part in (a, both, c))
    return tuple(views)  # pyright: ignore[reportReturnType]


def _cosines(base: Tensor, of_images: Tensor, of_texts: Tensor, grams: Tensor) -> Tensor:
    """Return cosines from what is left of the factors once they have met the features.

    Args:
        base: XTᵀ, shape (B, B').
        of_images: X[A | Bᵀ Eᵀ], shape (B, 3Mr).
        of_texts: T[Bᵀ Eᵀ | C], shape (B', 3Mr).
        grams: [B; E][B; E]ᵀ, shape (M, 2r, 2r).
    """
    count, rank = len(grams), grams.shape[1] // 2

    def spread(product: Tensor) -> Tensor:
        return product.unflatten(1, (count, -1)).transpose(0, 1)

    P, x = spread(of_images[:, : count * rank]), spread(of_images[:, count * rank :])
    Q, t = spread(of_texts[:, 2 * count * rank :]), spread(of_texts[:, : 2 * count * rank])
    XB, XE, TB, TE = x[:, :, :rank], x[:, :, rank:], t[:, :, :rank], t[:, :, rank:]
    BB, BE, EE = grams[:, :rank, :rank], grams[:, :rank, rank:], grams[:, rank:, rank:]
    left = torch.cat([XE + P @ BE, P], dim=2)
    products = base + left @ torch.cat([Q, TB], dim=2).mT
    # ‖x + pB‖² = 1 + 2 p·(xBᵀ) + p BBᵀ pᵀ, and likewise for captions.
    image_norm = 1 + (P * (2 * XB + P @ BB)).sum(2)
    text_norm = 1 + (Q * (2 * TE + Q @ EE)).sum(2)
    return products * image_norm.rsqrt()[:, :, None] * text_norm.rsqrt()[:, None, :]


def similarities(shadows: Shadows, images: Tensor, texts: Tensor) -> Tensor:
    """Return the cosines of images with captions under every shadow.

    Args:
        shadows: M of them.
        images: Shape (B, D), unit rows, of the frozen backbone.
        texts: Shape (B', D), likewise.

    Returns:
        Shape (M, B, B').
    """
    packed = _pack(shadows)
    width = packed.shape[1] // 4
    _, both, _ = _parts(packed, len(shadows.A))
    return _cosines(
        images @ texts.T, images @ packed[:, : 3 * width], texts @ packed[:, width:], both.mT @ both
    )


def _loss(cosines: Tensor, mask: Tensor, scale: float) -> Tensor:
    """Return the sum over shadows of InfoNCE over the examples that each trains on."""
    logits = scale * cosines
    outside = (1 - mask) * _MASKED
    own = torch.diagonal(logits, dim1=1, dim2=2)
    rows = torch.logsumexp(logits + outside[:, None, :], dim=2)
    columns = torch.logsumexp(logits + outside[:, :, None], dim=1)
    each = 0.5 * (rows + columns - 2 * own) * mask
    return (each.sum(1) / mask.sum(1).clamp(min=1)).sum()


def _step(packed: Tensor, speed: Tensor, x: Tensor, t: Tensor, mask: Tensor, s: ShadowSettings):
    """Take one step of SGD in place; only products with features are given to autograd."""
    count, width = len(mask), packed.shape[1] // 4
    _, both, _ = _parts(packed, count)
    made = (x @ packed[:, : 3 * width], t @ packed[:, width:], both.mT @ both)
    leaves = [each.requires_grad_() for each in made]
    loss = _loss(_cosines(x @ t.T, *leaves), mask, s.scale)
    by_image, by_text, by_gram = torch.autograd.grad(loss, leaves)
    speed.mul_(s.momentum)
    speed[:, : 3 * width].addmm_(x.T, by_image)
    speed[:, width:].addmm_(t.T, by_text)
    _, faster, _ = _parts(speed, count)
    faster += both @ (by_gram + by_gram.mT)
    packed.sub_(speed, alpha=s.learning_rate)


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
    packed = _pack(start)
    speed = torch.zeros_like(packed)
    for rows in order:
        _step(packed, speed, images[rows], texts[rows], member[:, rows], settings)
    return _unpack(packed, len(masks))


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
