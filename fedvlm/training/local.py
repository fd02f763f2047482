"""The local training loop: what one client does between two messages."""

from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np
import torch
from numpy.typing import NDArray

from fedvlm.adapters.flat import FlatView
from fedvlm.errors import ConfigError
from fedvlm.models.vlm import VLM
from fedvlm.training.contrastive import checkpointed, loss_gradients
from fedvlm.training.lean import lean
from fedvlm.training.memory import explained
from fedvlm.training.pairs import EncodedPairs
from fedvlm.training.settings import LocalSettings

if TYPE_CHECKING:
    from fedvlm.mitigation.repairs import Repair


def batches_of(
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
        DeviceMemoryError: The device doesn't hold a step; the line says what to lower.
    """
    if len(indices) < 2:
        raise ConfigError(f"a client needs at least 2 pairs to train on, got {len(indices)}")
    if repair is not None:
        repair = repair.begun(vlm, pairs, indices)
    parameters = view.parameters
    anchor = [p.detach().clone() for p in parameters] if settings.proximal_mu else []
    optimizer = torch.optim.AdamW(
        parameters, lr=settings.learning_rate, weight_decay=0.0, foreach=True
    )
    losses: list[float] = []
    held = settings.micro_batch or settings.batch_size

    def step(batch: NDArray[np.int64]) -> None:
        optimizer.zero_grad(set_to_none=True)
        losses.append(loss_gradients(vlm, pairs, batch, settings, repair))
        for parameter, start in zip(parameters, anchor, strict=False):
            pull = settings.proximal_mu * (parameter.detach() - start)  # of mu / 2 |drift|^2
            parameter.grad = pull if parameter.grad is None else parameter.grad + pull
        optimizer.step()

    def tried(rows: int) -> None:
        """Do a step's two passes in pieces of so many rows, to see what they hold."""
        optimizer.zero_grad(set_to_none=True)
        few = indices[: min(len(indices), 2 * rows + 1)]
        loss_gradients(vlm, pairs, few, replace(settings, micro_batch=rows))

    vlm.train()
    with lean(vlm), checkpointed(vlm, settings.checkpointing), explained(vlm.device, held, tried):
        for _ in range(settings.epochs):
            losses.clear()
            for batch in batches_of(indices, settings.batch_size, rng):
                step(batch)
    vlm.eval()
    return float(np.mean(losses))
