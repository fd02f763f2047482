"""Forget lists and the adapters that relearning is measured on: told to forget, and never told."""

from collections.abc import Callable, Collection, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fedvlm.adapters import FlatView
from fedvlm.data.unsafe import UNSAFE
from fedvlm.errors import ConfigError
from fedvlm.federation.task import Task
from fedvlm.trained import load_trained
from fedvlm.trust.relearning import Rows


def held_by(task: Task) -> tuple[Rows, Rows]:
    """Return the pairs that clients train on, and those of evaluation and held out by coins."""
    splits = task.splits
    unseen = [*splits.non_members, splits.validation, splits.test, splits.ood]
    return np.concatenate(splits.clients), np.concatenate(unseen)


def drawn_list(task: Task, concepts: int) -> frozenset[str]:
    """Draw captions to forget: clients train on them, and two other drawings are left."""
    trained, unseen = (task.data.concepts[rows] for rows in held_by(task))
    names, counts = np.unique(unseen, return_counts=True)
    listed = {task.data.concepts[n] for n, c in enumerate(task.data.captions) if c in UNSAFE}
    known = np.setdiff1d(np.intersect1d(names[counts >= 2], trained), list(listed))
    chosen = task.seed.numpy("forget").permutation(known)[:concepts]
    rows = np.flatnonzero(np.isin(task.data.concepts, chosen))
    return frozenset(task.data.captions[row] for row in rows)


def on_list(task: Task, rows: Rows, listed: Collection[str]) -> NDArray[np.bool_]:
    """Say which pairs' captions are listed, shape (n,)."""
    return np.array([task.data.captions[row] in listed for row in rows], dtype=bool)


def left_out(listed: Collection[str]) -> Callable[[Task], Task]:
    """Return what makes a client's task one without listed pairs: what forgetting should give."""

    def change(task: Task) -> Task:
        parts = tuple(rows[~on_list(task, rows, listed)] for rows in task.splits.clients)
        return replace(task, splits=replace(task.splits, clients=parts))

    return change


def state_of(folder: Path, view: FlatView, frozen: Mapping[str, Any]) -> NDArray[np.float32]:
    """Read a run's adapter as the vector of another model's view.

    Args:
        folder: Of a finished run.
        view: Of a fresh adapter of the same kind and seed.
        frozen: Parameters by name of the model that the view is of.

    Raises:
        ConfigError: What the view doesn't hold differs: the vector would be of another model.
    """
    found = dict(load_trained(folder).model.vlm.named_parameters())
    trained = [name for name, _ in view.layout]
    for name in sorted(found.keys() - set(trained)):
        if name not in frozen or not bool((found[name] == frozen[name]).all()):
            raise ConfigError(f"{folder} was trained beside other weights: {name} differs")
    return np.concatenate([found[name].detach().numpy().ravel() for name in trained])
