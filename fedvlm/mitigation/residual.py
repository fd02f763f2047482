"""A residual map that hides an attribute from a classifier that keeps up with it (DeAR)."""

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from torch.nn import functional as F

from fedvlm.errors import ConfigError

_STEPS, _RATE = 300, 1e-2
_SHARPNESS = 3.0  # cosines lie close together: without it a classifier of unit rows stays vague


def residual(
    embeddings: ArrayLike,
    attributes: ArrayLike,
    strength: float,
    generator: torch.Generator,
    steps: int = _STEPS,
) -> NDArray[np.float64]:
    """Return I + R of z′ = z + Rz (after DeAR, Seth et al. 2023, with a linear residual).

    R minimises mean ‖Rz‖² + λ·KL(uniform ‖ C(z′)), while the linear classifier C learns to read the
    attribute off z′: an adversary, so that a map that merely confuses yesterday's classifier gains
    nothing. Linear, so that it folds into the output layer; the paper's residual is a network.

    A classifier that is made anew afterwards still reads something: this is no erasure.

    It sees embeddings one by one, not their sums: fit it on public drawings. A classifier that all
    examples train couples them, and no clip bounds that under example-level DP.

    Args:
        embeddings: Shape (N, D), unit rows.
        attributes: Shape (N,), at least two values.
        strength: λ, at least 0: 0 leaves embeddings as they are.
        generator: Draws the classifier's first weights.
        steps: Steps of each, in turn.

    Returns:
        Shape (D, D).

    Raises:
        ConfigError: One value of the attribute alone, embeddings that aren't finite, or λ below 0.
    """
    found = np.asarray(embeddings, dtype=np.float32)
    names, codes = np.unique(np.asarray(attributes), return_inverse=True)
    if len(names) < 2 or not np.isfinite(found).all() or not strength >= 0:
        raise ConfigError(
            "a residual needs finite embeddings of at least two values, and λ of 0 or more"
        )
    z, labels = torch.from_numpy(found), torch.from_numpy(codes)
    dim, count = z.shape[1], len(names)
    moved = torch.zeros(dim, dim, requires_grad=True)
    reader = (0.01 * torch.randn(dim, count, generator=generator)).requires_grad_(True)
    mover = torch.optim.Adam([moved], lr=_RATE)
    learner = torch.optim.Adam([reader], lr=10 * _RATE)
    for _ in range(steps):
        with torch.no_grad():
            now = F.normalize(z + z @ moved.T, dim=1)
        learner.zero_grad()
        F.cross_entropy(_SHARPNESS * now @ reader, labels).backward()
        learner.step()
        mover.zero_grad()
        change = z @ moved.T
        logits = _SHARPNESS * F.normalize(z + change, dim=1) @ reader
        told = -F.log_softmax(logits, dim=1).mean() - float(np.log(count))  # KL(uniform ‖ C)
        ((change**2).sum(dim=1).mean() + strength * told).backward()
        mover.step()
    return np.eye(dim) + moved.detach().double().numpy()
