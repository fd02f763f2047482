"""What an audit of a model that answers reads its measures off: a model, triples, and answers."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from fedvlm.data.dataset import ImageTextData
from fedvlm.data.emoji import Progress, quiet
from fedvlm.data.splits import Splits
from fedvlm.seeds import ExperimentSeed
from fedvlm.training.answers import EncodedAnswers
from fedvlm.training.generation import answer
from fedvlm.training.text_scores import exact_match
from fedvlm.trust.target import Target

Rows = NDArray[np.int64]
Floats = NDArray[np.float64]
_CHUNK = 64
_Found = TypeVar("_Found")


@dataclass(frozen=True)
class AnsweringSizes:
    """How much an audit looks at; what costs is an answer, token after token.

    Attributes:
        rows: Triples a measure, at most.
        corrupted: Triples whose image is corrupted, each in every kind.
        written: Instructions that are written in a picture.
        members: Images that are compared on either side of membership.
        most_tokens: Most tokens of an answer to an instruction.
    """

    rows: int = 150
    corrupted: int = 40
    written: int = 40
    members: int = 300
    most_tokens: int = 32


ANSWERING_SIZES = AnsweringSizes()


@dataclass(frozen=True, eq=False)
class Answering:
    """One model and the triples that it is audited on; nothing is answered twice.

    Attributes:
        target: The model.
        encoded: The triples as it sees them.
        data: The triples.
        splits: Who holds what.
        seed: Decides every draw.
        sizes: How much is looked at.
        progress: Called with (task, done, total).
    """

    target: Target
    encoded: EncodedAnswers
    data: ImageTextData
    splits: Splits
    seed: ExperimentSeed
    sizes: AnsweringSizes = ANSWERING_SIZES
    progress: Progress = quiet
    _held: dict[object, object] = field(default_factory=dict)

    def rng(self, *purpose: str) -> np.random.Generator:
        """Return a generator for one purpose: the same for every model."""
        return self.seed.numpy("trust", *purpose)

    def sample(self, rows: Rows, most: int, purpose: str) -> Rows:
        """Draw at most so many rows, the same for every model."""
        return np.sort(self.rng("sample", purpose).permutation(rows)[:most])

    def once(self, key: object, make: Callable[[], _Found]) -> _Found:
        """Return what was made under a key, and make it the first time."""
        if key not in self._held:
            self._held[key] = make()
        return self._held[key]  # pyright: ignore

    @property
    def test(self) -> Rows:
        """The sample of the test part that most measures are read off."""
        return self.sample(self.splits.test, self.sizes.rows, "test")

    @property
    def of_emoji(self) -> bool:
        """Whether the data asks about the embedded set, which twins belong to."""
        return self.data.name == "emoji-questions"

    def clusters(self, rows: Rows) -> Rows:
        """Return what moves together: drawings of one thing, or the triples of one image."""
        return (self.data.concepts if self.of_emoji else self.data.groups)[rows]

    def answers(self, rows: Rows) -> list[str]:
        """Answer triples' prompts, greedily."""

        def make() -> list[str]:
            found: list[str] = []
            for start in range(0, len(rows), _CHUNK):
                self.progress("answers", start, len(rows))
                found += answer(self.target.model.vlm, self.encoded, rows[start : start + _CHUNK])
            self.progress("answers", len(rows), len(rows))
            return found

        return self.once(("rows", rows.tobytes()), make)

    def said(self, images: Sequence[Image.Image], prompts: Sequence[str]) -> list[str]:
        """Answer prompts about images that are no rows of the data."""
        found: list[str] = []
        for start in range(0, len(images), _CHUNK):
            self.progress("answers", start, len(images))
            stop = start + _CHUNK
            found += self.target.many(images[start:stop], prompts[start:stop])
        self.progress("answers", len(images), len(images))
        return found

    def right(self, rows: Rows) -> list[str]:
        """Return the right answers of rows."""
        return [self.encoded.answers[int(row)] for row in rows]

    def prompts(self, rows: Rows) -> list[str]:
        """Return what is asked last of rows, without the turns before."""
        return [self.encoded.conversations[int(row)][-1].text for row in rows]

    def exact(self, rows: Rows) -> Floats:
        """Return 1 for each answer that is the right one, else 0: shape (n,)."""
        pairs = zip(self.answers(rows), self.right(rows), strict=True)
        return np.array([exact_match(*pair) for pair in pairs], dtype=np.float64)
