"""Measurements on a model that attacks are made of: cosines, margins, gradients."""

import hashlib
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import torch
from numpy.typing import NDArray

from fedvlm.errors import ConfigError, IntegrityError
from fedvlm.federation.task import Task, quiet
from fedvlm.leakage.alignment import Alignments, gradient_alignment
from fedvlm.leakage.scores import margin

Indices = NDArray[np.int64]
_NEGATIVES = 256
_BATCH = 32


@dataclass(frozen=True, eq=False)
class Candidates:
    """The pairs whose membership is guessed; each was in by a fair coin.

    Attributes:
        indices: Shape (N,), rows of the data set.
        membership: Shape (N,), bool: the coin.
        clients: Shape (N,), int64: whose pair it is, or would have been.
    """

    indices: Indices
    membership: NDArray[np.bool_]
    clients: Indices

    def without(self, client: int | None) -> "Candidates":
        """Return the candidates that are not a client's own."""
        keep = self.clients != (-1 if client is None else client)
        return Candidates(self.indices[keep], self.membership[keep], self.clients[keep])

    def handful(self, count: int) -> "Candidates":
        """Return `count` candidates, half members, client after client; fewer where few are."""
        picked: list[int] = []
        for kind in (True, False):
            rows = np.flatnonzero(self.membership == kind)
            turn = np.array(
                [
                    int((self.clients[rows[:at]] == self.clients[row]).sum())
                    for at, row in enumerate(rows)
                ]
            )
            picked += rows[np.argsort(turn, kind="stable")][: count // 2].tolist()
        return Candidates(self.indices[picked], self.membership[picked], self.clients[picked])


def candidates_of(task: Task, per_client: int) -> Candidates:
    """Draw candidates from each client's pairs and their held-out twins, blind to the coin.

    Args:
        task: A task whose configuration has membership = "half".
        per_client: At most so many a client; at least 2.

    Raises:
        ConfigError: The run has no i.i.d. non-members.
    """
    if task.config.data.membership != "half":
        raise ConfigError(
            "an audit needs non-members drawn like the members: run with membership = 'half' "
            f"(this run has {task.config.data.membership!r}); other non-members measure shift"
        )
    rng = task.seed.numpy("audit", "candidates")
    indices, inside, clients = [], [], []
    pairs = zip(task.splits.clients, task.splits.non_members, strict=True)
    for client, (members, others) in enumerate(pairs):
        both = np.concatenate([members, others])
        coin = np.arange(len(both)) < len(members)
        chosen = rng.permutation(len(both))[:per_client]
        indices.append(both[chosen])
        inside.append(coin[chosen])
        clients.append(np.full(len(chosen), client))
    return Candidates(np.concatenate(indices), np.concatenate(inside), np.concatenate(clients))


def distinct(task: Task, candidates: Candidates) -> Candidates:
    """Keep one candidate an image: pairs of one image have one coin, or tell of each other.

    Which one is kept follows from the candidates' order, which is blind to the coins.

    Args:
        task: Gives the images.
        candidates: In random order within a client.
    """
    if task.kind == "answering":  # nobody looks at pixels: what an image shows is numbered
        first = np.sort(np.unique(task.data.groups[candidates.indices], return_index=True)[1])
        return Candidates(
            candidates.indices[first], candidates.membership[first], candidates.clients[first]
        )
    seen: set[bytes] = set()
    keep = np.zeros(len(candidates.indices), dtype=bool)
    for start in range(0, len(keep), _BATCH):
        batch = task.pairs.images(candidates.indices[start : start + _BATCH])
        for row in range(len(candidates.indices[start : start + _BATCH])):
            digest = hashlib.sha256()
            for name in sorted(batch):
                digest.update(batch[name][row].contiguous().numpy().tobytes())
            mark = digest.digest()
            keep[start + row] = mark not in seen
            seen.add(mark)
    return Candidates(
        candidates.indices[keep], candidates.membership[keep], candidates.clients[keep]
    )


@dataclass(frozen=True, eq=False)
class Cosines:
    """Cosines of pairs under one adapter.

    Attributes:
        own: Shape (N,), image with its caption.
        margin: Shape (N,), the margin φ against the public negatives.
    """

    own: NDArray[np.float64]
    margin: NDArray[np.float64]


class Probe:
    """Measures a task's model under adapters of an attacker's choice.

    Args:
        task: The model, the data, and who holds what.

    Attributes:
        negatives: Auxiliary pairs that no client holds, against which margins are taken.
        population: Other auxiliary pairs, what an attacker compares a score with.

    Raises:
        ConfigError: The data leaves fewer than two auxiliary pairs.
    """

    def __init__(self, task: Task) -> None:
        self.task = task
        splits = task.splits
        # Public concepts in the clients' styles; data of one's own may have none, and then the
        # attacker is given held-out pairs. Neither says anything about who was a member.
        auxiliary = splits.retention if len(splits.retention) > 1 else splits.validation
        if len(auxiliary) < 2:
            raise ConfigError(
                f"an audit needs at least 2 auxiliary pairs as negatives, got {len(auxiliary)}"
            )
        order = task.seed.numpy("audit", "negatives").permutation(auxiliary)
        count = min(_NEGATIVES, (len(order) + 1) // 2)
        self.negatives, self.population = np.sort(order[:count]), np.sort(order[count:])
        self._rows = np.unique(task.pairs.caption_of[self.negatives])
        self._cached = lru_cache(maxsize=64)(self._measure)
        self._alignments = Alignments()

    @property
    def negatives_hash(self) -> str:
        """SHA-256 of the negatives' rows, in hex."""
        return hashlib.sha256(self.negatives.astype("<i8").tobytes()).hexdigest()

    @property
    def scale(self) -> float:
        """Inverse temperature of the public backbone."""
        return float(self.task.model.vlm.logit_scale.detach())

    def cosines(self, adapter: NDArray[np.float32], indices: Indices) -> Cosines:
        """Return cosines and margins of pairs under an adapter.

        Args:
            adapter: Shape (P,).
            indices: Shape (N,), rows of the data set.
        """
        return self._cached(
            np.asarray(adapter, dtype=np.float32).tobytes(), indices.astype(np.int64).tobytes()
        )

    def confidence(self, adapter: NDArray[np.float32], indices: Indices) -> NDArray[np.float64]:
        """Return what rises where a pair was trained on: its margin, shape (N,)."""
        return self.cosines(adapter, indices).margin

    def _measure(self, adapter: bytes, rows: bytes) -> Cosines:
        indices = np.frombuffer(rows, dtype=np.int64)
        images, texts = self.embeddings(np.frombuffer(adapter, dtype=np.float32), indices)
        public_images, public_texts = self.public_embeddings()
        own = (images * texts).sum(1).numpy().astype(np.float64)
        against_texts = (images @ public_texts.T).numpy().astype(np.float64)
        against_images = (texts @ public_images.T).numpy().astype(np.float64)
        for found in (own, against_texts, against_images):
            if not np.isfinite(found).all():
                raise IntegrityError(
                    "the adapter gives cosines that are not finite; nothing can be told from them"
                )
        return Cosines(own, margin(own, against_texts, against_images, self.scale))

    def embeddings(
        self, adapter: NDArray[np.float32], indices: Indices
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Return image and caption embeddings of pairs under an adapter: each (N, D)."""
        task = self.task
        task.view.write(np.array(adapter))
        rows, position = np.unique(task.pairs.caption_of[indices], return_inverse=True)
        texts = task.model.vlm.embed(task.pairs.captions(rows), "text")
        images = task.model.vlm.embed(task.pairs.images(indices), "image")
        return images, texts[torch.from_numpy(position)]

    def mirrored(self, adapter: NDArray[np.float32], indices: Indices) -> NDArray[np.float64]:
        """Return cosines of mirrored images with their captions: shape (1, N).

        Raises:
            ConfigError: The model isn't the embedded one, whose mirrored features are cached.
        """
        task = self.task
        if task.model.name != "embedded":
            raise ConfigError("mirrored images are prepared for the embedded model only")
        from fedvlm.models.stem import stem_features

        features = stem_features(task.data, indices, quiet, view=1)[indices].astype(np.float32)
        _, texts = self.embeddings(adapter, indices)
        images = task.model.vlm.embed({"pixel_values": torch.from_numpy(features)}, "image")
        return (images * texts).sum(1).numpy().astype(np.float64)[None]

    def public_embeddings(self) -> tuple[torch.Tensor, torch.Tensor]:
        """Embed the negatives under the adapter that the model has now."""
        task = self.task
        texts = task.model.vlm.embed(task.pairs.captions(self._rows), "text")
        images = task.model.vlm.embed(task.pairs.images(self.negatives), "image")
        return images.clone(), texts.clone()

    def alignment(
        self,
        adapter: NDArray[np.float32],
        indices: Indices,
        updates: NDArray[np.float32],
    ) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """Return how an example's gradient lies with updates.

        The loss of an example is −φ, with the negatives' embeddings held constant. Where a head is
        learned, an example's term in its sum takes the place of the descent direction.

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
    ) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        if self.task.config.has_head:
            from fedvlm.leakage.head_terms import term_alignment

            return term_alignment(self.task, adapter, indices, updates)
        task, vlm = self.task, self.task.model.vlm
        task.view.write(np.array(adapter))
        public_images, public_texts = self.public_embeddings()

        def losses(batch: Indices) -> torch.Tensor:
            images = vlm.encode_image(task.pairs.images(batch))
            texts = vlm.encode_text(task.pairs.captions(task.pairs.caption_of[batch]))
            rows = torch.logsumexp(self.scale * images @ public_texts.T, dim=1)
            columns = torch.logsumexp(self.scale * texts @ public_images.T, dim=1)
            return (rows + columns) / 2 - self.scale * (images * texts).sum(dim=1)

        return gradient_alignment(vlm, task.view, indices, updates, losses)
