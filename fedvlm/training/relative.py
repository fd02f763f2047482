"""How badly an adapter serves some pairs, as a share of what guessing costs."""

import math

import numpy as np
import torch
from numpy.typing import NDArray

from fedvlm.errors import ConfigError
from fedvlm.models.vlm import VLM
from fedvlm.training.local import batches_of
from fedvlm.training.losses import contrastive_loss
from fedvlm.training.pairs import EncodedPairs


def relative_loss(
    vlm: VLM,
    pairs: EncodedPairs,
    indices: NDArray[np.int64],
    batch_size: int,
    rng: np.random.Generator,
) -> float:
    """Return a model's mean contrastive loss over that of a guesser, without training.

    A batch of B pairs costs log B whoever guesses: a client with few pairs has smaller batches, and
    its loss in nats would say more of that than of the model.

    Args:
        vlm: The model as it is.
        pairs: The data set's inputs.
        indices: Shape (n,), n >= 2.
        batch_size: As in training.
        rng: Shuffles.

    Returns:
        The mean over batches of loss / log B: 1 is chance, and 0 is never wrong nor in doubt.

    Raises:
        ConfigError: Fewer than two pairs.
    """
    if len(indices) < 2:
        raise ConfigError(f"a contrastive loss needs at least 2 pairs, got {len(indices)}")
    shares = []
    for batch in batches_of(indices, batch_size, rng):
        rows, place = np.unique(pairs.caption_of[batch], return_inverse=True)
        images = vlm.embed(pairs.images(batch), "image")
        texts = vlm.embed(pairs.captions(rows), "text")[torch.from_numpy(place)]
        concepts = torch.from_numpy(pairs.concepts[batch])
        with torch.no_grad():
            loss = contrastive_loss(images, texts, concepts, vlm.logit_scale.cpu())
        shares.append(float(loss) / math.log(len(batch)))
    return float(np.mean(shares))
