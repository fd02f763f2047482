"""An attribute that images are to tell nothing of: a classifier that keeps up, turned round."""

import logging
from collections.abc import Mapping
from typing import TYPE_CHECKING

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional as F

from fedvlm.data.dataset import ImageTextData
from fedvlm.errors import ConfigError
from fedvlm.mitigation.repairs import Base, Extras, Repair, Rows
from fedvlm.models.vlm import VLM

if TYPE_CHECKING:
    from fedvlm.training.pairs import EncodedPairs

log = logging.getLogger("fedvlm")

_SHARPNESS = 3.0  # cosines lie close together: without it a classifier of unit rows stays vague
_RATE = 0.1
_FIRST_STEPS, _STEPS = 200, 10
# Keeps the classifier small: a free one grows without end as the attribute shrinks, so that the
# encoder overshoots, and the attribute comes back with the other sign. Found on a linear encoder.
_DECAY = 0.05


def labels_of(data: ImageTextData, column: str) -> NDArray[np.int64]:
    """Return the number of each pair's attribute, -1 where its row names none: shape (N,).

    Args:
        data: The pairs.
        column: domain, topic, or another column of their table.

    Raises:
        ConfigError: There is no such column, or it is the concept by another name: what would be
            hidden is what is to be learned.
    """
    if column in ("domain", "topic"):
        codes = data.domains if column == "domain" else data.topics
        names = data.domain_names if column == "domain" else data.topic_names
        texts = np.array([names[code] for code in codes], dtype=object)
    elif column in data.more:
        texts = np.array([text.strip() for text in data.more[column]], dtype=object)
    else:
        known = ", ".join(("domain", "topic", *data.more))
        raise ConfigError(f"{data.name} has no column {column!r} to hide; known: {known}")
    labels = np.full(len(texts), -1, dtype=np.int64)
    told = texts.astype(str) != ""
    values, codes = np.unique(texts[told].astype(str), return_inverse=True)
    labels[told] = codes
    concepts = data.concepts[told]
    together = len(set(zip(codes.tolist(), concepts.tolist(), strict=True)))
    if together == len(values) == len(np.unique(concepts)) > 1:
        raise ConfigError(
            f"the column {column!r} is the caption by another name: what would be hidden is what "
            "is to be learned"
        )
    return labels


class Adversary(Repair):
    """Hide an attribute from a linear classifier of image embeddings (after Ganin et al. 2016).

    The classifier learns by its own steps on the client's own embeddings; the term is its
    cross-entropy with the gradient turned round, so that the encoder learns to raise it, for each
    example as far as a guess: beyond that the classifier would be misled, and turn about. Each
    round begins with a classifier that was fitted to what the round found: no state outlives a
    round, and it never leaves the client.

    All examples train the classifier, so that one example's gradient depends on the others:
    refused under example-level DP. A classifier that is fitted anew afterwards may still read
    something: this is no erasure.

    Args:
        labels: Shape (N,), of every row of the data set; -1 where it is left out.
        weight: λ.
    """

    def __init__(self, labels: NDArray[np.int64], weight: float = 1.0) -> None:
        self.weight = weight
        self._labels = labels

    def begun(self, vlm: VLM, pairs: "EncodedPairs", rows: Rows) -> "Repair | None":
        """Return this round's adversary; None where these rows have one value alone."""
        known = rows[self._labels[rows] >= 0]
        if len(np.unique(self._labels[known])) < 2:
            log.warning("this client's pairs have one value of the attribute: nothing to hide")
            return None
        # `clone`: embeddings are made for inference, which autograd takes no part of.
        return _Fitted(self, vlm.embed(pairs.images(known), "image").clone(), self._labels[known])

    def labels(self, rows: Rows) -> Tensor:
        """Return labels of rows, shape (B,), int64."""
        return torch.from_numpy(self._labels[rows])

    def extras(self, vlm: VLM, rows: Rows, inputs: Mapping[str, Tensor]) -> Extras:
        """Refuse: a round begins first."""
        raise ConfigError("an adversary trains for a round that has begun; see Repair.begun")

    def penalty(
        self, vlm: VLM, images: Tensor, texts: Tensor, extras: Extras, base: Base
    ) -> Tensor:
        """Refuse: a round begins first."""
        raise ConfigError("an adversary trains for a round that has begun; see Repair.begun")


class _Fitted(Repair):
    """An adversary of one client and one round, with its classifier."""

    def __init__(self, of: Adversary, embeddings: Tensor, labels: NDArray[np.int64]) -> None:
        self._of, self.weight = of, of.weight
        values = int(labels.max()) + 1
        # What guessing costs: by how often each value stands here.
        shares = np.bincount(labels) / len(labels)
        self._guess = float(-(shares[shares > 0] * np.log(shares[shares > 0])).sum())
        self._map = torch.zeros(embeddings.shape[1], values, requires_grad=True)
        self._shift = torch.zeros(values, requires_grad=True)
        self._learner = torch.optim.Adam([self._map, self._shift], lr=_RATE, weight_decay=_DECAY)
        self._learn(embeddings, torch.from_numpy(labels), _FIRST_STEPS)

    def losses(self, embeddings: Tensor, labels: Tensor, learns: bool = False) -> Tensor:
        """Return the classifier's cross-entropies, shape (B,), with or without its gradients."""
        found = (self._map, self._shift) if learns else (self._map.detach(), self._shift.detach())
        logits = _SHARPNESS * embeddings @ found[0] + found[1]
        return F.cross_entropy(logits, labels, reduction="none")

    def _learn(self, embeddings: Tensor, labels: Tensor, steps: int) -> None:
        with torch.enable_grad():
            for _ in range(steps):
                self._learner.zero_grad()
                self.losses(embeddings, labels, learns=True).mean().backward()
                self._learner.step()

    def extras(self, vlm: VLM, rows: Rows, inputs: Mapping[str, Tensor]) -> Extras:
        """Return the examples' labels."""
        return {"labels": self._of.labels(rows)}

    def penalty(
        self, vlm: VLM, images: Tensor, texts: Tensor, extras: Extras, base: Base
    ) -> Tensor:
        """Let the classifier learn, then return minus its cross-entropy: a scalar.

        The classifier's own steps go by its own loss, so that λ makes it no slower.
        """
        told = extras["labels"] >= 0
        if not bool(told.any()):
            return images.new_zeros(())
        embeddings, labels = images[told], extras["labels"][told]
        self._learn(embeddings.detach(), labels, _STEPS)
        return -self.losses(embeddings, labels).clamp(max=self._guess).mean()
