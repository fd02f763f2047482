"""Retrieval and zero-shot accuracy of a model on parts of a data set."""

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.special import betaincinv, gammaln

from fedvlm.models.vlm import VLM
from fedvlm.training.pairs import EncodedPairs

_GALLERY = 100
_COVERAGE = 0.95
_HELD_SCORES = 4_000_000  # similarities held at a time: 16 MB, and as many flags


@dataclass(frozen=True)
class Retrieval:
    """How well images find their captions, as fractions in [0, 1] but for `candidates`.

    Attributes:
        recall_at_1: The right caption is first among all captions of the part.
        recall_at_5: It is among the first five.
        recall_at_10: It is among the first ten.
        one_of_100: It is first among itself and 99 others drawn at random, in expectation over
            the draw (exact, not sampled); among all where there are fewer than 100.
        candidates: Among how many that really is: 100, or all captions where they are fewer.
        one_of_100_low: Lower end of a 95 % interval over images; see `mean_interval`.
        one_of_100_high: Its upper end.
    """

    recall_at_1: float
    recall_at_5: float
    recall_at_10: float
    one_of_100: float
    candidates: int
    one_of_100_low: float
    one_of_100_high: float


def chance_of_first(better: NDArray[np.int64], others: NDArray[np.int64]) -> NDArray[np.float64]:
    """Return the chance that none of `better` captions is among 99 drawn from `others`."""
    drawn = np.minimum(_GALLERY - 1, others)
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


def first_among(
    images: NDArray[np.float64], texts: NDArray[np.float64], right: NDArray[np.int64]
) -> NDArray[np.float64]:
    """Return the chance that each image's caption is first among itself and 99 others, (N,).

    Exact over the draw of the others. Ties, and what is not a number, count against the model.
    """
    scores = images @ texts.T
    rows = np.arange(len(scores))
    unbeaten = ~(scores < scores[rows, right][:, None])
    unbeaten[rows, right] = False
    others = np.full(len(scores), scores.shape[1] - 1)
    return chance_of_first(unbeaten.sum(axis=1), others)


def mean_interval(values: NDArray[np.float64], clusters: NDArray[np.int64]) -> tuple[float, float]:
    """Return a 95 % interval for the mean of values in [0, 1].

    Clopper and Pearson's interval, as if the mean were a rate of right and wrong answers: no
    distribution on [0, 1] of that mean spreads more than that one. Values of one cluster may move
    together: n is then (Σ m)² / Σ m² over the clusters' sizes m, which is their number where
    their sizes are equal (Kish 1965, section 5.4).

    Args:
        values: Shape (N,), in [0, 1], N at least 1.
        clusters: Shape (N,): values of one image share a number.
    """
    sizes = np.unique(clusters, return_counts=True)[1].astype(np.float64)
    return rate_interval(float(values.mean()), float(sizes.sum() ** 2 / (sizes**2).sum()))


def rate_interval(mean: float, n: float) -> tuple[float, float]:
    """Return Clopper and Pearson's 95 % interval for a mean of `n` independent values in [0, 1].

    Args:
        mean: The mean, clipped to [0, 1].
        n: How many they count as, above 0; needn't be whole.
    """
    right = float(np.clip(mean, 0.0, 1.0)) * n
    tail = (1 - _COVERAGE) / 2
    low = betaincinv(right, n - right + 1, tail) if right > 0 else 0.0
    high = betaincinv(right + 1, n - right, 1 - tail) if right < n else 1.0
    return float(low), float(high)


def _better(
    scores: NDArray[np.float32], right: NDArray[np.int64], ignored: NDArray[np.bool_] | None
) -> NDArray[np.int64]:
    """Count the columns that a row's own one doesn't beat.

    Asked as "not below", so that whatever isn't a number, there or here, counts against the model.
    """
    rows = np.arange(len(scores))
    unbeaten = ~(scores < scores[rows, right][:, None])
    unbeaten[rows, right] = False
    if ignored is not None:
        unbeaten &= ~ignored
    return unbeaten.sum(axis=1)


