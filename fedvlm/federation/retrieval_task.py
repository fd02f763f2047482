"""Images and captions in one space: the task of a dual encoder."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from fedvlm.config.training import LocalSettings
from fedvlm.data import ImageTextData, load_emoji, load_folder
from fedvlm.data.emoji import Progress
from fedvlm.errors import ConfigError
from fedvlm.federation.work import Rows, Task
from fedvlm.mitigation.repairs import Repair
from fedvlm.models import LoadedModel
from fedvlm.training import EncodedPairs, Evaluator, encode_pairs, train_adapter

if TYPE_CHECKING:
    from fedvlm.privacy.dpsgd import DPSGDSettings
    from fedvlm.privacy.losses import Batch, PrivateLoss

_BANK = 256
_PLACES = 8


@dataclass(frozen=True)
class RetrievalTask(Task):
    """A dual encoder that finds the caption of an image among others.

    Attributes:
        repair: What a mitigation adds to each example's loss; None for nothing.
        inputs: What it is trained and evaluated on: `pairs`, or the features of a frozen tower.
    """

    kind = "retrieval"
    metric = "one_of_100"

    pairs: EncodedPairs
    model: LoadedModel
    repair: Repair | None = None
    inputs: EncodedPairs | None = None

    @staticmethod
    def load(name: str, progress: Progress) -> ImageTextData:
        """Load the embedded set, or a folder of images with captions."""
        return load_emoji(progress) if name == "emoji" else load_folder(Path(name))

    @staticmethod
    def encode(
        data: ImageTextData, model: LoadedModel, progress: Progress, rows: Rows
    ) -> EncodedPairs:
        """Prepare pairs for a model; stem features are computed once and cached."""
        return encode_pairs(data, model, progress, rows)

    def train_on(self, rows: Rows, settings: LocalSettings, rng: np.random.Generator) -> float:
        """Train contrastively on pairs."""
        # A mitigation may change what the image tower takes, which kept features are past.
        inputs = self.pairs if self.repair is not None else self.inputs or self.pairs
        return train_adapter(self.model.vlm, self.view, inputs, rows, settings, rng, self.repair)

    def scores(self, parts: Mapping[str, Rows]) -> dict[str, float]:
        """Score retrieval on parts of the data."""
        return Evaluator(self.inputs or self.pairs, dict(parts), None)(self.model.vlm)

    @cached_property
    def evaluator(self) -> Evaluator:
        """Evaluates the model on validation, test, OOD, withheld and retention."""
        return Evaluator(self.inputs or self.pairs, self.parts, self.topic_captions)

    @property
    def topic_captions(self) -> tuple[NDArray[np.int64], NDArray[np.int64]] | None:
        """Public captions (or all, where none is public) with their topics."""
        if len(self.data.topic_names) < 2:
            return None
        chosen = self.splits.public if len(self.splits.public) else np.arange(len(self.data))
        rows, first = np.unique(self.pairs.caption_of[chosen], return_index=True)
        return rows, self.pairs.topics[chosen][first]

    def with_images(self, rows: Rows) -> EncodedPairs:
        """Return the pairs with images that can be asked for at some rows: public ones, say.

        `pairs` holds images of `splits.images` alone, and none of public rows.
        """
        images = self.model.processor.images(self.data, rows, lambda *_: None)
        return replace(self.pairs, images=images)

    def private_loss(
        self, own: Rows, settings: "DPSGDSettings"
    ) -> tuple["PrivateLoss", Callable[[NDArray[np.int64]], "Batch"]]:
        """Choose a loss: a bank where the data has public pairs, else InfoNCE in fixed groups."""
        from fedvlm.privacy.losses import (
            GroupedInfoNCE,
            Repaired,
            bank,
            examples,
            group_batch,
        )

        public = self.splits.public
        if len(public):
            chosen = np.sort(self.seed.numpy("bank").permutation(public)[:_BANK])
            loss = bank(self.model.vlm, self.with_images(chosen), chosen)
            repair = self.repair
            if repair is None:
                return loss, lambda rows: examples(self.pairs, own[rows])

            def with_extras(rows: Rows) -> "Batch":
                batch = examples(self.pairs, own[rows])
                return batch | {"extras": repair.extras(self.model.vlm, own[rows], batch["image"])}

            return Repaired(loss, repair), with_extras
        if self.repair is not None:
            raise ConfigError(
                "a mitigation under example-level DP contrasts with public pairs, and the data "
                "has none"
            )
        groups = max(1, round(settings.expected_batch / (_PLACES / 2)))
        return GroupedInfoNCE(), lambda rows: group_batch(
            self.pairs, own[rows], groups, _PLACES, self.seed
        )
