"""The local training loop of a model that answers."""

import numpy as np
import torch
from numpy.typing import NDArray

from fedvlm.adapters.flat import FlatView
from fedvlm.errors import ConfigError
from fedvlm.models.generative import GenerativeVLM
from fedvlm.training.answers import EncodedAnswers
from fedvlm.training.settings import LocalSettings


def train_answers(
    vlm: GenerativeVLM,
    view: FlatView,
    encoded: EncodedAnswers,
    rows: NDArray[np.int64],
    settings: LocalSettings,
    rng: np.random.Generator,
) -> float:
    """Train a model's adapter in place on some triples.

    The loss of a batch is the mean over its triples of an answer's mean negative log-likelihood a
    token, so that a long answer counts as much as a short one: the same loss example by example
    that differential privacy clips.

    Args:
        vlm: A model with an adapter.
        view: Its trainable parameters.
        encoded: The data set's inputs.
        rows: Shape (n,), the triples to train on, n >= 1.
        settings: Epochs, batch size, rate.
        rng: Shuffles.

    Returns:
        Mean loss over the last epoch, in nats a token.

    Raises:
        ConfigError: No triple, or one that is longer than the model's context.
    """
    if not len(rows):
        raise ConfigError("a client needs at least 1 triple to train on, got none")
    parameters = view.parameters
    anchor = [p.detach().clone() for p in parameters] if settings.proximal_mu else []
    optimizer = torch.optim.AdamW(
        parameters, lr=settings.learning_rate, weight_decay=0.0, foreach=True
    )
    vlm.train()
    losses: list[float] = []
    for _ in range(settings.epochs):
        losses = []
        count = max(1, round(len(rows) / settings.batch_size))
        for batch in np.array_split(rng.permutation(rows), count):
            loss = vlm.answer_losses(encoded.batch(batch)).mean()
            losses.append(loss.item())
            if settings.proximal_mu:
                drift = sum(((p - a) ** 2).sum() for p, a in zip(parameters, anchor, strict=True))
                loss = loss + settings.proximal_mu / 2 * drift
            optimizer.zero_grad(set_to_none=True)
            loss.backward()
            optimizer.step()
    vlm.eval()
    return float(np.mean(losses))
