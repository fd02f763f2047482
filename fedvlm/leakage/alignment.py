"""How examples' gradients lie with the updates that an attacker saw."""

import hashlib
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from fedvlm.adapters import FlatView
from fedvlm.errors import IntegrityError
from fedvlm.leakage.gradients import per_example_gradients

Array = NDArray[np.float64]
Indices = NDArray[np.int64]
Adapter = NDArray[np.float32]
Found = tuple[Array, Array]

_BATCH = 32


class Alignments:
    """What was computed before: several attacks, and vantages, ask for the same."""

    def __init__(self) -> None:
        self._known: dict[bytes, Found] = {}

    def of(
        self,
        adapter: Adapter,
        indices: Indices,
        updates: Adapter,
        compute: Callable[[Adapter, Indices, Adapter], Found],
    ) -> Found:
        """Return what `compute` gives for these arrays; it is called once for each set of them."""
        key = hashlib.sha256(b"".join(a.tobytes() for a in (adapter, indices, updates))).digest()
        if key not in self._known:
            self._known[key] = compute(adapter, indices, updates)
        return self._known[key]


def gradient_alignment(
    vlm: Any,
    view: FlatView,
    indices: Indices,
    updates: Adapter,
    losses: Callable[[Indices], Tensor],
) -> Found:
    """Return inner products of examples' gradients with −update, and the gradients' norms.

    Args:
        vlm: The model, with the adapter at which gradients are taken.
        view: The adapter's parameters.
        indices: Shape (N,).
        updates: Shape (K, P), new adapter less old.
        losses: Gives the losses (B,) of some of the examples, with gradients.

    Returns:
        Shape (K, N) and shape (N,).

    Raises:
        IntegrityError: A gradient is not finite.
    """
    directions = -torch.from_numpy(np.array(updates))
    dots, norms = [], []
    vlm.eval()
    for start in range(0, len(indices), _BATCH):
        batch = indices[start : start + _BATCH]
        gradients = per_example_gradients(vlm, view, lambda batch=batch: losses(batch))
        if not torch.isfinite(gradients).all():
            raise IntegrityError("the adapter gives gradients that are not finite")
        dots.append((directions @ gradients.T).numpy())
        norms.append(gradients.norm(dim=1).numpy())
    return (
        np.concatenate(dots, axis=1).astype(np.float64),
        np.concatenate(norms).astype(np.float64),
    )
