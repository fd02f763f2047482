"""The loss of models that answer, for example-level DP: a triple's own answer, and nothing else's.

No gradient of a single example is ever formed: the clipped sum comes layer by layer (see
`fedvlm.privacy._layerwise`), which needs row i of a layer's input to belong to triple i.
"""

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional as F

from fedvlm.models.generative import IGNORED, AnswerBatch, GenerativeVLM
from fedvlm.privacy.losses import Batch, PrivateLoss
from fedvlm.training.answers import EncodedAnswers


class AnswerLoss(PrivateLoss):
    """An answer's mean negative log-likelihood a token. Sensitivity: one clip norm.

    A unit is a triple's row number: pixels of several images may be one tensor without a row an
    image, so that inputs are made when they are needed. Batches are padded to the longest one so
    far: what stands in the padding changes no answer, and shapes stay alike.

    Args:
        encoded: The triples.
    """

    rowwise = True

    def __init__(self, encoded: EncodedAnswers) -> None:
        self._encoded = encoded
        self._longest = 0

    def __call__(self, vlm: GenerativeVLM, batch: Batch) -> Tensor:  # pyright: ignore
        """Return the losses of a batch of `rows`, shape (B,)."""
        made = self._encoded.batch(batch["rows"].numpy())
        self._longest = max(self._longest, made.labels.shape[1])
        missing = self._longest - made.labels.shape[1]
        return vlm.answer_losses(_widened(made, missing, self._encoded.processor.padding))


def _widened(batch: AnswerBatch, places: int, padding: int) -> AnswerBatch:
    """Pad a batch further on the right."""
    if not places:
        return batch
    shape, inputs = batch.labels.shape, dict(batch.inputs)
    fill = {"input_ids": padding}
    for key in ("input_ids", "attention_mask", "token_type_ids", "mm_token_type_ids"):
        if key in inputs and inputs[key].shape == shape:
            inputs[key] = F.pad(inputs[key], (0, places), value=fill.get(key, 0))
    return AnswerBatch(inputs, F.pad(batch.labels, (0, places), value=IGNORED))


def answer_units(rows: NDArray[np.int64]) -> dict[str, Tensor]:
    """Return the units of triples: their row numbers, shape (B,)."""
    return {"rows": torch.from_numpy(np.asarray(rows, dtype=np.int64))}
