"""A party's task, loaded once a process: model, adapter, data and splits."""

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from fedvlm.adapters import FlatView, attach
from fedvlm.config import Config
from fedvlm.data import ImageTextData, Splits, load_folder, make_splits
from fedvlm.data.emoji import Progress, quiet
from fedvlm.errors import ConfigError
from fedvlm.federation.answering_task import AnsweringTask
from fedvlm.federation.no_data import NO_DATA, nothing
from fedvlm.federation.own_data import held_out, own_splits
from fedvlm.federation.retrieval_task import RetrievalTask
from fedvlm.federation.work import Task
from fedvlm.models import LoadedModel, load_any
from fedvlm.models.generative import LoadedGenerative
from fedvlm.models.placement import dtype_of, place, resolve_device
from fedvlm.models.sharing import Placed, shared_copy
from fedvlm.seeds import ExperimentSeed
from fedvlm.training import EncodedPairs
from fedvlm.training.pooled import with_pooled

__all__ = ["Progress", "Task", "kind_of", "load_own_task", "load_task", "quiet"]

# Models are made one at a time: transformers and peft draw initial values from torch's global
# generator, and two threads at once would draw from each other's seed.
_lock = threading.Lock()
_shared: dict[tuple, tuple[ImageTextData, Any, Splits]] = {}
_own: dict[tuple[str, str], tuple[ImageTextData, Any, Splits]] = {}
_bases: dict[tuple, LoadedModel] = {}
_placed: dict[tuple[torch.device, torch.dtype], Placed] = {}
_pooled: dict[tuple, tuple[EncodedPairs, EncodedPairs]] = {}
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
            model = _base_model(config, config.model.name)
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
            built = _task(config, model, *_shared[where], progress)
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
    own = parts[client] if client < len(parts) else parts[0][:0]
    if config.server.node_scores == "none" or not len(own):
        return replace(task, own=own)
    held = held_out([task.data.encoded[row] for row in own])
    return replace(task, own=own[~held], held=own[held])


@contextmanager
def standing_in(config: Config, change: Callable[[Task], Task]) -> Iterator[None]:
    """Let this thread load a changed task of a configuration, as a simulated attacker would.

    Args:
        config: The federation's configuration.
        change: Returns the task that is loaded in the block; other threads load the plain one.
    """
    task = load_task(config)
    _local.task = change(task)
    try:
        yield
    finally:
        _local.key, _local.task = (config, None), task


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
            model = _base_model(config, model_name)
            if check is not None:
                check(model)
            where = (str(folder), model_name)
            if where not in _own:
                data = load_folder(folder)
                splits = own_splits(data)
                encoded = kind_of(model).encode(data, model, quiet, splits.images)
                _own[where] = (data, encoded, splits)
            built = _task(config, model, *_own[where], quiet)
        _local.key, _local.task = key, built
    task: Task = _local.task
    return replace(task, own=task.splits.clients[0], held=task.splits.test)


def bare_model(name: str) -> LoadedModel | LoadedGenerative:
    """Load a base model without adapter or data.

    Raises:
        ConfigError: There is no such model.
    """
    with _lock:
        return load_any(name)


def bare_schema(config: Config, model: LoadedModel | LoadedGenerative) -> str:
    """Put a run's adapter on a base model and return the hash of its schema.

    Raises:
        ConfigError: The adapter doesn't fit the model.
    """
    with _lock:
        return attach(model.vlm, config.adapter.spec, ExperimentSeed(config.training.seed)).schema


def _version(name: str) -> tuple[tuple[str, int, int], ...]:
    """Return what tells whether a model's folder, or a user's own file, is as it was."""
    place = Path(name.removeprefix("python:").rpartition(":")[0] or name).expanduser()
    files = sorted(place.iterdir()) if place.is_dir() else [place]
    states = [(path.name, path.stat()) for path in files if path.is_file()]
    return tuple((name, state.st_size, state.st_mtime_ns) for name, state in states)


def _base_model(config: Config, name: str) -> LoadedModel | LoadedGenerative:
    """Load a base model, or share the dual encoder that this process holds already.

    Raises:
        ConfigError: There is no such model, or a model that answers is asked for off the CPU.
    """
    if config.server.rule == "fedex":  # writes to the base weights
        return load_any(name)
    key = (name, _version(name))
    if key not in _bases:
        _bases.clear()
        _placed.clear()
        model = load_any(name)
        if isinstance(model, LoadedGenerative):
            _check_place(config)
            return model
        _bases[key] = model
    if config.training.dtype != "float32" and _bases[key].vlm.hash_as_loaded is None:
        # Before anything is rounded, and once for all copies.
        _bases[key].vlm.hash_as_loaded = _bases[key].hashes.weights
    model = shared_copy(_bases[key])
    if config.training.loaders:
        setattr(model.processor, "loaders", config.training.loaders)  # noqa: B010
    return model


def _check_place(config: Config) -> None:
    """Refuse a device or a precision that models that answer are not trained on."""
    if (device_of(config).type, config.training.dtype) != ("cpu", "float32"):
        raise ConfigError(
            'models that answer are trained on the CPU in float32; set training.device = "cpu" '
            'and training.dtype = "float32"'
        )


def device_of(config: Config) -> torch.device:
    """Return where a configuration trains on this machine.

    Raises:
        ConfigError: There is no such device.
    """
    name = config.training.device
    return resolve_device("cpu" if config.on_cpu and name == "auto" else name)


def _place(config: Config, model: LoadedModel) -> None:
    """Move a model with its adapter to the device; base weights that are there are shared."""
    device, dtype = device_of(config), dtype_of(config.training.dtype)
    if config.server.rule == "fedex":
        place(model.vlm, device, dtype)
        return
    there = _placed.setdefault((device, dtype), Placed(device, dtype))
    there.place(model.vlm)


def _features(
    config: Config,
    model: LoadedModel,
    data: ImageTextData,
    pairs: EncodedPairs,
    splits: Splits,
    progress: Progress,
) -> EncodedPairs:
    """Return pairs with the features of a frozen image tower; once for all threads."""
    if model.name == "embedded":  # its frozen stem's features are kept already
        return pairs
    training = config.training
    key = (data.fingerprint, model.name, config.adapter, training.device, training.dtype)
    if key not in _pooled:
        _pooled.clear()
        _pooled[key] = (pairs, with_pooled(pairs, data, model, splits.images, progress))
    held, found = _pooled[key]
    return found if held is pairs else with_pooled(pairs, data, model, splits.images, progress)


def _task(
    config: Config,
    model: LoadedModel | LoadedGenerative,
    data: ImageTextData,
    pairs: Any,
    splits: Splits,
    progress: Progress,
) -> Task:
    seed = ExperimentSeed(config.training.seed)
    view = attach(model.vlm, config.adapter.spec, seed)
    if not config.has_head:
        if isinstance(model, LoadedGenerative):
            return AnsweringTask(config, seed, data, pairs, splits, model, view, view.read())
        _place(config, model)
        found = _features(config, model, data, pairs, splits, progress)
        return RetrievalTask(
            *(config, seed, data, pairs, splits, model, view, view.read()), inputs=found
        )
    from fedvlm.federation.head_plan import plan_reading, prepare

    if not isinstance(model, LoadedModel):  # `attach` has refused it
        raise ConfigError("heads are for dual encoders")

    prepare(config, model, data, pairs, splits)
    view = FlatView(model.vlm)
    task = RetrievalTask(config, seed, data, pairs, splits, model, view, view.read())
    plan_reading(config, task)
    return task
