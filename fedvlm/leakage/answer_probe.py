"""Measurements on a model that answers: what each token of an answer was to it, and gradients."""

import hashlib
import math
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import torch
from numpy.typing import NDArray

from fedvlm.errors import ConfigError, IntegrityError
from fedvlm.federation.answering_task import AnsweringTask
from fedvlm.leakage.alignment import Alignments, gradient_alignment
from fedvlm.leakage.text_scores import renyi_entropy
from fedvlm.models.generative import IGNORED, GenerativeVLM
from fedvlm.training.answers import EncodedAnswers

Array = NDArray[np.float64]
Indices = NDArray[np.int64]

ORDERS = (0.5, 1.0, 2.0, math.inf)
"""Orders of the Rényi entropies that MaxRényi-K% is taken at."""
_BATCH = 32


@dataclass(frozen=True, eq=False)
class TokenStatistics:
    """What a model thought at each token of some answers, their ends included.

    Attributes:
        log_probabilities: Shape (N, K), nats; NaN behind an answer's end.
        means: Shape (N, K): E[log p] over the vocabulary.
        deviations: Shape (N, K): the standard deviation of log p under p.
        entropies: Order → shape (N, K): Rényi entropies, nats.
    """

    log_probabilities: Array
    means: Array
    deviations: Array
    entropies: dict[float, Array]


@torch.inference_mode()
def token_statistics(vlm: GenerativeVLM, encoded: EncodedAnswers, rows: Indices) -> TokenStatistics:
    """Measure a model on the answers of rows of shape (N,).

    Raises:
        IntegrityError: A probability isn't finite.
    """
    lengths = [len(encoded.answer_ids[int(row)]) for row in rows]
    found = {
        name: np.full((len(rows), max(lengths, default=1)), np.nan)
        for name in ("log", "mean", "std", *ORDERS)
    }
    vlm.eval()
    for start in range(0, len(rows), _BATCH):
        batch = encoded.batch(rows[start : start + _BATCH])
        losses, logits = vlm.token_losses(batch)
        answered = batch.labels[:, batch.labels.shape[1] - losses.shape[1] :] != IGNORED
        for place in range(len(losses)):
            at = answered[place]
            whole = torch.log_softmax(logits[place, at].double(), dim=-1)
            p = whole.exp()
            known = torch.where(p > 0, whole, torch.zeros_like(whole))
            mean = (p * known).sum(-1)
            spread = ((p * known.square()).sum(-1) - mean.square()).clamp(min=0).sqrt()
            row, count = start + place, int(at.sum())
            found["log"][row, :count] = -losses[place, at].double().numpy()
            found["mean"][row, :count] = mean.numpy()
            found["std"][row, :count] = spread.numpy()
            for order in ORDERS:
                found[order][row, :count] = renyi_entropy(whole.numpy(), order)
    if (
        any(np.isinf(values).any() for values in found.values())
        or np.isnan(found["log"][:, :1]).any()
    ):
        raise IntegrityError("the adapter gives probabilities that are not finite")
    entropies = {order: found[order] for order in ORDERS}
    return TokenStatistics(found["log"], found["mean"], found["std"], entropies)


class AnswerProbe:
    """Measures a task's model under adapters of an attacker's choice.

    Args:
        task: The model, the data, and who holds what.

    Attributes:
        population: Auxiliary triples that no client holds, what an attacker compares scores with.

    Raises:
        ConfigError: The data leaves fewer than two auxiliary triples.
    """

    def __init__(self, task: AnsweringTask) -> None:
        self.task = task
        splits = task.splits
        auxiliary = splits.retention if len(splits.retention) > 1 else splits.validation
        if len(auxiliary) < 2:
            raise ConfigError(f"an audit needs at least 2 auxiliary triples, got {len(auxiliary)}")
        order = task.seed.numpy("audit", "negatives").permutation(auxiliary)
        self.population = np.sort(order[:512])
        self._cached = lru_cache(maxsize=16)(self._measure)
        self._alignments = Alignments()

    @property
    def negatives_hash(self) -> str:
        """SHA-256 of the auxiliary triples' rows, in hex."""
        return hashlib.sha256(self.population.astype("<i8").tobytes()).hexdigest()

    def statistics(self, adapter: NDArray[np.float32], rows: Indices) -> TokenStatistics:
        """Return what the model under an adapter, shape (P,), thought of answers (N,)."""
        return self._cached(
            np.asarray(adapter, dtype=np.float32).tobytes(), rows.astype(np.int64).tobytes()
        )

    def _measure(self, adapter: bytes, rows: bytes) -> TokenStatistics:
        self.task.view.write(np.frombuffer(adapter, dtype=np.float32).copy())
        indices = np.frombuffer(rows, dtype=np.int64)
        return token_statistics(self.task.model.vlm, self.task.encoded, indices)

    def confidence(self, adapter: NDArray[np.float32], rows: Indices) -> Array:
        """Return the mean log-probability of answers' tokens under an adapter: shape (N,)."""
        return np.nanmean(self.statistics(adapter, rows).log_probabilities, axis=1)

    def alignment(
        self, adapter: NDArray[np.float32], indices: Indices, updates: NDArray[np.float32]
    ) -> tuple[Array, Array]:
        """Return how an answer's gradient lies with updates.

        Args:
            adapter: Shape (P,), where the gradient is taken.
            indices: Shape (N,).
            updates: Shape (K, P), new adapter less old.

        Returns:
            Inner products of the gradient with −update, shape (K, N), and gradient norms (N,).
        """
        return self._alignments.of(adapter, indices, updates, self._align)

    def _align(
        self, adapter: NDArray[np.float32], indices: Indices, updates: NDArray[np.float32]
    ) -> tuple[Array, Array]:
        task, vlm = self.task, self.task.model.vlm
        task.view.write(np.array(adapter))
        return gradient_alignment(
            vlm,
            task.view,
            indices,
            updates,
            lambda batch: vlm.answer_losses(task.encoded.batch(batch)),
        )
