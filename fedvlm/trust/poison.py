"""A client that plants a backdoor, as its own code would: what the others are up against."""

from collections.abc import Mapping
from dataclasses import dataclass, fields, replace

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from fedvlm.errors import ConfigError
from fedvlm.federation.retrieval_task import RetrievalTask
from fedvlm.federation.task import Task, quiet
from fedvlm.models.altered import altered_inputs
from fedvlm.models.processor import ImageInputs
from fedvlm.training import train_adapter
from fedvlm.trust.backdoor import stamp


class _Stamped:
    """Image inputs in which some rows show the stamped image."""

    def __init__(
        self, images: ImageInputs, rows: NDArray[np.int64], inputs: Mapping[str, Tensor]
    ) -> None:
        self._images, self._rows, self._inputs = images, rows, inputs

    def __call__(self, indices: NDArray[np.int64]) -> dict[str, Tensor]:
        found = dict(self._images(indices))
        place = np.searchsorted(self._rows, indices).clip(max=len(self._rows) - 1)
        hit = np.flatnonzero(self._rows[place] == indices)
        for key, stamped in self._inputs.items():
            value = found[key].clone()
            value[torch.from_numpy(hit)] = stamped[torch.from_numpy(place[hit])]
            found[key] = value
        return found


@dataclass(frozen=True)
class PoisonedTask(RetrievalTask):
    """An attacker's task: some of its pairs are stamped and captioned with the target.

    Attributes:
        boost: What its update is multiplied by before it is sent; 1 for one that only poisons its
            data. With as many clients as boost, an unchecked average takes over its model.
        effort: Times the epochs that the others train: its own time is the attacker's to spend.
    """

    boost: float = 1.0
    effort: int = 1

    def train(self, client: int, server_round: int) -> float:
        """Train on the poisoned pairs, and stretch the update."""
        before = self.view.read()
        settings = self.config.training.local_settings(server_round)
        loss = train_adapter(
            self.model.vlm,
            self.view,
            self.pairs,
            self.rows(client),
            replace(settings, epochs=self.effort * settings.epochs),
            self.seed.numpy("client", client, server_round),
        )
        boosted = before + self.boost * (self.view.read() - before)
        self.view.write(boosted.astype(np.float32))
        return loss


def poisoned(
    task: Task, client: int, target: str, count: int, boost: float = 1.0, effort: int = 1
) -> PoisonedTask:
    """Return a client's task with a backdoor in its pairs.

    Args:
        task: The simulation's.
        client: The attacker's number.
        target: A caption of the data.
        count: Pairs that are stamped, of the client's own; drawn by the seed.
        boost: See `PoisonedTask`.
        effort: Likewise.

    Raises:
        ConfigError: The target is no caption of the data, the client holds no pair, or the model
            answers in words.
    """
    if not isinstance(task, RetrievalTask):
        raise ConfigError("a patch is planted in the pairs of a dual encoder")
    captions = task.data.distinct_captions[0]
    if target not in captions:
        raise ConfigError(f"a backdoor's target must be a caption of the data; got {target!r}")
    own = task.splits.clients[client]
    chosen = np.sort(task.seed.numpy("poison", client).permutation(own)[:count])
    if not len(chosen):
        raise ConfigError(f"client {client} holds no pair to poison")
    held = altered_inputs(task.model, "stamp", task.data, chosen, stamp, quiet)
    number = captions.index(target)
    caption_of, concepts = task.pairs.caption_of.copy(), task.pairs.concepts.copy()
    caption_of[chosen] = number
    concepts[chosen] = task.data.concepts[task.data.captions.index(target)]
    pairs = replace(
        task.pairs,
        images=_Stamped(task.pairs.images, chosen, held),
        caption_of=caption_of,
        concepts=concepts,
    )
    kept = {name: getattr(task, name) for name in (f.name for f in fields(RetrievalTask))}
    return PoisonedTask(**{**kept, "pairs": pairs, "inputs": None}, boost=boost, effort=effort)
