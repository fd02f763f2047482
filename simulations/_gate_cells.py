"""The feature gate, federated on embeddings that its frozen towers gave once.

The gate stands behind the image tower, and no step changes what is before it: the library's own
local steps, with and without DP, run on kept embeddings, and only the towers are left out.
"""

from dataclasses import dataclass, replace
from functools import lru_cache
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch
from flwr.app import RecordDict
from torch import Tensor, nn

from fedvlm.adapters import AdapterSpec, attach
from fedvlm.config import Config, config_from
from fedvlm.federation import Floor
from fedvlm.federation.node import Node
from fedvlm.federation.node_ledger import NodeLedger
from fedvlm.federation.private_client import train_with_dp
from fedvlm.federation.task import Task, load_task
from fedvlm.models import VLM
from fedvlm.training import Evaluator

PARTS = ("test", "ood", "withheld")
# Chosen on seeds 100 and 101, which are in no table.
COMMON: dict[str, Any] = {
    "adapter": "feature",
    "rounds": 5,
    "local_epochs": 2,
    "learning_rate": 3e-2,
    "references": False,
}
PRIVATE: dict[str, Any] = {
    "dp": "example",
    "batch_size": 256,
    "clip_norm": 1.0,
    "simulated_noise": True,
}
_REACH = 0.02  # Adam's rate times the noise multiplier


class _Kept(nn.Module):
    """Towers that look up what the real ones gave."""

    texts: Tensor

    def __init__(self, vlm: VLM, texts: Tensor) -> None:
        super().__init__()
        self.config = SimpleNamespace(model_type="clip", projection_dim=vlm.embedding_dim)
        self.logit_scale = nn.Parameter(vlm.backbone.logit_scale.detach().clone())  # pyright: ignore
        self.register_buffer("texts", texts)

    def get_image_features(self, pixel_values: Tensor) -> SimpleNamespace:
        """Return what stands for the images."""
        return SimpleNamespace(pooler_output=pixel_values)

    def get_text_features(self, input_ids: Tensor, attention_mask: Tensor) -> SimpleNamespace:
        """Return the captions' embeddings by their numbers."""
        return SimpleNamespace(pooler_output=self.texts[input_ids[:, 0]])


@dataclass(frozen=True)
class _Images:
    pooled: Tensor

    def __call__(self, rows) -> dict[str, Tensor]:
        return {"pixel_values": self.pooled[torch.from_numpy(np.asarray(rows))]}


@lru_cache(maxsize=1)
def _embeddings() -> tuple[Tensor, Tensor]:
    task = load_task(config_from({"adapter": "feature"}))
    backbone: Any = task.model.vlm.backbone
    rows = np.arange(len(task.data))
    with torch.no_grad():
        images = [
            backbone.get_image_features(**task.pairs.images(rows[at : at + 256])).pooler_output
            for at in range(0, len(rows), 256)
        ]
        texts = backbone.get_text_features(**task.pairs.text).pooler_output
    return torch.cat(images), texts


def _task(config: Config) -> Task:
    images, texts = _embeddings()
    task = load_task(config)
    vlm = VLM(_Kept(task.model.vlm, texts).eval())
    view = attach(vlm, AdapterSpec("feature"), task.seed)
    numbers = torch.arange(len(texts))[:, None]
    text = {"input_ids": numbers, "attention_mask": torch.ones_like(numbers)}
    pairs = replace(task.pairs, images=_Images(images), text=text)
    model = replace(task.model, vlm=vlm)
    return replace(task, model=model, pairs=pairs, inputs=None, view=view, initial=view.read())


def configuration(seed: int, epsilon: float | None, delta: float) -> Config:
    """Return a gate's federation; without DP where ε is None."""
    settings = {**COMMON, "seed": seed}
    if epsilon is None:
        return config_from(settings)
    private = config_from(settings | PRIVATE | {"epsilon": epsilon, "delta": delta})
    from fedvlm.federation.private_client import example_settings

    noise = example_settings(private, 2473).noise_multiplier
    return config_from({"learning_rate": _REACH / noise}, private)


def evaluate_gate(config: Config) -> dict[str, float]:
    """Federate a gate and return one of 100 by part, in percent."""
    task = _task(config)
    current, clients = task.initial, task.splits.clients
    ledgers = [
        NodeLedger(Node(k, Floor(), simulated=True), RecordDict()) for k in range(len(clients))
    ]
    for number in range(1, config.training.rounds + 1):
        sent = []
        for client in range(len(clients)):
            task.view.write(current)
            own = replace(task, own=clients[client])
            if config.privacy.dp == "example":
                train_with_dp(own, client, number, ledgers[client], f"{number}")
            else:
                own.train(client, number)
            sent.append(task.view.read())
        weights = (
            [1.0] * len(sent) if config.privacy.dp != "none" else [len(part) for part in clients]
        )
        current = np.average(sent, axis=0, weights=weights).astype(np.float32)
    task.view.write(current)
    scores = Evaluator(task.pairs, {name: task.parts[name] for name in PARTS}, None)(task.model.vlm)
    return {name: 100 * scores[f"{name}_one_of_100"] for name in PARTS}