def retrieval(
    scores: NDArray[np.float32],
    right: NDArray[np.int64],
    also_right: NDArray[np.bool_] | None = None,
    images: NDArray[np.int64] | None = None,
) -> Retrieval:
    """Score image-to-caption retrieval.

    Args:
        scores: Shape (N, C): similarity of N images with C captions.
        right: Shape (N,): the column of each image's own caption.
        also_right: Shape (N, C): captions that are right for an image too, and so neither beat
            its own one nor are drawn beside it; None where there are none.
        images: Shape (N,): rows that show the same image share a number; None where all differ.

    Returns:
        Recalls. A tie counts against the model, and so does a score that is not a number: none
        rises when a score is replaced by NaN.
    """
    better, others = _counts(scores, right, also_right)
    return retrieval_of_counts(better, others, images)


def _counts(
    scores: NDArray[np.float32], right: NDArray[np.int64], also_right: NDArray[np.bool_] | None
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Count for each row the columns that its own doesn't beat, and all that compete with it."""
    ignored = None
    if also_right is not None:
        ignored = also_right.copy()
        ignored[np.arange(len(scores)), right] = False
    others = np.full(len(scores), scores.shape[1] - 1)
    if ignored is not None:
        others -= ignored.sum(axis=1)
    return _better(scores, right, ignored), others


def retrieval_of_counts(
    better: NDArray[np.int64], others: NDArray[np.int64], images: NDArray[np.int64] | None = None
) -> Retrieval:
    """Score image-to-caption retrieval from what was counted for each image.

    Args:
        better: Shape (N,): captions that its own one doesn't beat.
        others: Shape (N,): captions that compete with its own one.
        images: As for `retrieval`.
    """
    chance = chance_of_first(better, others)
    low, high = mean_interval(chance, np.arange(len(better)) if images is None else images)
    return Retrieval(
        recall_at_1=float((better < 1).mean()),
        recall_at_5=float((better < 5).mean()),
        recall_at_10=float((better < 10).mean()),
        one_of_100=float(chance.mean()),
        candidates=min(_GALLERY, int(others.min()) + 1),
        one_of_100_low=low,
        one_of_100_high=high,
    )


def accuracy(scores: NDArray[np.float32], right: NDArray[np.int64]) -> float:
    """Return the share of rows whose right column is above all others.

    Args:
        scores: Shape (N, C).
        right: Shape (N,): a row's right column; -1 where it isn't among them, which is wrong.

    Returns:
        A fraction. A tie, and a score that is not a number, count against the model.
    """
    known = right >= 0
    return float((known & (_better(scores, np.where(known, right, 0), None) == 0)).mean())


@dataclass(frozen=True)
class AlsoRight:
    """The captions that another pair of the same label has, for each pair of a part.

    Attributes:
        captions: C, the gallery's captions.
        kinds: For each kind of label: a row's label, shape (N,), and the columns by label; a label
            of a single caption has none.
    """

    captions: int
    kinds: tuple[tuple[NDArray[np.int64], dict[int, NDArray[np.int64]]], ...]

    def mask(self, start: int, end: int) -> NDArray[np.bool_] | None:
        """Return the captions of rows `start` to `end`: shape (end - start, C); None for none."""
        if not any(columns for _, columns in self.kinds):
            return None
        found = np.zeros((end - start, self.captions), dtype=np.bool_)
        for labels, columns in self.kinds:
            for row, label in enumerate(labels[start:end].tolist()):
                if label in columns:
                    found[row, columns[label]] = True
        return found


def _also_right(
    gallery: NDArray[np.int64], caption_of: NDArray[np.int64], *labels: NDArray[np.int64]
) -> AlsoRight:
    """Find the captions that share a label; memory grows with the pairs, not with its square."""
    columns = np.searchsorted(gallery, caption_of)
    kinds = []
    for label in labels:
        order = np.lexsort((columns, label))
        several: dict[int, NDArray[np.int64]] = {}
        for rows in np.split(order, np.flatnonzero(np.diff(label[order])) + 1):
            found = np.unique(columns[rows])
            if len(found) > 1:
                several[int(label[rows[0]])] = found
        kinds.append((label, several))
    return AlsoRight(len(gallery), tuple(kinds))


def counted(
    images: torch.Tensor, captions: torch.Tensor, right: NDArray[np.int64], also: AlsoRight
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Count for each image the captions that its own doesn't beat, and all that compete with it.

    Args:
        images: Shape (N, D), unit rows.
        captions: Shape (C, D), unit rows.
        right: Shape (N,): the column of each image's own caption.
        also: Captions that are right too.

    Returns:
        Two arrays of shape (N,). Similarities are held for a few images at a time: never N x C.
    """
    step = max(1, _HELD_SCORES // max(1, len(captions)))
    better, others = np.empty(len(images), np.int64), np.empty(len(images), np.int64)
    for start in range(0, len(images), step):
        end = min(start + step, len(images))
        scores = (images[start:end] @ captions.T).numpy()
        better[start:end], others[start:end] = _counts(
            scores, right[start:end], also.mask(start, end)
        )
    return better, others


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
        """Return metrics by name, fractions in [0, 1] but for `P_candidates`.

        For each part `P`: `P_recall_at_1`, `P_recall_at_5`, `P_recall_at_10`, `P_one_of_100`,
        `P_topic_accuracy`; `P_candidates`, among how many captions "one of 100" really is; and
        `P_one_of_100_low`, `P_one_of_100_high`, a 95 % interval over the part's images. For the
        part `test` also `domain_D` (one of 100 by domain), and `worst_domain`.

        Other captions of the same image or concept are right too, and not among the candidates.
        """
        texts = vlm.embed(self._pairs.captions(self._rows), "text")
        metrics: dict[str, float] = {}
        for name, part in self._parts.items():
            images = _embed_images(vlm, self._pairs, part)
            better, others = self._counts(texts, images, part)
            found = retrieval_of_counts(better, others, self._pairs.groups[part])
            for key, value in vars(found).items():
                metrics[f"{name}_{key}"] = value
            if self._topic_captions is not None:
                metrics[f"{name}_topic_accuracy"] = self._topic_accuracy(texts, images, part)
            if name == "test":
                metrics |= self._by_domain(better, others, part)
        return metrics

    def chances(self, vlm: VLM) -> dict[str, NDArray[np.float64]]:
        """Return one of 100 image by image, so that two models can be paired.

        Returns:
            Part → shape (N,), in the order of the part's indices: the chance that the image's own
            caption is first among itself and 99 others. Its mean is the part's `one_of_100`.
        """
        texts = vlm.embed(self._pairs.captions(self._rows), "text")
        found = {}
        for name, part in self._parts.items():
            images = _embed_images(vlm, self._pairs, part)
            found[name] = chance_of_first(*self._counts(texts, images, part))
        return found

    def _counts(
        self, texts: torch.Tensor, images: torch.Tensor, part: NDArray[np.int64]
    ) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        pairs = self._pairs
        gallery = np.unique(pairs.caption_of[part])
        columns = texts[torch.from_numpy(np.searchsorted(self._rows, gallery))]
        right = np.searchsorted(gallery, pairs.caption_of[part])
        also = _also_right(
            gallery, pairs.caption_of[part], pairs.concepts[part], pairs.groups[part]
        )
        return counted(images, columns, right, also)

    def _topic_accuracy(
        self, texts: torch.Tensor, images: torch.Tensor, part: NDArray[np.int64]
    ) -> float:
        rows, topics = self._topic_captions  # pyright: ignore[reportGeneralTypeIssues]
        embedded = texts[torch.from_numpy(np.searchsorted(self._rows, rows))]
        names = np.unique(topics)
        means = torch.stack([embedded[torch.from_numpy(topics == t)].mean(dim=0) for t in names])
        means = torch.nn.functional.normalize(means, dim=-1)
        wanted = self._pairs.topics[part]
        column = np.minimum(np.searchsorted(names, wanted), len(names) - 1)
        right = np.where(names[column] == wanted, column, -1)
        return accuracy((images @ means.T).numpy(), right)

    def _by_domain(
        self, better: NDArray[np.int64], others: NDArray[np.int64], part: NDArray[np.int64]
    ) -> dict[str, float]:
        domains = self._pairs.domains[part]
        found = {}
        for number in np.unique(domains):
            rows = domains == number
            score = retrieval_of_counts(better[rows], others[rows])
            found[f"domain_{self._pairs.domain_names[number]}"] = score.one_of_100
        return found | {"worst_domain": min(found.values())}
