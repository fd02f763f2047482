"""Losses over a batch of image and caption embeddings."""

from torch import Tensor
from torch.nn import functional as F


def contrastive_loss(images: Tensor, texts: Tensor, concepts: Tensor, scale: Tensor) -> Tensor:
    """Compute the symmetric InfoNCE loss, its targets shared among pairs of one concept.

    With all concepts distinct this is CLIP's loss (Radford et al. 2021, figure 3). Two pairs of
    the same concept are both right answers, so the target spreads over them evenly.

    Args:
        images: Shape (B, D), unit rows.
        texts: Shape (B, D), unit rows.
        concepts: Shape (B,), int64.
        scale: Inverse temperature, a scalar.

    Returns:
        A scalar: mean of the two directions, in nats.

    Example:
        >>> import torch
        >>> eye = torch.eye(2)
        >>> loss = contrastive_loss(eye, eye, torch.arange(2), torch.tensor(1.0))
        >>> round(loss.item(), 4)
        0.3133
    """
    logits = scale * images @ texts.T
    same = (concepts[:, None] == concepts[None, :]).to(logits.dtype)
    target = same / same.sum(dim=1, keepdim=True)
    rows = -(target * F.log_softmax(logits, dim=1)).sum(dim=1).mean()
    columns = -(target * F.log_softmax(logits, dim=0)).sum(dim=0).mean()
    return (rows + columns) / 2


def sigmoid_loss(
    images: Tensor, texts: Tensor, concepts: Tensor, scale: Tensor, bias: Tensor
) -> Tensor:
    """Compute SigLIP's loss (Zhai et al. 2023, equation 1), each pair of one concept a right one.

    Args:
        images: Shape (B, D), unit rows.
        texts: Shape (B, D), unit rows.
        concepts: Shape (B,), int64; with all distinct this is SigLIP's own loss.
        scale: Inverse temperature, a scalar.
        bias: What is added to the scaled cosines, a scalar.

    Returns:
        A scalar: the sum over all pairs of an image and a caption, by image, in nats.

    Example:
        >>> import torch
        >>> eye = torch.eye(2)
        >>> loss = sigmoid_loss(eye, eye, torch.arange(2), torch.tensor(1.0), torch.tensor(0.0))
        >>> round(loss.item(), 4)
        1.0064
    """
    logits = scale * images @ texts.T + bias
    signs = (concepts[:, None] == concepts[None, :]).to(logits.dtype) * 2 - 1
    return -F.logsigmoid(signs * logits).sum() / len(images)
