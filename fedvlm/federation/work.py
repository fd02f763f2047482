"""What a party of the federation works on; dual encoders and models that answer differ in it.

Protocols, mechanisms and rules see an adapter as one vector and never ask which it is.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from fedvlm.adapters import FlatView
from fedvlm.config import Config
from fedvlm.config.training import LocalSettings
from fedvlm.data import ImageTextData, Splits
from fedvlm.data.emoji import Progress
from fedvlm.seeds import ExperimentSeed

if TYPE_CHECKING:
    from fedvlm.privacy.dpsgd import DPSGDSettings
    from fedvlm.privacy.losses import Batch, PrivateLoss

Rows = NDArray[np.int64]


@dataclass(frozen=True)
class Task(ABC):
    """A model with a fresh adapter, and the data that it is for.

    Attributes:
        kind: "retrieval" or "answering".
        metric: What a summary quotes of a part's metrics.
        config: The federation's configuration.
        seed: Its seed.
        data: Images with captions, or with questions and answers.
        pairs: The same as the model sees them.
        splits: Who holds what.
        model: The model, with the adapter attached.
        view: The adapter's trainable parameters as one vector.
        initial: Shape (P,), float32: the adapter that everybody starts from.
        own: The examples of the client whose task it is; None for the server's.
        held: Those that it holds out, to score an adapter on; None where it holds out none.
    """

    kind: ClassVar[str]
    metric: ClassVar[str]

    config: Config
    seed: ExperimentSeed
    data: ImageTextData
    pairs: Any
    splits: Splits
    model: Any
    view: FlatView
    initial: NDArray[np.float32]
    own: Rows | None = None
    held: Rows | None = None

    @staticmethod
    @abstractmethod
    def load(name: str, progress: Progress) -> ImageTextData:
        """Load the embedded set of this kind, or a folder of one's own."""

    @staticmethod
    @abstractmethod
    def encode(data: ImageTextData, model: Any, progress: Progress, rows: Rows) -> Any:
        """Prepare the examples that will be used, shape (n,), for a model."""

    @abstractmethod
    def train_on(self, rows: Rows, settings: LocalSettings, rng: np.random.Generator) -> float:
        """Train the adapter in place on examples of shape (n,); returns the mean loss."""

    @abstractmethod
    def scores(self, parts: Mapping[str, Rows]) -> dict[str, float]:
        """Score the model as it is on parts of the data: `PART_METRIC`, for every metric."""

    @property
    @abstractmethod
    def evaluator(self) -> Callable[[Any], dict[str, float]]:
        """Evaluates a model on validation, test, OOD, withheld and retention."""

    @abstractmethod
    def private_loss(
        self, own: Rows, settings: "DPSGDSettings"
    ) -> tuple["PrivateLoss", Callable[[NDArray[np.int64]], "Batch"]]:
        """Return the loss of example-level DP, and what makes batches of places in `own`."""

    def rows(self, client: int) -> Rows:
        """Return the examples that a client trains on: its own, or those that it was dealt."""
        return self.splits.clients[client] if self.own is None else self.own

    def reset(self) -> None:
        """Put the adapter back to where everybody starts: a thread's task is used again."""
        self.view.write(self.initial)

    def train(self, client: int, server_round: int) -> float:
        """Train the adapter in place as a client does in a round; returns its mean loss."""
        return self.train_on(
            self.rows(client),
            self.config.training.local_settings(server_round),
            self.seed.numpy("client", client, server_round),
        )

    @property
    def parts(self) -> dict[str, Rows]:
        """The parts that a round is evaluated on."""
        splits = self.splits
        return {
            "validation": splits.validation,
            "test": splits.test,
            "ood": splits.ood,
            "withheld": splits.withheld,
            "retention": splits.retention,
        }
