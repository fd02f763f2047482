"""Adversarial images within an L∞ ball: PGD, APGD, Square, transfer, and the least that breaks."""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional as F

from fedvlm.trust.estimate import UnresolvedError

Model = Callable[[Tensor], Tensor]
"""Logits (B, C) of images (B, 3, H, W), float32, in [0, 1]."""
RADII = tuple(n / 255 for n in (1 / 16, 1 / 8, 1 / 4, 1 / 2, 1.0, 2.0, 4.0, 8.0))


def correct(model: Model, images: Tensor, labels: Tensor) -> Tensor:
    """Return which images a model gets right, shape (B,), bool; a tie or a NaN is wrong."""
    with torch.no_grad():
        logits = model(images)
    own = logits.gather(1, labels[:, None])
    return (~(logits < own)).sum(dim=1) == 1


def _gradient(model: Model, images: Tensor, labels: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Return each image's loss, its gradient, and whether the model is still right."""
    x = images.detach().requires_grad_(True)
    logits = model(x)
    losses = F.cross_entropy(logits, labels, reduction="none")
    if not losses.requires_grad:
        raise UnresolvedError(
            "the model gives no gradients; only Square and transfer can attack it"
        )
    (gradient,) = torch.autograd.grad(losses.sum(), x)
    right = logits.detach().argmax(dim=1) == labels
    return losses.detach(), gradient.detach(), right


def _within(x: Tensor, images: Tensor, radius: float) -> Tensor:
    """Bring images into the ball and [0, 1]; the radius is not exceeded by a rounding either."""
    x = torch.minimum(torch.maximum(x, images - radius), images + radius).clamp(0.0, 1.0)
    beyond = (x.double() - images.double()).abs() > radius
    # images ± radius is rounded by at most half a unit in the last place: one step back suffices.
    return torch.where(beyond, torch.nextafter(x, images), x)


def _start(images: Tensor, radius: float, generator: torch.Generator) -> Tensor:
    noise = torch.rand(images.shape, generator=generator) * 2 - 1
    return _within(images + radius * noise, images, radius)


def pgd(
    model: Model,
    images: Tensor,
    labels: Tensor,
    radius: float,
    generator: torch.Generator,
    steps: int = 10,
) -> Tensor:
    """Attack by projected gradient descent (Madry et al. 2018): sign steps of 2.5·ε/steps.

    An image that is broken is left as it is, and costs no further step.

    Args:
        model: To be fooled.
        images: Shape (B, 3, H, W), in [0, 1].
        labels: Shape (B,), int64, the right columns.
        radius: ε, of the L∞ ball.
        generator: Draws the start.
        steps: Gradient steps.

    Returns:
        Images within ε of the given ones, in [0, 1].

    Raises:
        UnresolvedError: The model gives no gradients.
    """
    x = _start(images, radius, generator)
    todo = torch.arange(len(images))
    for _ in range(steps):
        _, gradient, right = _gradient(model, x[todo], labels[todo])
        todo, gradient = todo[right], gradient[right]
        if not len(todo):
            break
        moved = x[todo] + 2.5 * radius / steps * gradient.sign()
        x[todo] = _within(moved, images[todo], radius)
    return x


def _checkpoints(steps: int) -> list[int]:
    """Return the steps at which APGD looks back (Croce and Hein 2020, section 3.1)."""
    at, gap, out = 0.0, 0.22, []
    while at < 1:
        out.append(int(np.ceil(at * steps)))
        at, gap = at + gap, max(gap - 0.03, 0.06)
    return out


def apgd(
    model: Model,
    images: Tensor,
    labels: Tensor,
    radius: float,
    generator: torch.Generator,
    steps: int = 20,
) -> Tensor:
    """Attack by Auto-PGD on the cross-entropy (Croce and Hein 2020, algorithm 1).

    Steps of momentum from 2ε on; a step size is halved, and the search put back to its best point,
    where too few steps rose or neither step size nor loss changed since the last checkpoint.

    Args:
        model: To be fooled.
        images: Shape (B, 3, H, W), in [0, 1].
        labels: Shape (B,), int64.
        radius: ε, of the L∞ ball.
        generator: Draws the start.
        steps: Gradient steps.

    Returns:
        For each image one that fools the model where one was met, else the one of highest loss.

    Raises:
        UnresolvedError: The model gives no gradients.
    """
    x = _start(images, radius, generator)
    loss, gradient, right = _gradient(model, x, labels)
    best, best_loss, best_gradient = x.clone(), loss.clone(), gradient.clone()
    found, fooled = x.clone(), ~right
    step = torch.full((len(x), 1, 1, 1), 2 * radius)
    before = x.clone()
    rises = torch.zeros(len(x))
    marks = _checkpoints(steps)
    last_mark, halved, last_best = 0, torch.zeros(len(x), dtype=torch.bool), best_loss.clone()
    for number in range(steps):
        z = _within(x + step * gradient.sign(), images, radius)
        weight = 0.75 if number else 1.0
        ahead = _within(x + weight * (z - x) + (1 - weight) * (x - before), images, radius)
        before, x, old = x, ahead, loss
        loss, gradient, right = _gradient(model, x, labels)
        new = ~right & ~fooled
        found[new] = x[new]
        fooled |= new
        rises += (loss > old).float()
        better = loss > best_loss
        best[better], best_loss[better] = x[better], loss[better]
        best_gradient[better] = gradient[better]
        if number + 1 in marks[1:]:
            span = number + 1 - last_mark
            stuck = rises < 0.75 * span
            idle = ~halved & (best_loss <= last_best)
            halved = stuck | idle
            step[halved] /= 2
            x[halved], loss[halved] = best[halved], best_loss[halved]
            gradient[halved] = best_gradient[halved]
            rises.zero_()
            last_mark, last_best = number + 1, best_loss.clone()
        if bool(fooled.all()):
            break
    return torch.where(fooled[:, None, None, None], found, best)


def square(
    model: Model,
    images: Tensor,
    labels: Tensor,
    radius: float,
    generator: torch.Generator,
    queries: int = 200,
) -> Tensor:
    """Attack without gradients (Andriushchenko et al. 2020, algorithms 1 and 2, L∞).

    Stripes first, then squares of ±ε, kept where the margin falls. It sees scores alone: a model
    that withstands PGD and not this one hides its gradients.

    Args:
        model: To be fooled.
        images: Shape (B, 3, H, W), in [0, 1].
        labels: Shape (B,), int64.
        radius: ε, of the L∞ ball.
        generator: Draws squares.
        queries: Of the model, for each image.
    """

    def margin(x: Tensor, rows: Tensor) -> Tensor:
        with torch.no_grad():
            logits = model(x)
        own = logits.gather(1, labels[rows, None])[:, 0]
        others = logits.scatter(1, labels[rows, None], float("-inf")).max(dim=1).values
        return own - others

    count, channels, height, width = images.shape
    signs = torch.randint(0, 2, (count, channels, 1, width), generator=generator) * 2 - 1
    best = _within(images + radius * signs, images, radius)
    every = torch.arange(count)
    lowest = margin(best, every)
    for query in range(1, queries):
        todo = every[lowest > 0]
        if not len(todo):
            break
        side = max(1, round(np.sqrt(_share(query, queries) * height * width)))
        side = min(side, height, width)
        tried = best[todo].clone()
        for place in range(len(todo)):
            top = int(torch.randint(0, height - side + 1, (1,), generator=generator))
            left = int(torch.randint(0, width - side + 1, (1,), generator=generator))
            sign = torch.randint(0, 2, (channels, 1, 1), generator=generator) * 2 - 1
            window = images[todo[place], :, top : top + side, left : left + side]
            tried[place, :, top : top + side, left : left + side] = window + radius * sign
        tried = _within(tried, images[todo], radius)
        found = margin(tried, todo)
        better = found < lowest[todo]
        best[todo[better]], lowest[todo[better]] = tried[better], found[better]
    return best


def _share(query: int, queries: int) -> float:
    """Return the share of pixels in a square: 0.8, halved on the paper's schedule."""
    halvings = (10, 50, 200, 500, 1000, 2000, 4000, 6000, 8000)
    at = query * 10_000 / queries
    return 0.8 / 2 ** sum(at > mark for mark in halvings)


@dataclass(frozen=True, eq=False)
class LeastRadius:
    """The smallest tried radius that broke each image.

    Attributes:
        radii: Shape (B,): 0 for an image that was wrong untouched, infinite for one that no tried
            radius broke. Upper bounds: a better attack needs less.
        tried: The radii, ascending.
    """

    radii: NDArray[np.float64]
    tried: tuple[float, ...]

    @property
    def median(self) -> float:
        """The median over all images; infinite where half of them were not broken."""
        return float(np.median(self.radii))


def least_radius(
    model: Model,
    images: Tensor,
    labels: Tensor,
    generator: torch.Generator,
    radii: tuple[float, ...] = RADII,
    steps: int = 10,
) -> LeastRadius:
    """Find the smallest radius at which PGD breaks each image.

    Ascending, and what is broken isn't attacked again, so that a fragile model costs little. At a
    single radius every model that isn't robust looks the same, at 0 % or 100 %.

    Args:
        model: To be fooled.
        images: Shape (B, 3, H, W), in [0, 1].
        labels: Shape (B,), int64.
        generator: Draws starts.
        radii: To try.
        steps: Of PGD, at each.

    Raises:
        UnresolvedError: The model gives no gradients.
    """
    out = np.full(len(images), np.inf)
    standing = correct(model, images, labels)
    out[(~standing).numpy()] = 0.0
    todo = standing.nonzero()[:, 0]
    for radius in sorted(radii):
        if not len(todo):
            break
        x = pgd(model, images[todo], labels[todo], radius, generator, steps)
        still = correct(model, x, labels[todo])
        out[todo[~still].numpy()] = radius
        todo = todo[still]
    return LeastRadius(out, tuple(sorted(radii)))


@dataclass(frozen=True, eq=False)
class Masking:
    """What tells robustness from hidden gradients: which images each attack broke, at one radius.

    Attributes:
        white: Shape (B,), bool: by PGD on the model itself.
        square: Without gradients.
        transfer: By images made on another model, for example the one before training.
    """

    white: NDArray[np.bool_]
    square: NDArray[np.bool_]
    transfer: NDArray[np.bool_]

    @property
    def masked(self) -> bool:
        """Whether an attack without the model's gradients beats one with them by 2 points."""
        return max(self.square.mean(), self.transfer.mean()) > self.white.mean() + 0.02


def masking(
    model: Model,
    surrogate: Model,
    images: Tensor,
    labels: Tensor,
    radius: float,
    generator: torch.Generator,
    queries: int = 100,
) -> Masking:
    """Attack images that the model gets right in three ways.

    Args:
        model: To be fooled.
        surrogate: Another model with gradients and the same columns.
        images: Shape (B, 3, H, W), in [0, 1].
        labels: Shape (B,), int64.
        radius: ε, of the L∞ ball.
        generator: Draws starts and squares.
        queries: Of Square.

    Raises:
        UnresolvedError: The model gets none right, or gives no gradients.
    """
    standing = correct(model, images, labels)
    if not bool(standing.any()):
        raise UnresolvedError("the model gets none of the images right: there is nothing to break")
    x, y = images[standing], labels[standing]

    def broken(found: Tensor) -> NDArray[np.bool_]:
        return (~correct(model, found, y)).numpy()

    return Masking(
        white=broken(pgd(model, x, y, radius, generator)),
        square=broken(square(model, x, y, radius, generator, queries)),
        transfer=broken(pgd(surrogate, x, y, radius, generator)),
    )
