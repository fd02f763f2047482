"""A rule's state in a model: the adapter, and what a rule adds to the base weights."""

from pathlib import Path
from typing import Any
from weakref import WeakKeyDictionary

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from fedvlm.adapters import AdapterSpec, attach, save_adapter
from fedvlm.federation.rules import AggregationRule, FedEx, layers_of
from fedvlm.federation.task import Task
from fedvlm.models import load_model
from fedvlm.models.vlm import VLM

# Weights as the model was loaded with, by layer: a correction is added to these each time.
_base: WeakKeyDictionary[nn.Module, Tensor] = WeakKeyDictionary()


def install(
    task: Task, rule: AggregationRule, state: NDArray[np.float32], schema: str | None = None
) -> None:
    """Put a state into a task's model.

    Args:
        task: Model and adapter; both are changed in place.
        rule: Whose state it is.
        state: What the rule keeps: the adapter first.
        schema: The sender's schema hash; None where the state was made here.

    Raises:
        IntegrityError: Another schema, or a value that isn't finite; the adapter is unchanged.
    """
    task.view.write(rule.adapter(state), schema)
    if isinstance(rule, FedEx):
        for layer, (u, v) in zip(rule.sketch.layers, rule.corrections(state), strict=True):
            _shift(task.model.vlm, layer.name, u @ v)


def _shift(vlm: VLM, name: str, correction: NDArray[np.float64]) -> None:
    """Set a layer's base weight to what it was loaded with, plus s times a correction."""
    module: Any = vlm.get_submodule(name)  # peft's, whose types say less than it holds
    weight = module.base_layer.weight
    if module not in _base:
        _base[module] = weight.detach().clone()
    added = module.scaling["default"] * weight.new_tensor(correction)
    with torch.no_grad():
        weight.copy_(_base[module] + added)


def save_state(task: Task, rule: AggregationRule, state: NDArray[np.float32], folder: Path) -> None:
    """Save a state as an adapter that peft can read.

    FedEx-LoRA's correction becomes part of a LoRA of higher rank, of the same scale:
    s·(B·A + U·V) = s·[B U]·[A; V], so that the saved adapter stands on the base model as it was.

    Args:
        task: Model and adapter.
        rule: Whose state it is.
        state: What the rule keeps.
        folder: Where the adapter goes.
    """
    spec = task.config.adapter.spec
    if not isinstance(rule, FedEx):
        save_adapter(task.model.vlm, spec, folder)
        return
    rank = spec.rank + max(rule.sketch.width_of(layer) for layer in rule.sketch.layers)
    wide = AdapterSpec(spec.kind, rank, spec.alpha * rank / spec.rank, spec.targets, spec.tokens)
    model = load_model(task.config.model.name)
    view = attach(model.vlm, wide, task.seed)
    vector = np.zeros(view.size, dtype=np.float32)
    pairs = zip(layers_of(view.layout), rule.sketch.layers, rule.corrections(state), strict=True)
    for layer, narrow, (u, v) in pairs:
        (to_b, to_a), (b, a) = layer.factors(vector), narrow.factors(rule.adapter(state))
        end = spec.rank + u.shape[1]
        to_b[:, : spec.rank], to_b[:, spec.rank : end] = b, u
        to_a[: spec.rank], to_a[spec.rank : end] = a, v
    view.write(vector)
    save_adapter(model.vlm, wide, folder)
