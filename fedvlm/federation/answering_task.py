"""An image, a prompt, an answer: the task of a model that answers in words."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from fedvlm.config.training import LocalSettings
from fedvlm.data import ImageTextData, load_emoji, load_folder
from fedvlm.data.emoji import Progress
from fedvlm.data.questions import questions_about
from fedvlm.federation.work import Rows, Task
from fedvlm.models.generative import LoadedGenerative
from fedvlm.training.answering import train_answers
from fedvlm.training.answers import EncodedAnswers, encode_answers
from fedvlm.training.generation import AnswerEvaluator

if TYPE_CHECKING:
    from fedvlm.privacy.dpsgd import DPSGDSettings
    from fedvlm.privacy.losses import Batch, PrivateLoss

MOST_SCORED = 600
"""Triples of a part that a round is evaluated on, drawn by the seed; all where there are fewer."""


@dataclass(frozen=True)
class AnsweringTask(Task):
    """A generative model that answers prompts about images.

    An example is a triple. All triples of an image are in one part of a split; under example-level
    DP each of them is a unit of its own.
    """

    kind = "answering"
    metric = "exact_match"

    pairs: EncodedAnswers
    model: LoadedGenerative

    @staticmethod
    def load(name: str, progress: Progress) -> ImageTextData:
        """Load questions about the embedded set, or a folder of images with prompts and answers."""
        return questions_about(load_emoji(progress)) if name == "emoji" else load_folder(Path(name))

    @staticmethod
    def encode(
        data: ImageTextData, model: LoadedGenerative, progress: Progress, rows: Rows
    ) -> EncodedAnswers:
        """Prepare triples for a model; stem features are computed once and cached."""
        return encode_answers(data, model, progress, rows)

    @property
    def encoded(self) -> EncodedAnswers:
        """The triples as the model sees them."""
        return self.pairs

    def train_on(self, rows: Rows, settings: LocalSettings, rng: np.random.Generator) -> float:
        """Train on the answers of triples."""
        return train_answers(self.model.vlm, self.view, self.pairs, rows, settings, rng)

    def scores(self, parts: Mapping[str, Rows]) -> dict[str, float]:
        """Score generated answers on parts of the data."""
        return self._evaluator(parts)(self.model.vlm)

    @cached_property
    def evaluator(self) -> AnswerEvaluator:
        """Evaluates the model on validation, test, OOD, withheld and retention."""
        return self._evaluator(self.parts)

    def _evaluator(self, parts: Mapping[str, Rows]) -> AnswerEvaluator:
        """Evaluate on some of each part, the same each time: generating takes long."""
        some = {}
        for name, part in parts.items():
            order = self.seed.numpy("scored", name).permutation(part)
            some[name] = np.sort(order[:MOST_SCORED])
        return AnswerEvaluator(self.pairs, some)

    def private_loss(
        self, own: Rows, settings: "DPSGDSettings"
    ) -> tuple["PrivateLoss", Callable[[NDArray[np.int64]], "Batch"]]:
        """Return the answers' own loss: no other example, public or not, has a part in it."""
        from fedvlm.privacy.answer_loss import AnswerLoss, answer_units

        return AnswerLoss(self.pairs), lambda rows: answer_units(own[rows])
