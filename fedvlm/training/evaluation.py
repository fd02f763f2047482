"""Retrieval and zero-shot accuracy of a model on parts of a data set."""

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.special import gammaln

from fedvlm.models.vlm import VLM
from fedvlm.training.pairs import EncodedPairs

_GALLERY = 100


@dataclass(frozen=True)
class Retrieval:
    """How well images find their captions, as fractions in [0, 1].

    Attributes:
        recall_at_1: The right caption is first among all captions of the part.
        recall_at_5: It is among the first five.
        recall_at_10: It is among the first ten.
        one_of_100: It is first among itself and 99 others drawn at random, in expectation over
            the draw (exact, not sampled); among all where there are fewer than 100.
    """

    recall_at_1: float
    recall_at_5: float
    recall_at_10: float
    one_of_100: float


def _chance_of_first(better: NDArray[np.int64], others: int) -> NDArray[np.float64]:
    """Return the chance that none of `better` captions is among 99 drawn from `others`."""
    drawn = min(_GALLERY - 1, others)
    worse = others - better
    # Hypergeometric: C(worse, drawn) / C(others, drawn), zero where there are too few worse ones.
    enough = worse >= drawn
    worse = np.where(enough, worse, drawn)
    log = (
        gammaln(worse + 1)
        - gammaln(worse - drawn + 1)
        - gammaln(others + 1)
        + gammaln(others - drawn + 1)
    )
    return np.where(enough, np.exp(log), 0.0)


def retrieval(scores: NDArray[np.float32], right: NDArray[np.int64]) -> Retrieval:
    """Score image-to-caption retrieval.

    Args:
        scores: Shape (N, C): similarity of N images with C captions.
        right: Shape (N,): the column of each image's own caption.

    Returns:
        Recalls. A tie counts against the model.
    """
    own = scores[np.arange(len(scores)), right]
    better = (scores >= own[:, None]).sum(axis=1) - 1
    return Retrieval(
        recall_at_1=float((better < 1).mean()),
        recall_at_5=float((better < 5).mean()),
        recall_at_10=float((better < 10).mean()),
        one_of_100=float(_chance_of_first(better, scores.shape[1] - 1).mean()),
    )


def _embed_images(vlm: VLM, pairs: EncodedPairs, indices: NDArray[np.int64]) -> torch.Tensor:
    parts = [
        vlm.embed(pairs.images(indices[start : start + 256]), "image")
        for start in range(0, len(indices), 256)
    ]
    return torch.cat(parts)


class Evaluator:
    """Evaluates a model on fixed parts of a data set.

    Args:
        pairs: The data set's inputs.
        parts: Name → indices, for example test, ood, withheld; empty parts are left out.
        topic_captions: Rows of `pairs.text` and their topics, whose mean embedding stands for a
            topic in zero-shot classification (a prompt ensemble of public captions); None where
            there is only one topic.
    """

    def __init__(
        self,
        pairs: EncodedPairs,
        parts: dict[str, NDArray[np.int64]],
        topic_captions: tuple[NDArray[np.int64], NDArray[np.int64]] | None,
    ) -> None:
        self._pairs = pairs
        self._parts = {name: part for name, part in parts.items() if len(part)}
        self._topic_captions = topic_captions
        used = np.concatenate([pairs.caption_of[part] for part in self._parts.values()])
        if topic_captions is not None:
            used = np.concatenate([used, topic_captions[0]])
        self._rows = np.unique(used)

    def __call__(self, vlm: VLM) -> dict[str, float]:
        """Return metrics by name, all fractions in [0, 1].

        For each part `P`: `P_recall_at_1`, `P_recall_at_5`, `P_recall_at_10`, `P_one_of_100`,
        `P_topic_accuracy`. For the part `test` also `domain_D` (one of 100 by domain), and
        `worst_domain`.
        """
        pairs = self._pairs
        texts = vlm.embed(pairs.captions(self._rows), "text")
        metrics: dict[str, float] = {}
        for name, part in self._parts.items():
            images = _embed_images(vlm, pairs, part)
            gallery = np.unique(pairs.caption_of[part])
            columns = texts[torch.from_numpy(np.searchsorted(self._rows, gallery))]
            scores = (images @ columns.T).numpy()
            right = np.searchsorted(gallery, pairs.caption_of[part])
            for key, value in vars(retrieval(scores, right)).items():
                metrics[f"{name}_{key}"] = value
            if self._topic_captions is not None:
                metrics[f"{name}_topic_accuracy"] = self._topic_accuracy(texts, images, part)
            if name == "test":
                metrics |= self._by_domain(scores, right, part)
        return metrics

    def _topic_accuracy(
        self, texts: torch.Tensor, images: torch.Tensor, part: NDArray[np.int64]
    ) -> float:
        rows, topics = self._topic_captions  # pyright: ignore[reportGeneralTypeIssues]
        embedded = texts[torch.from_numpy(np.searchsorted(self._rows, rows))]
        names = np.unique(topics)
        means = torch.stack([embedded[torch.from_numpy(topics == t)].mean(dim=0) for t in names])
        means = torch.nn.functional.normalize(means, dim=-1)
        guess = names[(images @ means.T).argmax(dim=1).numpy()]
        return float((guess == self._pairs.topics[part]).mean())

    def _by_domain(
        self, scores: NDArray[np.float32], right: NDArray[np.int64], part: NDArray[np.int64]
    ) -> dict[str, float]:
        domains = self._pairs.domains[part]
        found = {
            f"domain_{self._pairs.domain_names[number]}": retrieval(
                scores[domains == number], right[domains == number]
            ).one_of_100
            for number in np.unique(domains)
        }
        return found | {"worst_domain": min(found.values())}
