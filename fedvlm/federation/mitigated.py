"""A client's task with the mitigation that a run asks for: made on its side, of what is its own.

What a run says is a kind of this library's, a weight λ in a range, and the name of a column. Lists
of captions and public pairs come from the node's own file, or from what is shipped.
"""

import threading
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from fedvlm.adapters.targets import probe_inputs
from fedvlm.config import Config
from fedvlm.config.mitigation import LISTING, NEED_PUBLIC, OF_IMAGES
from fedvlm.data import load_emoji, load_folder
from fedvlm.errors import ConfigError
from fedvlm.federation.floor import RefusedError
from fedvlm.federation.installing import install
from fedvlm.federation.node import PUBLIC_DATA, Node
from fedvlm.federation.retrieval_task import RetrievalTask
from fedvlm.federation.rules import rule_of
from fedvlm.federation.terms import max_weight
from fedvlm.federation.work import Rows, Task
from fedvlm.mitigation.adversary import labels_of
from fedvlm.mitigation.listed import read_captions
from fedvlm.mitigation.loss_weights import loss_weight
from fedvlm.mitigation.making import Wish, make_repair, resampled_rows
from fedvlm.mitigation.material import Given, PublicData
from fedvlm.mitigation.repairs import Repair
from fedvlm.training.relative import relative_loss


@dataclass
class _Made:
    """What a thread has made for the model that it holds, before any training."""

    model: Any
    key: tuple
    repair: Repair | None = None
    drawn: dict[int, Rows] = field(default_factory=dict)


_local = threading.local()


def public_data(name: str) -> PublicData:
    """Return pairs that a node's owner says are public.

    Args:
        name: "emoji" for the public pairs of the embedded set, or a folder of one's own.

    Raises:
        DataError: They are missing or broken.
    """
    if name != PUBLIC_DATA:
        data = load_folder(Path(name))
        return data, np.arange(len(data))
    data = load_emoji()
    known = [data.domain_names.index(one) for one in data.pretraining_domains]
    return data, np.flatnonzero(data.public & np.isin(data.domains, known))


def given_by(node: Node, config: Config) -> Given:
    """Return what a node brings to a mitigation; a simulation's is the run's, on this machine.

    Raises:
        ConfigError: Its list can't be read.
        DataError: Its public pairs are missing or broken.
    """
    asked, given = config.mitigation, Given()
    listed = Path(asked.listed) if node.simulated and asked.listed else node.listed
    if listed is not None and asked.kind in LISTING:
        given = replace(given, listed=read_captions(listed))
    if node.public is not None and asked.kind in NEED_PUBLIC:
        given = replace(given, public=public_data(node.public))
    return given


def mitigated(task: Task, node: Node) -> Task:
    """Return a client's task as its training shall have it; the adapter is put back to its start.

    What is public is embedded by the model before training, once for all rounds.

    Args:
        task: The client's.
        node: Whose it is; its floor has been met.

    Raises:
        ConfigError: The mitigation can't be had for this model or these data; in a deployment
            RefusedError, of the code `mitigation`.
    """
    if not task.config.mitigation.trains or (task.own is not None and not len(task.own)):
        return task  # a canary holds no pairs
    try:
        return _mitigated(task, node)
    except ConfigError as error:
        if node.simulated:
            raise
        raise RefusedError("mitigation", str(error)) from error


def _mitigated(task: Task, node: Node) -> Task:
    config = task.config
    found = _dual(task)
    key = (config, node.data, node.listed, node.public)
    made = getattr(_local, "made", None)
    if made is None or made.model is not task.model or made.key != key:
        made = _local.made = _Made(task.model, key)
    if config.mitigation.kind == "resample":
        client = max(node.number, 0)
        if client not in made.drawn:
            _to_start(task)
            made.drawn[client] = resampled_rows(found, task.rows(client), client)
        return replace(found, own=made.drawn[client])
    if made.repair is None:
        require_carried(task)
        _to_start(task)
        made.repair = make_repair(found, wish_of(config), given_by(node, config))
    return replace(found, repair=made.repair)


def _to_start(task: Task) -> None:
    """Put adapter and base weights to where everybody starts: a thread's task is used again."""
    rule = rule_of(task.config, task.view.layout)
    install(task, rule, rule.start(task.initial))


def weight_of(task: Task, client: int, server_round: int) -> float:
    """Return what a client weighs in a mean, by the loss of the adapter that it was sent.

    Nothing is trained, and the loss stays here: what leaves is the weight, as a number of pairs
    would, and under a protected sum that's in the sum alone.

    Raises:
        ConfigError: The model answers.
    """
    config, found, rows = task.config, _dual(task), task.rows(client)
    loss = relative_loss(
        found.model.vlm,
        found.inputs or found.pairs,
        rows,
        config.training.batch_size,
        task.seed.numpy("loss", client, server_round),
    )
    return loss_weight(len(rows), loss, config.mitigation.loss_power, max_weight(config))


def wish_of(config: Config) -> Wish:
    """Return what a run asks of its clients' losses."""
    asked = config.mitigation
    return Wish(asked.kind, asked.weight, asked.attribute, config.privacy.dp == "example")


def _dual(task: Task) -> RetrievalTask:
    if not isinstance(task, RetrievalTask):
        raise ConfigError(
            f"mitigation: {' and '.join(task.config.mitigation.asked)} is for dual encoders, and "
            'this model answers in words; set mitigation.kind = "none" and '
            "mitigation.loss_power = 0"
        )
    return task


def require_carried(task: Task) -> None:
    """Refuse a mitigation, or weights by loss, that a task's model can't carry.

    Raises:
        ConfigError: The model answers, or its adapter doesn't touch what the term is of.
    """
    config, asked = task.config, task.config.mitigation
    if not asked.asked:
        return
    vlm = _dual(task).model.vlm
    if asked.kind not in OF_IMAGES:
        return
    with torch.enable_grad():
        if not vlm.encode_image(probe_inputs(vlm)[0]).requires_grad:
            raise ConfigError(
                f"mitigation: {asked.kind} changes how images are embedded, and nothing that this "
                f"adapter trains has a part in it (targets = {config.adapter.targets!r})"
            )


def require_material(task: Task) -> None:
    """Refuse, before the first round of a simulation, what its data can't give to a mitigation.

    Args:
        task: The server's, who holds everybody's data here.

    Raises:
        ConfigError: There are no public pairs, a list can't be read, or no client's pairs have
            two values of the attribute.
    """
    config = task.config
    asked = config.mitigation
    if not asked.asked:
        return
    require_carried(task)
    noised = config.privacy.dp == "example"
    if asked.trains and (asked.kind in NEED_PUBLIC or noised) and not len(task.splits.public):
        why = 'under dp = "example" a mitigation' if noised else asked.kind
        raise ConfigError(
            f"{why} contrasts with public pairs, and {task.data.name} has none; take the embedded "
            'data, or one of mitigation.kind = "counterfactual", "robust", "resample"'
            + ("" if noised else ' or "adversary"')
        )
    if asked.listed:
        read_captions(Path(asked.listed))
    if asked.kind == "adversary":
        labels = labels_of(task.data, asked.attribute)
        values = [len(np.unique(labels[rows][labels[rows] >= 0])) for rows in task.splits.clients]
        if max(values) < 2:
            raise ConfigError(
                f"no client's pairs have two values of {asked.attribute!r}, so that there is "
                "nothing to hide; deal them out otherwise (data.partition), or name another column"
            )
