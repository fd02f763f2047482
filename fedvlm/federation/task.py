"""What a party of the federation works on: model, adapter, data and splits."""

import threading
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from fedvlm.adapters import FlatView, attach
from fedvlm.config import SimulationConfig
from fedvlm.data import ImageTextData, Splits, load_emoji, load_folder, make_splits
from fedvlm.data.emoji import Progress, quiet
from fedvlm.models import LoadedModel, load_model
from fedvlm.seeds import ExperimentSeed
from fedvlm.training import EncodedPairs, Evaluator, encode_pairs, train_adapter

_lock = threading.Lock()
_SPLIT_KEYS = ("seed", "clients", "partition", "alpha", "membership")
_shared: dict[tuple, tuple[ImageTextData, EncodedPairs, Splits]] = {}
_local = threading.local()


@dataclass(frozen=True)
class Task:
    """A model with a fresh adapter, and the data that it is for.

    Attributes:
        config: The federation's configuration.
        seed: Its seed.
        data: Image–caption pairs.
        pairs: The same as the model sees them.
        splits: Who holds what.
        model: The model, with the adapter attached.
        view: The adapter's trainable parameters as one vector.
        initial: Shape (P,), float32: the adapter that everybody starts from.
    """

    config: SimulationConfig
    seed: ExperimentSeed
    data: ImageTextData
    pairs: EncodedPairs
    splits: Splits
    model: LoadedModel
    view: FlatView
    initial: NDArray[np.float32]

    def reset(self) -> None:
        """Put the adapter back to where everybody starts: a thread's task is used again."""
        self.view.write(self.initial)

    def train(self, client: int, server_round: int) -> float:
        """Train the adapter in place as a client does in a round; returns its mean loss."""
        return train_adapter(
            self.model.vlm,
            self.view,
            self.pairs,
            self.splits.clients[client],
            self.config.local_settings(server_round),
            self.seed.numpy("client", client, server_round),
        )

    @cached_property
    def evaluator(self) -> Evaluator:
        """Evaluates the model on validation, test, OOD, withheld and retention."""
        return Evaluator(self.pairs, self.parts, self.topic_captions)

    @property
    def parts(self) -> dict[str, NDArray[np.int64]]:
        """The parts that a round is evaluated on."""
        splits = self.splits
        return {
            "validation": splits.validation,
            "test": splits.test,
            "ood": splits.ood,
            "withheld": splits.withheld,
            "retention": splits.retention,
        }

    @property
    def topic_captions(self) -> tuple[NDArray[np.int64], NDArray[np.int64]] | None:
        """Public captions (or all, where none is public) with their topics."""
        if len(self.data.topic_names) < 2:
            return None
        chosen = self.splits.public if len(self.splits.public) else np.arange(len(self.data))
        rows, first = np.unique(self.pairs.caption_of[chosen], return_index=True)
        return rows, self.pairs.topics[chosen][first]


def load_data(name: str, progress: Progress = quiet) -> ImageTextData:
    """Load the embedded set, or a folder of one's own."""
    return load_emoji(progress) if name == "emoji" else load_folder(Path(name))


def load_task(config: SimulationConfig, progress: Progress = quiet) -> Task:
    """Load what a party works on; data is shared in a process, models are not.

    A thread keeps the task of the last configuration that it asked for, so that a client's next
    message doesn't load the model again.

    Raises:
        ConfigError: Data, model or splits can't be made from the configuration.
        DataError: Data is missing or broken.
    """
    if getattr(_local, "config", None) == config:
        return _local.task
    seed = ExperimentSeed(config.seed)
    model = load_model(config.model)
    with _lock:
        key = (config.data, config.model, *(getattr(config, name) for name in _SPLIT_KEYS))
        if key not in _shared:
            data = load_data(config.data, progress)
            splits = make_splits(
                data, seed, **{name: getattr(config, name) for name in _SPLIT_KEYS[1:]}
            )
            _shared.clear()  # one at a time: features are large
            _shared[key] = (data, encode_pairs(data, model, progress, splits.images), splits)
        data, pairs, splits = _shared[key]
    view = attach(model.vlm, config.adapter_spec(), seed)
    task = Task(config, seed, data, pairs, splits, model, view, view.read())
    _local.config, _local.task = config, task
    return task
