"""The local training loop: what one client does between two messages."""

from functools import partial
from typing import TYPE_CHECKING

import numpy as np
import torch
from numpy.typing import NDArray

from fedvlm.adapters.flat import FlatView
from fedvlm.errors import ConfigError
from fedvlm.models.vlm import VLM
from fedvlm.training.losses import contrastive_loss
from fedvlm.training.pairs import EncodedPairs
from fedvlm.training.settings import LocalSettings

if TYPE_CHECKING:
    from fedvlm.mitigation.repairs import Repair


def _batches(
    indices: NDArray[np.int64], size: int, rng: np.random.Generator
) -> list[NDArray[np.int64]]:
    """Shuffle and cut into batches of nearly equal size, none of them of one pair alone."""
    count = max(1, round(len(indices) / size))
    return [part for part in np.array_split(rng.permutation(indices), count) if len(part) > 1]


def train_adapter(
    vlm: VLM,
    view: FlatView,
    pairs: EncodedPairs,
    indices: NDArray[np.int64],
    settings: LocalSettings,
    rng: np.random.Generator,
    repair: "Repair | None" = None,
) -> float:
    """Train a model's adapter in place on some pairs.

    Args:
        vlm: A model with an adapter.
        view: Its trainable parameters.
        pairs: The data set's inputs.
        indices: Shape (n,), the pairs to train on, n >= 2.
        settings: Epochs, batch size, rate.
        rng: Shuffles.
        repair: A term that is added to the loss, of a mitigation.

    Returns:
        Mean loss over the last epoch, in nats.

    Raises:
        ConfigError: Fewer than two pairs.
    """
    if len(indices) < 2:
        raise ConfigError(f"a client needs at least 2 pairs to train on, got {len(indices)}")
    parameters = view.parameters
    anchor = [p.detach().clone() for p in parameters] if settings.proximal_mu else []
    optimizer = torch.optim.AdamW(
        parameters, lr=settings.learning_rate, weight_decay=0.0, foreach=True
    )
    vlm.train()
    losses: list[float] = []
    for _ in range(settings.epochs):
        losses = []
        for batch in _batches(indices, settings.batch_size, rng):
            rows, position = np.unique(pairs.caption_of[batch], return_inverse=True)
            inputs = pairs.images(batch)
            images = vlm.encode_image(inputs)
            texts = vlm.encode_text(pairs.captions(rows))[torch.from_numpy(position)]
            concepts = torch.from_numpy(pairs.concepts[batch])
            contrast = partial(
                contrastive_loss, texts=texts, concepts=concepts, scale=vlm.logit_scale
            )
            loss = contrast(images)
            losses.append(loss.item())
            if repair is not None:
                extras = repair.extras(vlm, batch, inputs)
                term = repair.penalty(vlm, images, texts, extras, contrast)
                loss = loss + repair.weight * term.mean()
            if settings.proximal_mu:
                drift = sum(((p - a) ** 2).sum() for p, a in zip(parameters, anchor, strict=True))
                loss = loss + settings.proximal_mu / 2 * drift
            optimizer.zero_grad(set_to_none=True)
            loss.backward()
            optimizer.step()
    vlm.eval()
    return float(np.mean(losses))
