"""What a party of the federation works on: model, adapter, data and splits."""

import threading
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from fedvlm.adapters import FlatView, attach
from fedvlm.config import SimulationConfig
from fedvlm.data import ImageTextData, Splits, load_emoji, load_folder, make_splits
from fedvlm.data.emoji import Progress, quiet
from fedvlm.errors import ConfigError
from fedvlm.federation.no_data import NO_DATA, nothing
from fedvlm.federation.own_data import own_splits
from fedvlm.models import LoadedModel, load_model
from fedvlm.seeds import ExperimentSeed
from fedvlm.training import EncodedPairs, Evaluator, encode_pairs, train_adapter

# Models are made one at a time: transformers and peft draw initial values from torch's global
# generator, and two threads at once would draw from each other's seed.
_lock = threading.Lock()
_SPLIT_KEYS = ("seed", "clients", "partition", "alpha", "membership")
_shared: dict[tuple, tuple[ImageTextData, EncodedPairs, Splits]] = {}
_own: dict[tuple[str, str], tuple[ImageTextData, EncodedPairs, Splits]] = {}
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
        own: The pairs of the client whose task it is; None for the server's.
    """

    config: SimulationConfig
    seed: ExperimentSeed
    data: ImageTextData
    pairs: EncodedPairs
    splits: Splits
    model: LoadedModel
    view: FlatView
    initial: NDArray[np.float32]
    own: NDArray[np.int64] | None = None

    def rows(self, client: int) -> NDArray[np.int64]:
        """Return the pairs that a client trains on: its own, or those that it was dealt."""
        return self.splits.clients[client] if self.own is None else self.own

    def reset(self) -> None:
        """Put the adapter back to where everybody starts: a thread's task is used again."""
        self.view.write(self.initial)

    def train(self, client: int, server_round: int) -> float:
        """Train the adapter in place as a client does in a round; returns its mean loss."""
        return train_adapter(
            self.model.vlm,
            self.view,
            self.pairs,
            self.rows(client),
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


def load_task(
    config: SimulationConfig, progress: Progress = quiet, client: int | None = None
) -> Task:
    """Load what a party of a simulation works on; data is shared in a process, models are not.

    A thread keeps the task of the last configuration that it asked for, so that a client's next
    message doesn't load the model again.

    Args:
        config: The federation's configuration.
        progress: Called with (task, done, total).
        client: Whose task it is, from 0; None for the server's.

    Raises:
        ConfigError: Data, model or splits can't be made from the configuration.
        DataError: Data is missing or broken.
    """
    key = (config, None)
    if getattr(_local, "key", None) != key:
        with _lock:
            model = load_model(config.model)
            where = (config.data, config.model, *(getattr(config, name) for name in _SPLIT_KEYS))
            if config.data == NO_DATA and where not in _shared:
                _shared.clear()
                _shared[where] = nothing()
            elif where not in _shared:
                data = load_data(config.data, progress)
                splits = make_splits(
                    data,
                    ExperimentSeed(config.seed),
                    **{name: getattr(config, name) for name in _SPLIT_KEYS[1:]},
                )
                _shared.clear()  # one at a time: features are large
                _shared[where] = (data, encode_pairs(data, model, progress, splits.images), splits)
            built = _task(config, model, *_shared[where])
        _local.key, _local.task = key, built
    task: Task = _local.task
    if client is None:
        return task
    parts = task.splits.clients
    if not parts:
        raise ConfigError(
            f"data = {NO_DATA!r} leaves the clients to data of their own, which this one has not; "
            "name its folder in node.toml"
        )
    return replace(task, own=parts[client] if client < len(parts) else parts[0][:0])


def load_own_task(
    config: SimulationConfig,
    folder: Path,
    model_name: str,
    check: Callable[[LoadedModel], None] | None = None,
) -> Task:
    """Load what a node works on that has data of its own; nothing else is opened.

    Args:
        config: The federation's configuration; its `data` and `model` are not looked at.
        folder: The node's images and captions.
        model_name: The node's base model: "embedded", or a folder.
        check: Called with the model before the data are opened; raises where it isn't wanted.

    Raises:
        ConfigError: There is no such model.
        DataError: Data is missing or broken.
    """
    key = (config, folder)
    if getattr(_local, "key", None) != key:
        with _lock:
            model = load_model(model_name)
            if check is not None:
                check(model)
            where = (str(folder), model_name)
            if where not in _own:
                data = load_folder(folder)
                splits = own_splits(data)
                _own[where] = (data, encode_pairs(data, model, quiet, splits.images), splits)
            built = _task(config, model, *_own[where])
        _local.key, _local.task = key, built
    task: Task = _local.task
    return replace(task, own=task.splits.clients[0])


def _task(
    config: SimulationConfig,
    model: LoadedModel,
    data: ImageTextData,
    pairs: EncodedPairs,
    splits: Splits,
) -> Task:
    seed = ExperimentSeed(config.seed)
    view = attach(model.vlm, config.adapter_spec(), seed)
    if not config.has_head:
        return Task(config, seed, data, pairs, splits, model, view, view.read())
    from fedvlm.federation.head_plan import plan_reading, prepare

    prepare(config, model, data, pairs, splits)
    view = FlatView(model.vlm)
    task = Task(config, seed, data, pairs, splits, model, view, view.read())
    plan_reading(config, task)
    return task
