"""The gradient of a contrastive loss over a batch whose activations wouldn't fit in memory.

Gao et al. 2021 ("Scaling deep contrastive learning batch size under memory limited setup"): the
loss depends on the towers through their embeddings alone. They are computed piece by piece without
a graph; the loss is differentiated by them; then each piece is computed again with its graph, and
the embeddings' gradients are sent through it. All negatives of the batch count, as without pieces.
"""

from collections.abc import Callable

import torch
from torch import Tensor

Encode = Callable[[int, int], Tensor]
"""Embeds the rows from the first number to the second (exclusive)."""


def _pieces(rows: int, size: int) -> list[tuple[int, int]]:
    return [(start, min(start + size, rows)) for start in range(0, rows, size)]


def backward_in_pieces(
    encoders: tuple[tuple[Encode, int], ...],
    loss_of: Callable[..., Tensor],
    size: int,
) -> float:
    """Add a loss' gradients to the parameters' `.grad`, holding one piece's activations at a time.

    Args:
        encoders: For each tower, what embeds a range of its rows, and how many rows it has. Called
            twice for a range, it must return the same: no dropout.
        loss_of: The loss as a function of all embeddings of each tower, in their order.
        size: Rows of a piece, at least 1.

    Returns:
        The loss.

    Guarantees:
        The gradients are those of `loss_of` over the whole batch at once, but for the rounding of
        sums in another order.
    """
    found: list[Tensor] = []
    trained = []
    for encode, rows in encoders:
        pieces = _pieces(rows, size)
        if len(pieces) == 1:  # its graph is no larger than a piece's: keep it
            whole = encode(0, rows)
            found.append(whole)
            trained.append(whole.requires_grad)
            continue
        with torch.no_grad():
            parts = [encode(*piece) for piece in pieces]
        found.append(torch.cat(parts))
        trained.append(True)
    leaves = [
        each.detach().requires_grad_(is_trained)
        for each, is_trained in zip(found, trained, strict=True)
    ]
    loss = loss_of(*leaves)
    loss.backward()
    for (encode, rows), whole, leaf in zip(encoders, found, leaves, strict=True):
        if leaf.grad is None:
            continue
        if whole.requires_grad:
            whole.backward(leaf.grad)
            continue
        for start, end in _pieces(rows, size):
            part = encode(start, end)
            if not part.requires_grad:  # a frozen tower: nothing of it is trained
                break
            part.backward(leaf.grad[start:end])
    return float(loss.detach())
