"""A party's task, loaded once a process: model, adapter, data and splits."""

import threading
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

from fedvlm.adapters import FlatView, attach
from fedvlm.config import Config
from fedvlm.data import ImageTextData, Splits, load_folder, make_splits
from fedvlm.data.emoji import Progress, quiet
from fedvlm.errors import ConfigError
from fedvlm.federation.answering_task import AnsweringTask
from fedvlm.federation.no_data import NO_DATA, nothing
from fedvlm.federation.own_data import own_splits
from fedvlm.federation.retrieval_task import RetrievalTask
from fedvlm.federation.work import Task
from fedvlm.models import LoadedModel, load_any
from fedvlm.models.generative import LoadedGenerative
from fedvlm.seeds import ExperimentSeed

__all__ = ["Progress", "Task", "kind_of", "load_own_task", "load_task", "quiet"]

# Models are made one at a time: transformers and peft draw initial values from torch's global
# generator, and two threads at once would draw from each other's seed.
_lock = threading.Lock()
_shared: dict[tuple, tuple[ImageTextData, Any, Splits]] = {}
_own: dict[tuple[str, str], tuple[ImageTextData, Any, Splits]] = {}
_local = threading.local()


def kind_of(model: LoadedModel | LoadedGenerative) -> type[Task]:
    """Return what a model is for: a generative one answers, a dual encoder retrieves."""
    return AnsweringTask if isinstance(model, LoadedGenerative) else RetrievalTask


def load_task(config: Config, progress: Progress = quiet, client: int | None = None) -> Task:
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
            model = load_any(config.model.name)
            where = (config.data, config.model, config.training.seed)
            if config.data.source == NO_DATA and where not in _shared:
                _shared.clear()
                _shared[where] = nothing()
            elif where not in _shared:
                data = kind_of(model).load(config.data.source, progress)
                splits = make_splits(
                    data,
                    ExperimentSeed(config.training.seed),
                    clients=config.data.clients,
                    partition=config.data.partition,
                    alpha=config.data.alpha,
                    membership=config.data.membership,
                )
                _shared.clear()  # one at a time: features are large
                encoded = kind_of(model).encode(data, model, progress, splits.images)
                _shared[where] = (data, encoded, splits)
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
    config: Config,
    folder: Path,
    model_name: str,
    check: Callable[[LoadedModel | LoadedGenerative], None] | None = None,
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
            model = load_any(model_name)
            if check is not None:
                check(model)
            where = (str(folder), model_name)
            if where not in _own:
                data = load_folder(folder)
                splits = own_splits(data)
                encoded = kind_of(model).encode(data, model, quiet, splits.images)
                _own[where] = (data, encoded, splits)
            built = _task(config, model, *_own[where])
        _local.key, _local.task = key, built
    task: Task = _local.task
    return replace(task, own=task.splits.clients[0])


def _task(
    config: Config,
    model: LoadedModel | LoadedGenerative,
    data: ImageTextData,
    pairs: Any,
    splits: Splits,
) -> Task:
    seed = ExperimentSeed(config.training.seed)
    view = attach(model.vlm, config.adapter.spec, seed)
    if config.adapter.kind != "prototypes":
        return kind_of(model)(config, seed, data, pairs, splits, model, view, view.read())
    from fedvlm.federation.head_round import plan_reading, prepare

    if not isinstance(model, LoadedModel):  # `attach` has refused it
        raise ConfigError("prototypes are for dual encoders")

    prepare(config, model, data, pairs, splits)
    view = FlatView(model.vlm)
    task = RetrievalTask(config, seed, data, pairs, splits, model, view, view.read())
    plan_reading(config, task)
    return task
