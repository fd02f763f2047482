"""What an audit reads its measures off: a subject, its task's parts, and their captions."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from fedvlm.data.dataset import ImageTextData
from fedvlm.data.splits import Splits
from fedvlm.seeds import ExperimentSeed
from fedvlm.training.evaluation import first_among as first_among
from fedvlm.trust.subject import Subject

Rows = NDArray[np.int64]


@dataclass(frozen=True)
class Sizes:
    """How much an audit looks at; what costs is a pass through the image tower.

    Attributes:
        designers: Sets of tones a concept, at most.
        corrupted: Images that are corrupted, each in every kind at every severity.
        altered: Images that are written on and stamped.
        attacked: Images that are attacked by gradients, of those that the model gets right.
        noise: Images that show nothing.
        half: Look at the tones of every second concept alone: for what was fitted on the others.
    """

    designers: int = 2
    corrupted: int = 40
    altered: int = 200
    attacked: int = 32
    noise: int = 100
    half: bool = False


DEFAULT_SIZES = Sizes()


@dataclass(frozen=True, eq=False)
class Context:
    """The data of one audit; the subject's weights are set by whoever reads.

    Attributes:
        subject: The model.
        data: Image–caption pairs.
        splits: Who holds what.
        seed: Decides every draw.
        sizes: How much is looked at.
    """

    subject: Subject
    data: ImageTextData
    splits: Splits
    seed: ExperimentSeed
    sizes: Sizes = DEFAULT_SIZES

    def rng(self, *purpose: str) -> np.random.Generator:
        """Return a generator for one purpose: the same for every model."""
        return self.seed.numpy("trust", *purpose)

    def sample(self, rows: Rows, most: int, purpose: str) -> Rows:
        """Draw at most so many rows, the same for every model."""
        return np.sort(self.rng("sample", purpose).permutation(rows)[:most])

    @cached_property
    def captions(self) -> tuple[str, ...]:
        """Captions of the test part, sorted: what its images are asked among."""
        return tuple(sorted({self.data.captions[row] for row in self.splits.test}))

    def right(self, rows: Rows, captions: Sequence[str], data: ImageTextData | None = None) -> Rows:
        """Return each row's column among captions."""
        place = {caption: number for number, caption in enumerate(captions)}
        source = self.data if data is None else data
        return np.array([place[source.captions[row]] for row in rows], dtype=np.int64)

    @property
    def of_emoji(self) -> bool:
        """Whether the data is the embedded set, which tones and twins belong to."""
        return self.data.name == "emoji"
