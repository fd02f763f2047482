"""What can be rebuilt of the pairs that a run was trained on.

Three attacks, each on members and on non-members alike: a caption ranked by its image, an image's
content guessed from its caption, and an image searched for in an update. What a model learned of
the world helps with both kinds; the difference between them is what it remembers of its pairs.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch.nn.attention import SDPBackend, sdpa_kernel

from fedvlm.leakage.canaries import exposure, recall_gap
from fedvlm.leakage.intervals import mean_difference
from fedvlm.leakage.inversion import invert_gradient, observed_gradient
from fedvlm.leakage.probe import Candidates, Probe
from fedvlm.leakage.vantage import Vantage, View, WrongVantageError

Array = NDArray[np.float64]
_TARGETS = 32  # pairs whose image is searched for, half of them members
_STEPS = 25


@dataclass(frozen=True)
class Rebuilt:
    """How much better members are rebuilt than non-members.

    Attributes:
        vantage: The weakest party that can do it.
        attack: "caption-exposure", "recall-gap", "gradient-inversion", or for a head
            "feature-of-caption": the feature of a caption's image, read out of the head.
        unit: What the figures count.
        members: Mean over members.
        non_members: Mean over non-members: the baseline.
        difference: Members less non-members; `low` and `high` are its interval.
        low: Lower end.
        high: Upper end.
        confidence: Of the interval.
        examples: Pairs that were tried.
    """

    vantage: str
    attack: str
    unit: str
    members: float
    non_members: float
    difference: float
    low: float
    high: float
    confidence: float
    examples: int


def _row(
    vantage: Vantage,
    attack: str,
    unit: str,
    values: Array,
    inside: NDArray[np.bool_],
    alpha: float,
) -> Rebuilt:
    found = mean_difference(values[inside], values[~inside], alpha)
    return Rebuilt(
        str(vantage),
        attack,
        unit,
        float(values[inside].mean()),
        float(values[~inside].mean()),
        found.value,
        found.low,
        found.high,
        found.confidence,
        len(values),
    )


def caption_exposure(view: View, probe: Probe, who: Candidates) -> Array:
    """Return how many bits closer training brought a caption to the top for its image.

    Exposure (Carlini et al. 2019) of each candidate's caption among the captions of public pairs,
    ranked by cosine with its image: under the released adapter, less under the public backbone.

    Returns:
        Bits, shape (N,).
    """
    public = np.concatenate([probe.negatives, probe.population])

    def bits(adapter: NDArray[np.float32]) -> Array:
        images, texts = probe.embeddings(adapter, who.indices)
        own = (images * texts).sum(1).numpy()
        _, others = probe.embeddings(adapter, public)
        against = (images @ others.T).numpy()
        pairs = zip(own, against, strict=True)
        return np.array([exposure(float(one), row) for one, row in pairs])

    return bits(view.api) - bits(view.initial)


def caption_recall_gap(view: View, probe: Probe, who: Candidates) -> Array | None:
    """Return how much more of an image its caption gives away after training (Déjà Vu).

    What an image shows are its topic and its domain (who drew it, which no caption says). See
    `fedvlm.leakage.canaries.recall_gap`.

    Returns:
        Shape (N,), in [−1, 1]; None where all pairs show the same.
    """
    pairs, public = probe.task.pairs, np.concatenate([probe.negatives, probe.population])

    def shown(rows: NDArray[np.int64]) -> NDArray[np.bool_]:
        kinds = [pairs.domains[rows][:, None] == np.arange(len(pairs.domain_names))]
        if len(pairs.topic_names) > 1:
            kinds.append(pairs.topics[rows][:, None] == np.arange(len(pairs.topic_names)))
        return np.concatenate(kinds, axis=1)

    if len(pairs.topic_names) < 2 and len(pairs.domain_names) < 2:
        return None

    def cosines(adapter: NDArray[np.float32]) -> Array:
        _, texts = probe.embeddings(adapter, who.indices)
        images, _ = probe.embeddings(adapter, public)
        return (texts @ images.T).numpy().astype(np.float64)

    return recall_gap(
        cosines(view.api),
        cosines(view.initial),
        shown(public),
        shown(who.indices),
        min(5, len(public)),
    )


def _search(
    probe: Probe,
    adapters: tuple[NDArray[np.float32], NDArray[np.float32]],
    row: int,
    gradient: torch.Tensor,
    start: torch.Tensor,
    true: torch.Tensor,
) -> float:
    """Look for one pair's image; returns how much closer to it the search came."""
    task, vlm = probe.task, probe.task.model.vlm
    rows = np.array([row], dtype=np.int64)
    inputs = task.pairs.images(rows)

    def embed(pixels: torch.Tensor) -> torch.Tensor:
        return vlm.encode_image({**inputs, "pixel_values": pixels})[0]

    def closeness(pixels: torch.Tensor) -> float:
        task.view.write(np.array(adapters[0]))  # judged by the untouched backbone
        with torch.no_grad():
            return float(embed(pixels) @ true)

    before = closeness(start)
    task.view.write(np.array(adapters[1]))
    _, public = probe.public_embeddings()
    words = task.pairs.captions(task.pairs.caption_of[rows])

    def loss(pixels: torch.Tensor) -> torch.Tensor:
        image, caption = embed(pixels), vlm.encode_text(words)[0]
        return torch.logsumexp(probe.scale * public @ image, 0) - probe.scale * image @ caption

    with sdpa_kernel(SDPBackend.MATH):  # the fused kernel has no second derivative
        found = invert_gradient(gradient, task.view.parameters, loss, start, steps=_STEPS)
    return closeness(found.inputs) - before


