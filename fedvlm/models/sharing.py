"""One base model for all clients of a process: copies that hold the same memory.

A copy has modules and parameters of its own, so that an adapter attached to one, or weights swapped
in one for a moment, don't show in another. The numbers behind frozen weights are there once.
"""

import copy

import torch
from torch import Tensor, nn

from fedvlm.models.placement import place
from fedvlm.models.processor import LoadedModel
from fedvlm.models.vlm import VLM


def shared_copy(model: LoadedModel) -> LoadedModel:
    """Return a model of its own whose weights are another one's memory.

    Args:
        model: A model without an adapter. Its weights must not be written to from now on, nor the
            copy's; an adapter's may.
    """
    memo: dict[int, object] = {}
    for parameter in model.vlm.parameters():
        memo[id(parameter)] = nn.Parameter(parameter.data, requires_grad=parameter.requires_grad)
    for buffer in model.vlm.buffers():
        memo[id(buffer)] = buffer.data
    vlm: VLM = copy.deepcopy(model.vlm, memo)
    twin = LoadedModel(vlm, model.processor, model.name)
    if "hashes" in vars(model):  # computed once for all
        vars(twin)["hashes"] = model.hashes
    return twin


class Placed:
    """The weights of a base model on a device, kept for the copies that follow.

    Args:
        device: Where they are.
        dtype: In which precision.
    """

    def __init__(self, device: torch.device, dtype: torch.dtype) -> None:
        self.device, self.dtype = device, dtype
        self._held: dict[tuple[int, torch.Size, torch.dtype], Tensor] = {}
        self._sources: list[Tensor] = []  # alive, so that their addresses stay theirs

    def place(self, vlm: VLM) -> None:
        """Place a copy: what another copy has moved there isn't moved again."""

        def moved(tensor: Tensor, dtype: torch.dtype) -> Tensor:
            if tensor.requires_grad or tensor.numel() == 0:
                return tensor.to(self.device, dtype)
            key = (tensor.data_ptr(), tensor.shape, dtype)
            if key not in self._held:
                self._sources.append(tensor)
                self._held[key] = tensor.to(self.device, dtype)
            return self._held[key]

        place(vlm, self.device, self.dtype, moved)
