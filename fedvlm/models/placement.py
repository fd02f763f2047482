"""Where a model lives and in which precision: the device's name resolved, the base moved there.

The base model may be kept in bfloat16; what trains stays float32, and so does the vector that
crosses the network. A node may choose device and precision for itself: neither changes what is
sent but by rounding.
"""

import os
from collections.abc import Callable

import torch
from torch import nn

from fedvlm.config.training import check_device
from fedvlm.errors import ConfigError
from fedvlm.models.vlm import VLM

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}


def resolve_device(name: str = "auto") -> torch.device:
    """Return the device of a name.

    Args:
        name: `auto` (the first of cuda, mps, cpu that is there), `cpu`, `cuda`, `cuda:1`, `mps`.

    Raises:
        ConfigError: There is no such name, or no such device on this machine; one line that says
            what is there.

    Example:
        >>> resolve_device("cpu")
        device(type='cpu')
    """
    check_device(name)
    cards = torch.cuda.device_count() if torch.cuda.is_available() else 0
    mps = torch.backends.mps.is_available()
    if name == "auto":
        return torch.device("cuda:0" if cards else "mps" if mps else "cpu")
    device = torch.device(name)
    if device.type == "cuda":
        if torch.version.cuda is None and torch.version.hip is None:
            raise ConfigError(
                f"device = {name!r}, and this torch ({torch.__version__}) is built without CUDA; "
                "install a CUDA build of it, or set device to cpu"
            )
        if not cards:
            raise ConfigError(f"device = {name!r}, and no CUDA device is visible; set it to cpu")
        if (device.index or 0) >= cards:
            there = "cuda:0" if cards == 1 else f"cuda:0 to cuda:{cards - 1}"
            raise ConfigError(f"device = {name!r}, and only {there} is there")
        return torch.device("cuda", device.index or 0)
    if device.type == "mps" and not mps:
        raise ConfigError("device = 'mps', and this machine or torch has no MPS; set it to cpu")
    return device


def side_by_side(workers: int, device: torch.device) -> int:
    """Return how many clients train at a time: as asked, or one a core; on a card, one."""
    if workers:
        return workers
    return (os.cpu_count() or 1) if device.type == "cpu" else 1


def dtype_of(name: str) -> torch.dtype:
    """Return the dtype of a name, `float32` or `bfloat16`.

    Raises:
        ConfigError: It is another one.
    """
    if name not in DTYPES:
        raise ConfigError(f"dtype must be one of {', '.join(DTYPES)}; got {name!r}")
    return DTYPES[name]


def trained_or_added(model: nn.Module) -> set[int]:
    """Return the ids of the tensors that an adapter has put in, trained or frozen (FFA's A)."""
    return {
        id(tensor)
        for name, tensor in (*model.named_parameters(), *model.named_buffers())
        if tensor.requires_grad
        or ".lora_" in name
        or name.startswith(("gate.", "head.", "prompt."))
    }


Move = Callable[[torch.Tensor, torch.dtype], torch.Tensor]


def place(
    vlm: VLM,
    device: torch.device,
    dtype: torch.dtype = torch.float32,
    move: Move | None = None,
) -> None:
    """Move a model to a device, and its base weights to a precision.

    Attach the adapter first: it is drawn on the CPU in float32, alike for every party, and stays
    in float32.

    Args:
        vlm: The model; changed in place.
        device: Where it goes.
        dtype: Of the base weights: float32 or bfloat16.
        move: Moves the data of one of the base model's tensors, where copies share them.

    Guarantees:
        The parameters that train, and the temperature, are float32. The base model's hash stays
        that of the checkpoint as it was loaded.
    """
    if dtype != torch.float32 and vlm.hash_as_loaded is None:
        from fedvlm.models.hashing import weights_hash

        vlm.hash_as_loaded = weights_hash(vlm)
    kept = trained_or_added(vlm)
    with torch.no_grad():
        for name, tensor in (*vlm.named_parameters(), *vlm.named_buffers()):
            scalar = name.rpartition(".")[2] in ("logit_scale", "logit_bias")
            to = tensor.dtype
            if tensor.is_floating_point() and id(tensor) not in kept and not scalar:
                to = dtype
            if tensor.device != device or tensor.dtype != to:
                if move is not None and id(tensor) not in kept:
                    tensor.data = move(tensor.data, to)
                else:
                    tensor.data = tensor.data.to(device, to)
    vlm.set_placement(device, dtype)