def inverted_images(view: View, probe: Probe, who: Candidates) -> Array:
    """Search a first-round update for the images of pairs whose captions the attacker guessed.

    From the mean public image, look for the input whose gradient points where the update does,
    the caption given (Geiping et al. 2020). V1 has the client's own update, V2 the sum.

    Returns:
        Shape (N,): cosine of found and true image on the untouched backbone, less that of the
        start: above 0 where the search came closer.

    Raises:
        WrongVantageError: The view holds no update.
    """
    field = "updates" if view.vantage is Vantage.V1 else "aggregates"
    first = torch.from_numpy(view.need(field, "gradient-inversion")[0])
    seen = first if view.vantage is Vantage.V1 else first[None]
    adapters = view.initial, view.need("globals_", "gradient-inversion")[0]
    public = probe.population if len(probe.population) else probe.negatives
    start = probe.task.pairs.images(public)["pixel_values"].float().mean(0, keepdim=True)
    true, _ = (part.clone() for part in probe.embeddings(view.initial, who.indices))
    found = []
    for number, (row, client) in enumerate(zip(who.indices, who.clients, strict=True)):
        target = int(client) if view.vantage is Vantage.V1 else 0
        gradient = observed_gradient(seen, target, view.vantage, 1.0)
        found.append(_search(probe, adapters, int(row), gradient, start, true[number]))
    return np.array(found)


def _views(folder: Path, vantages: set[Vantage]) -> Iterator[tuple[Vantage, View]]:
    """Look at a run from each vantage, in their order; none where nobody stood there."""
    for vantage in Vantage:
        if vantage in vantages:
            try:
                yield vantage, View.from_run(folder, vantage)
            except WrongVantageError:
                continue


def _features(
    folder: Path,
    probe: Probe,
    candidates: Candidates,
    vantages: tuple[Vantage, ...],
    share: float,
) -> list[Rebuilt]:
    """Read the features of images out of a head, from who saw one client's part, or the whole."""
    from fedvlm.leakage.head_terms import read_feature

    rows = []
    for vantage, view in _views(folder, {Vantage.V1, Vantage.V4} & set(vantages)):
        if vantage is Vantage.V1:
            parts = view.need("updates", "feature-of-caption").sum(axis=0)
            found = np.zeros(len(candidates.indices))
            for client in np.unique(candidates.clients):
                at = candidates.clients == client
                found[at] = read_feature(probe.task, parts[client], candidates.indices[at])
        else:
            whole = view.need("released", "feature-of-caption")
            found = read_feature(probe.task, whole, candidates.indices)
        inside = candidates.membership
        rows.append(_row(vantage, "feature-of-caption", "cosine", found, inside, share))
    return rows


def reconstruct(
    folder: Path,
    probe: Probe,
    candidates: Candidates,
    vantages: tuple[Vantage, ...],
    alpha: float,
) -> tuple[Rebuilt, ...]:
    """Try every reconstruction on a run.

    Args:
        folder: The run's folder.
        probe: Measures its model.
        candidates: Members and non-members.
        vantages: Which to try. Captions need what everybody has, an API: once, as V5.
        alpha: One less the confidence of each interval; split among them.
    """
    share, rows = alpha / 4, []
    if Vantage.V5 in vantages:
        view, inside = View.from_run(folder, Vantage.V5), candidates.membership
        bits = caption_exposure(view, probe, candidates)
        rows.append(_row(Vantage.V5, "caption-exposure", "bits", bits, inside, share))
        recall = caption_recall_gap(view, probe, candidates)
        if recall is not None:
            rows.append(_row(Vantage.V5, "recall-gap", "recall", recall, inside, share))
    if probe.task.config.has_head:
        return (*rows, *_features(folder, probe, candidates, vantages, share))
    some = candidates.handful(_TARGETS)
    for vantage, view in _views(folder, {Vantage.V1, Vantage.V2} & set(vantages)):
        closer = inverted_images(view, probe, some)
        rows.append(_row(vantage, "gradient-inversion", "cosine", closer, some.membership, share))
    return tuple(rows)
